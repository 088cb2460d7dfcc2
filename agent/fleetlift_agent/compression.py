# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Codecs for the content of a write, and the decision whether compressing pays."""

from __future__ import annotations

import time
import zlib
from typing import Callable, Protocol

from fleetlift_agent.errors import AgentError

try:
    import zstandard as _zstandard
except ImportError:
    _zstandard = None  # type: ignore[assignment]

CODEC_NONE, CODEC_ZLIB, CODEC_ZSTD = 0, 1, 2
CODECS = {"none": CODEC_NONE, "zlib": CODEC_ZLIB, "zstd": CODEC_ZSTD}
# When to compress: as far as it makes delivery faster, whatever it costs in time, or not at all.
COMPRESSION = ("auto", "always", "never")
# Less gain than this is not worth the receiver's time.
_WORTHWHILE = 0.95
# What came last may not have compressed, and the next file may: so much of the time of sending is ventured.
_VENTURED = 0.05
_SAMPLE = 16 << 10
_RETRY_EVERY = 64
# For each level of zstd what a byte costs to compress, in the time of level 1, and how many times longer than at level
# 1 sending a byte must take for the level to pay. Measured on an installed system with a third of random data:
# 0.92, 1.21 and 2.01 ms for a MiB, and 0.732, 0.674 and 0.659 of it were left.
_ZSTD_LEVELS = ((3, 1.7, 45.0), (1, 1.0, 4.3), (-5, 0.75, 0.0))


class Codec(Protocol):
    """Compresses one piece of content. Instances belong to one thread."""

    name: str
    number: int

    def compress(self, raw: bytes | memoryview) -> bytes | memoryview: ...

    def tune(self, patience: float) -> None:
        """Sending a byte takes `patience` times as long as compressing one as it was done last."""


class NullCodec:
    name = "none"
    number = CODEC_NONE

    def compress(self, raw: bytes | memoryview) -> bytes | memoryview:
        return raw

    def tune(self, patience: float) -> None:
        """There is nothing to choose."""


class ZlibCodec:
    name = "zlib"
    number = CODEC_ZLIB

    def compress(self, raw: bytes | memoryview) -> bytes | memoryview:
        # zlib needs 20 ms for an incompressible MiB: a sample of it tells for less.
        sample = raw[:_SAMPLE]
        if len(raw) > 2 * _SAMPLE and len(zlib.compress(sample, 1)) > _WORTHWHILE * len(sample):
            return raw
        return zlib.compress(raw, 1)

    def tune(self, patience: float) -> None:
        """More effort than the least does not pay with zlib."""


class ZstdCodec:
    name = "zstd"
    number = CODEC_ZSTD

    def __init__(self) -> None:
        # Kept, for in locked memory a new one is not cheap; together they hold about 3 MiB.
        self._compressors = {
            level: _zstandard.ZstdCompressor(level=level, write_content_size=True)
            for level, _cost, _patience in _ZSTD_LEVELS
        }
        self._cost = 1.0
        self.level = 1

    def compress(self, raw: bytes | memoryview) -> bytes | memoryview:
        packed: bytes = self._compressors[self.level].compress(raw)
        return packed

    def tune(self, patience: float) -> None:
        patience *= self._cost
        self.level, self._cost, _least = next(choice for choice in _ZSTD_LEVELS if patience >= choice[2])


def available_codecs() -> list[str]:
    """Names of the usable codecs, the preferred one first."""
    return (["zstd"] if _zstandard is not None else []) + ["zlib", "none"]


def load_codec(name: str) -> Codec:
    """A fresh codec for one thread; KeyError when this host does not have it."""
    if name == "none":
        return NullCodec()
    if name == "zlib":
        return ZlibCodec()
    if name == "zstd" and _zstandard is not None:
        return ZstdCodec()
    raise KeyError(name)


