# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bytes of objects and parts: files that are written once, hashed while they arrive."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anycrc

CHUNK = 1024 * 1024
_ZEROS = bytes(CHUNK)
# The parameters of ECMA-182 as COS uses them (reflected, inverted) are catalogued as CRC-64/XZ.
_CRC64 = anycrc.Model("CRC64-XZ")


@dataclass(frozen=True)
class Blob:
    """Bytes in a file of their own; ``md5`` is in hexadecimal, ``crc`` the CRC64 of ECMA-182."""

    file: Path
    size: int
    md5: str
    crc: int


def receive(directory: Path, chunks: Iterable[memoryview]) -> Blob:
    """Store what arrives in a new file below ``directory``; runs of zeros take no room. Removes it when that fails."""
    file = directory / uuid.uuid4().hex
    md5 = hashlib.md5(usedforsecurity=False)
    crc, size = 0, 0
    try:
        with file.open("wb") as stream:
            for chunk in chunks:
                md5.update(chunk)
                crc = _CRC64.calc(chunk, crc)
                size += len(chunk)
                if chunk == _ZEROS[: len(chunk)]:
                    stream.seek(len(chunk), os.SEEK_CUR)
                else:
                    stream.write(chunk)
            stream.truncate(size)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return Blob(file, size, md5.hexdigest(), crc)


def combined_crc(blobs: Sequence[Blob]) -> int:
    """The CRC of the blobs one after the other."""
    crc = blobs[0].crc
    for blob in blobs[1:]:
        crc = _CRC64.combine(crc, blob.crc, blob.size)
    return int(crc)


def read(blobs: Sequence[Blob], start: int, length: int) -> Iterator[bytes]:
    """``length`` bytes from offset ``start`` of the blobs one after the other, in pieces of at most 1 MiB."""
    for blob in blobs:
        if length <= 0:
            return
        if start >= blob.size:
            start -= blob.size
            continue
        with blob.file.open("rb") as stream:
            stream.seek(start)
            left = min(length, blob.size - start)
            while left:
                piece = stream.read(min(CHUNK, left))
                if not piece:
                    raise EOFError(f"{blob.file} ends early")
                left -= len(piece)
                length -= len(piece)
                yield piece
        start = 0
