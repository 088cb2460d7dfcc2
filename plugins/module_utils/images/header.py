# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an image file says about itself in its own header, whatever it is called."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..findings import refuse


class Malformed(Exception):
    """The reason, for people, why a header cannot be what its signature says."""


class Bytes(Protocol):
    """Something of a known size, in bytes, to read from. A read beyond its end is short."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class Header:
    """What the header says; sizes are bytes.

    ``backing`` names the file without which this one is only the difference, ``parts`` are further files that hold the
    data, ``least_size`` is what the file must have at least, and ``problem`` says why the image cannot be whole.
    """

    format: str
    variant: str = ""
    virtual_size: int | None = None
    least_size: int = 0
    backing: str = ""
    parts: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    encrypted: bool = False
    dirty: bool = False
    compression: str = ""
    problem: str = ""

    def record(self) -> dict[str, Any]:
        """The JSON form that modules return."""
        return {
            "format": self.format,
            "variant": self.variant,
            "virtual_size": self.virtual_size,
            "backing_file": self.backing,
            "parts": list(self.parts),
            "snapshots": list(self.snapshots),
            "encrypted": self.encrypted,
        }


class ImageFile:
    """A regular file that is open for reading. Raises Refusal IMAGE_UNREADABLE."""

    def __init__(self, path: str) -> None:
        try:
            # A named pipe would wait for a writer.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise refuse(
                "IMAGE_UNREADABLE",
                path,
                f"The image cannot be read: {error.strerror}.",
                "Check path and its permissions.",
            ) from error
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise refuse(
                "IMAGE_UNREADABLE",
                path,
                "This is not a regular file.",
                "Name an image file; export a disk to a file first.",
            )
        self.path = Path(path)
        self.size = status.st_size
        # st_blocks counts units of 512 bytes: stat(2).
        self.allocated = status.st_blocks * 512

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        return os.pread(self.fd, length, offset)

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.fd)


def unpacked(data: Bytes, offset: int, layout: str) -> tuple[Any, ...]:
    """The fields at *offset* by *layout*, as struct has it. Raises Malformed when the file ends before."""
    size = struct.calcsize(layout)
    raw = data.read(offset, size)
    if len(raw) < size:
        raise Malformed(f"it ends at byte {offset + len(raw)}, inside of its own header")
    return struct.unpack(layout, raw)


def text_of(raw: bytes) -> str:
    """A name that a header holds, up to its first zero byte."""
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