class Economy:
    """Compresses while that makes delivery faster: the link must be slower than the processor. Or `always`.

    The slower the link, the more effort the codec is told to make. Seconds per byte of compressing and of sending are
    measured as they happen: of compressing by the clock, for a busy processor makes that longer, as it does the waits
    for the link. When compressing has stopped paying it is tried again on every 64th piece.
    """

    def __init__(self, codec: Codec, clock: Callable[[], float] = time.monotonic, *, always: bool = False) -> None:
        self._codec = codec
        self._always = always
        self._clock = clock
        self._compress_cost: float | None = None
        self._send_cost: float | None = None
        self._ratio = 0.5
        self._pieces = 0

    def pack(self, raw: bytes | memoryview) -> tuple[int, bytes | memoryview]:
        """(codec number, payload); the payload is never longer than `raw`."""
        self._pieces += 1
        if self._codec.number == CODEC_NONE or not (self._pays() or self._pieces % _RETRY_EVERY == 0):
            return CODEC_NONE, raw
        begun = self._clock()
        packed = self._codec.compress(raw)
        self._compress_cost = _smooth(self._compress_cost, (self._clock() - begun) / len(raw))
        if self._send_cost is not None and self._compress_cost > 0:
            self._codec.tune(self._send_cost / self._compress_cost)
        ratio = len(packed) / len(raw)
        self._ratio = _smooth(self._ratio, min(1.0, ratio))
        if ratio > _WORTHWHILE:
            return CODEC_NONE, raw
        return self._codec.number, packed

    def sent(self, wire_bytes: int, seconds: float) -> None:
        """Tell what it took to send `wire_bytes`: the processor's seconds, and those that were waited for the link."""
        # A frame without content says nothing of what a byte of content takes.
        if wire_bytes > 0:
            self._send_cost = _smooth(self._send_cost, seconds / wire_bytes)

    def _pays(self) -> bool:
        if self._always or self._compress_cost is None or self._send_cost is None:
            return True
        return self._compress_cost < self._send_cost * max(_VENTURED, 1 - self._ratio)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else 0.8 * old + 0.2 * new


class Unpacker:
    """Decompresses content of a known length. Instances belong to one thread."""

    def __init__(self) -> None:
        self._zstd = _zstandard.ZstdDecompressor() if _zstandard is not None else None

    def unpack(self, codec: int, payload: memoryview, raw_length: int) -> bytes | memoryview:
        """Exactly `raw_length` bytes, perhaps those of `payload`; never allocates more than that.

        Raises AgentError on anything else.
        """
        try:
            raw = self._unpack(codec, payload, raw_length)
        except zlib.error as error:
            raise _damaged(f"zlib: {error}") from error
        except ValueError as error:
            raise _damaged(str(error)) from error
        if len(raw) != raw_length:
            raise _damaged(f"{len(raw)} bytes instead of {raw_length}")
        return raw

    def _unpack(self, codec: int, payload: memoryview, raw_length: int) -> bytes | memoryview:
        if codec == CODEC_NONE:
            return payload
        if codec == CODEC_ZLIB:
            engine = zlib.decompressobj()
            # One byte more than announced, so that a longer stream is noticed and not cut off.
            raw = engine.decompress(payload, raw_length + 1)
            if not engine.eof or engine.unused_data:
                raise ValueError("the zlib stream does not end where it should")
            return raw
        if codec == CODEC_ZSTD and self._zstd is not None:
            return self._unpack_zstd(payload, raw_length)
        raise ValueError(f"codec {codec} was not negotiated")

    def _unpack_zstd(self, payload: memoryview, raw_length: int) -> bytes:
        try:
            # The library allocates what the frame announces, whatever limit it is given.
            announced = _zstandard.get_frame_parameters(payload).content_size
            if announced != raw_length:
                raise ValueError(f"the zstd frame announces {announced} bytes instead of {raw_length}")
            assert self._zstd is not None
            raw: bytes = self._zstd.decompress(payload, max_output_size=raw_length)
        except _zstandard.ZstdError as error:
            raise ValueError(f"zstd: {error}") from error
        return raw


def _damaged(why: str) -> AgentError:
    return AgentError(
        "WIRE_CONTENT_DAMAGED",
        f"Compressed content cannot be unpacked: {why}",
        "The connection is made again; if this repeats, suspect the memory of one of the two hosts",
        subject="connection",
    )
