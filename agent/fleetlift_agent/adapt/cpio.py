# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an initramfs contains: the names in its archives, microcode and appended ones included.

Formats: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel (newc archives, one after the other,
each plain or compressed), RFC 8878 for the length of a zstd frame, lib/decompress_unlz4.c for lz4's legacy one.
"""

from __future__ import annotations

import bz2
import lzma
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_HEADER = 110
_MAX_NAME = 1 << 16
_LZ4_BLOCK = (8 << 20) + (8 << 20) // 255 + 16

# Decompresses one whole compressed stream with the named program, piece by piece.
Decompress = Callable[[str, bytes], Iterator[bytes]]


class Unreadable(Exception):
    """The reason, for people, why the content is not known."""


def names(path: Path, decompress: Decompress) -> set[str]:
    """The paths in the initramfs at *path*, without a leading slash. Raises Unreadable."""
    if path.stat().st_size == 0:
        raise Unreadable("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: set[str] = set()
        position = _skip_zeros(data, 0)
        while position < len(data):
            stream, consumed = _segment(data, position, decompress)
            found.update(_archive(stream))
            stream.drain()
            position = _skip_zeros(data, position + consumed())
    return found


class _Stream:
    """Reads and skips in pieces that arrive from somewhere."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""
        self.position = 0

    def read(self, length: int) -> bytes:
        parts = [self._buffer]
        have = len(self._buffer)
        while have < length:
            piece = next(self._pieces, None)
            if piece is None:
                raise Unreadable("an archive in it is cut off")
            parts.append(piece)
            have += len(piece)
        joined = b"".join(parts)
        self._buffer = joined[length:]
        self.position += length
        return joined[:length]

    def skip(self, length: int) -> None:
        while length:
            length -= len(self.read(min(length, _CHUNK)))

    def at_end(self) -> bool:
        """Whether nothing but zeros follows; those that follow are consumed."""
        while True:
            rest = self._buffer.lstrip(b"\0")
            self.position += len(self._buffer) - len(rest)
            self._buffer = rest
            if rest:
                return False
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._buffer = piece

    def drain(self) -> None:
        self._buffer = b""
        for _piece in self._pieces:
            continue


def _archive(stream: _Stream) -> Iterator[str]:
    """The names in one or more newc archives until the stream ends."""
    while not stream.at_end():
        start = stream.position
        while True:
            header = stream.read(_HEADER)
            if header[:6] not in (b"070701", b"070702"):
                raise Unreadable("an archive in it is damaged")
            size, length = int(header[54:62], 16), int(header[94:102], 16)
            if not 0 < length <= _MAX_NAME:
                raise Unreadable("an archive in it has an impossible name")
            name = stream.read(length).rstrip(b"\0").decode("utf-8", "replace")
            stream.skip(-(stream.position - start) % 4)
            stream.skip(size)
            stream.skip(-(stream.position - start) % 4)
            if name == "TRAILER!!!":
                break
            yield name[2:] if name.startswith("./") else name.lstrip("/")


def _segment(data: mmap.mmap, position: int, decompress: Decompress) -> tuple[_Stream, Callable[[], int]]:
    """The content of what begins at *position*, and how many bytes of the file it took once it is drained."""
    head = data[position : position + 6]
    if head[:5] == b"07070":
        end = _plain_end(data, position)
        return _Stream(iter([data[position:end]])), lambda: end - position
    makers: list[tuple[bytes, Callable[[], Any]]] = [
        (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
        (b"\xfd7zXZ\0", lzma.LZMADecompressor),
        (b"\x5d\0\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE)),
        (b"BZh", bz2.BZ2Decompressor),
    ]
    for magic, make in makers:
        if head.startswith(magic):
            return _inflated(_Inflater(data, position, make()))
    for magic, program, measure in (
        (b"\x28\xb5\x2f\xfd", "zstd", _zstd_length),
        (b"\x02\x21\x4c\x18", "lz4", _lz4_length),
        (b"\x89LZO", "lzop", _to_the_end),
    ):
        if head.startswith(magic):
            whole = data[position : position + measure(data, position)]
            return _Stream(decompress(program, whole)), whole.__len__
    raise Unreadable(f"it is compressed in a way that is not known here ({head.hex()})")


def _inflated(inflater: _Inflater) -> tuple[_Stream, Callable[[], int]]:
    return _Stream(iter(inflater)), lambda: inflater.consumed


class _Inflater:
    """One stream of a decompressor of the standard library."""

    def __init__(self, data: mmap.mmap, position: int, machine: Any) -> None:
        self._data = data
        self._position = position
        self._machine = machine
        self.consumed = 0

    def __iter__(self) -> Iterator[bytes]:
        while not self._machine.eof:
            at = self._position + self.consumed
            piece = self._data[at : at + _CHUNK]
            if not piece:
                raise Unreadable("its compressed data is cut off")
            try:
                out = self._machine.decompress(piece)
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise Unreadable(f"its compressed data is damaged: {error}") from error
            self.consumed += len(piece)
            if out:
                yield out
        self.consumed -= len(self._machine.unused_data)


def _skip_zeros(data: mmap.mmap, position: int) -> int:
    while position < len(data):
        piece = data[position : position + _CHUNK]
        rest = piece.lstrip(b"\0")
        position += len(piece) - len(rest)
        if rest:
            break
    return position


def _plain_end(data: mmap.mmap, position: int) -> int:
    """Where the uncompressed archive at *position* ends."""
    at = position
    while True:
        header = data[at : at + _HEADER]
        if len(header) < _HEADER or header[:5] != b"07070":
            raise Unreadable("an archive in it is damaged")
        size, length = int(header[54:62], 16), int(header[94:102], 16)
        name = data[at + _HEADER : at + _HEADER + length]
        body = at + _HEADER + length
        body += -(body - position) % 4
        at = body + size
        at += -(at - position) % 4
        if name == b"TRAILER!!!\0":
            return min(at, len(data))


def _zstd_length(data: mmap.mmap, position: int) -> int:
    """The bytes of all zstd frames that follow each other from *position*."""
    at = position
    while data[at : at + 4] == b"\x28\xb5\x2f\xfd":
        descriptor = data[at + 4]
        single = descriptor >> 5 & 1
        content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        at += 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + content
        last = False
        while not last:
            raw = data[at : at + 3]
            if len(raw) < 3:
                raise Unreadable("its compressed data is cut off")
            block = int.from_bytes(raw, "little")
            last = bool(block & 1)
            at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        at += 4 if descriptor & 4 else 0
    if at > len(data):
        raise Unreadable("its compressed data is cut off")
    return at - position


def _lz4_length(data: mmap.mmap, position: int) -> int:
    """The bytes of a legacy lz4 stream: blocks with their length, until what follows cannot be one."""
    at = position + 4
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if size == 0x184C2102:
            at += 4
        elif 0 < size <= _LZ4_BLOCK and at + 4 + size <= len(data):
            at += 4 + size
        else:
            break
    return at - position


def _to_the_end(data: mmap.mmap, position: int) -> int:
    return len(data) - position
