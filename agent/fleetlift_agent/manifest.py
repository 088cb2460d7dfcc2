# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest: one 32-byte digest per 1 MiB extent of a disk; all zero means "not known".

Memory: 32 bytes per MiB of disk. The receiver keeps its manifest in a mapped file
in the agent's directory (tmpfs), so it survives a killed agent, but not a rebooted landing.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Protocol

from fleetlift_agent.extents import extent_count
from fleetlift_agent.hashing import DIGEST, UNKNOWN, Hash

_HEADER = struct.Struct(">8s16s40s64sQ")
_MAGIC = b"FLMANIF1"
# The digests begin on a page of their own.
_DATA_AT = 4096
_PIECE = 1 << 15


class Manifest(Protocol):
    """Digests by extent number. Reading and writing one entry is atomic under the interpreter's lock."""

    count: int

    def get(self, extent: int) -> bytes: ...

    def set(self, extent: int, digest: bytes) -> None: ...

    def slice(self, first: int, count: int) -> bytes:
        """Concatenated digests of `count` extents."""


class MemoryManifest:
    """A manifest in memory (the sender's)."""

    def __init__(self, disk_size: int) -> None:
        self.count = extent_count(disk_size)
        self._digests = bytearray(self.count * DIGEST)

    def get(self, extent: int) -> bytes:
        return bytes(self._digests[extent * DIGEST : (extent + 1) * DIGEST])

    def set(self, extent: int, digest: bytes) -> None:
        _check(digest)
        self._digests[extent * DIGEST : (extent + 1) * DIGEST] = digest

    def slice(self, first: int, count: int) -> bytes:
        return bytes(self._digests[first * DIGEST : (first + count) * DIGEST])

    @property
    def blank(self) -> bool:
        """Whether no digest is known."""
        return self._digests.count(0) == len(self._digests)

    @property
    def complete(self) -> bool:
        """Whether every digest is known."""
        # Digest by digest this would take seconds for a large disk, in a cutover.
        at = self._digests.find(UNKNOWN)
        while at >= 0:
            if at % DIGEST == 0:
                return False
            at = self._digests.find(UNKNOWN, at + 1)
        return True


class FileManifest:
    """A manifest in a mapped file (the receiver's).

    The file is used again only if hash, boot, disk serial and size are the ones it was
    made for; otherwise it starts with every digest unknown.
    """

    def __init__(self, path: Path, *, hash_name: str, boot_id: str, serial: str, disk_size: int) -> None:
        self.count = extent_count(disk_size)
        header = _HEADER.pack(_MAGIC, hash_name.encode(), boot_id.encode(), serial.encode(), disk_size)
        size = _DATA_AT + self.count * DIGEST
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.reused = os.fstat(descriptor).st_size == size and os.pread(descriptor, len(header), 0) == header
            if not self.reused:
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._map[: len(header)] = header

    def get(self, extent: int) -> bytes:
        at = _DATA_AT + extent * DIGEST
        return self._map[at : at + DIGEST]

    def set(self, extent: int, digest: bytes) -> None:
        _check(digest)
        at = _DATA_AT + extent * DIGEST
        self._map[at : at + DIGEST] = digest

    def slice(self, first: int, count: int) -> bytes:
        return self._map[_DATA_AT + first * DIGEST : _DATA_AT + (first + count) * DIGEST]

    def close(self) -> None:
        self._map.close()


def _check(digest: bytes) -> None:
    if len(digest) != DIGEST:
        raise ValueError(f"a digest has {len(digest)} bytes instead of {DIGEST}")


def disk_root(manifest: Manifest, algorithm: Hash) -> bytes:
    """The disk's root hash over its extent digests in order."""
    # In pieces: of 16 TiB the digests are 512 MiB, which nobody has twice.
    return algorithm.root(
        manifest.slice(first, min(_PIECE, manifest.count - first)) for first in range(0, manifest.count, _PIECE)
    )
