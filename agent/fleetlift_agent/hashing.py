# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hashes: a cryptographic one for the manifest, a fast one as the sender's change detector.

Leaf = the first 16 bytes of H(sub-block); extent digest = H(concatenated leaves); disk root = H(extent digests in
order); migration root = H(disk roots in order). H is sha256 or blake3, 32 bytes each.

128 bits are enough for a leaf: changing a given sub-block unnoticed takes 2**128 attempts. The 2**64 of a collision
would need somebody who writes both versions to his own disk.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable
from typing import Callable, Protocol

from fleetlift_agent.extents import EXTENT, SUB_BLOCK

try:
    import blake3 as _blake3
except ImportError:
    _blake3 = None  # type: ignore[assignment]
try:
    import xxhash as _xxhash
except ImportError:
    _xxhash = None  # type: ignore[assignment]

DIGEST = 32
LEAF = 16
DETECTOR = 16
# No digest is ever all zero in practice (probability 2**-256), so this marks "not known".
UNKNOWN = bytes(DIGEST)
_ZERO_EXTENT = bytes(EXTENT)
_memcmp = ctypes.CDLL(None).memcmp


class _Digesting(Protocol):
    def update(self, data: bytes | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


class Hash:
    """One negotiated cryptographic hash and everything derived from it."""

    def __init__(self, name: str, new: Callable[[bytes | bytearray | memoryview], _Digesting]) -> None:
        self.name = name
        self.new = new
        self.zero_leaf = self.leaf(bytes(SUB_BLOCK))
        self._zero_digests: dict[int, bytes] = {}

    def digest(self, data: bytes | bytearray | memoryview) -> bytes:
        return self.new(data).digest()

    def leaf(self, data: bytes | memoryview) -> bytes:
        """The hash of one sub-block."""
        return self.new(data).digest()[:LEAF]

    def leaves(self, data: memoryview) -> bytes:
        """Concatenated hashes of the 4 KiB sub-blocks of `data`."""
        if len(data) % SUB_BLOCK == 0 and is_zero(data):
            return self.zero_leaves(len(data))
        return self.each(data)

    def each(self, data: memoryview) -> bytes:
        """As `leaves`, without a look whether all is zero."""
        new = self.new
        return b"".join([new(data[at : at + SUB_BLOCK]).digest()[:LEAF] for at in range(0, len(data), SUB_BLOCK)])

    def at_once(self, _data: memoryview) -> bytes | None:
        """A digest of all bytes in one go, by a hash that does so several times faster than it makes leaves."""
        return None

    def zero_leaves(self, size: int) -> bytes:
        """As `leaves` of so many zero bytes."""
        whole, rest = divmod(size, SUB_BLOCK)
        return self.zero_leaf * whole + (self.leaf(bytes(rest)) if rest else b"")

    def zero_digest(self, size: int) -> bytes:
        """As `extent_digest` of so many zero bytes, of which there are two kinds: an extent, and a disk's last one."""
        digest = self._zero_digests.get(size)
        if digest is None:
            digest = self._zero_digests[size] = self.digest(self.zero_leaves(size))
        return digest

    def extent_digest(self, data: memoryview) -> bytes:
        return self.digest(self.leaves(data))

    def root(self, digests: Iterable[bytes]) -> bytes:
        """The hash over concatenated digests (bytes-like pieces, consumed one by one)."""
        state = self.new(b"")
        for piece in digests:
            state.update(piece)
        return state.digest()


class Blake3(Hash):
    """As Hash; its state is used again for one sub-block after the other, which is a quarter faster."""

    def each(self, data: memoryview) -> bytes:
        state = _blake3.blake3()
        leaves = []
        for at in range(0, len(data), SUB_BLOCK):
            state.reset()
            state.update(data[at : at + SUB_BLOCK])
            leaves.append(state.digest(LEAF))
        return b"".join(leaves)

    def at_once(self, data: memoryview) -> bytes | None:
        return self.digest(data)


def is_zero(data: memoryview) -> bool:
    """Whether all of up to EXTENT bytes are zero. CPython compares memoryviews item by item, a hundred times slower."""
    size = ctypes.c_size_t(len(data))
    # Nothing has no address.
    if len(data) and not data.readonly:
        return bool(_memcmp(ctypes.byref(ctypes.c_char.from_buffer(data)), _ZERO_EXTENT, size) == 0)
    content = data.obj if isinstance(data.obj, bytes) and len(data.obj) == len(data) else bytes(data)
    return bool(_memcmp(content, _ZERO_EXTENT, size) == 0)


class ChangeDetector(Protocol):
    """Tells cheaply whether an extent changed since its digest was computed on this host."""

    name: str

    def fingerprint(self, data: memoryview) -> bytes:
        """16 bytes, or empty when this detector cannot tell."""


class Xxh3Detector:
    """XXH3-128: not collision resistant, so only for one's own disk and never for the final pass."""

    name = "xxh3_128"

    def fingerprint(self, data: memoryview) -> bytes:
        digest: bytes = _xxhash.xxh3_128_digest(data)
        return digest


class NullDetector:
    """Without xxhash every pass computes the cryptographic digest."""

    name = "none"

    def fingerprint(self, data: memoryview) -> bytes:
        return b""


def available_hashes() -> list[str]:
    """Names of the usable hashes, the preferred one first."""
    return (["blake3"] if _blake3 is not None else []) + ["sha256"]


def load_hash(name: str) -> Hash:
    """The hash of that name; KeyError when this host does not have it."""
    if name == "sha256":
        return Hash(name, hashlib.sha256)
    if name == "blake3" and _blake3 is not None:
        return Blake3(name, _blake3.blake3)
    raise KeyError(name)


def available_detectors() -> list[str]:
    return ["xxh3_128", "none"] if _xxhash is not None else ["none"]


def best_detector() -> ChangeDetector:
    """The change detector of this host (the null object when xxhash is missing)."""
    return Xxh3Detector() if _xxhash is not None else NullDetector()
