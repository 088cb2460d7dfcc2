# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writing an image in another format: beside its final name, compared with its source, and only then in its place."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..findings import refuse
from ..progress import size as readable
from . import qemu

_PERCENT = re.compile(rb"\(\s*(\d+(?:\.\d+)?)/100%\)")
# struct flock of fcntl(2): type, whence, start, length, process.
_FLOCK = "hhqqi4x"
# Tables and rounding on top of what is expected to be written.
_SPARE = 64 << 20

# Is called with the share that is done, 0 to 1.
Report = Callable[[float], None]


@dataclass(frozen=True)
class Target:
    """What to write: *driver* is QEMU's name of the format, *compression* empty, zlib or zstd."""

    driver: str
    compression: str = ""

    def words(self) -> list[str]:
        """The options of qemu-img convert."""
        chosen = ["-O", self.driver]
        if self.compression:
            # zlib is what every version of QEMU reads; the other needs 5.1, and what the cloud runs is not documented.
            chosen += ["-c", "-o", f"compression_type={self.compression}"]
        return chosen


@contextmanager
def partial(final: Path) -> Iterator[Path]:
    """An empty file beside *final* to write into, held against other runs, and gone at the end.

    One that a killed run left behind is taken over. Raises Refusal IMAGE_BUSY, IMAGE_DIRECTORY.
    """
    place = final.with_name(f".{final.name}.fleetlift-partial")
    try:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise refuse(
            "IMAGE_DIRECTORY",
            str(final),
            f"Nothing can be written to {final.parent}: {error.strerror}.",
            "Create the directory, or choose another one.",
        ) from error
    try:
        try:
            # Not flock(2), which the agent takes, and not the bytes from 100 on, which QEMU takes.
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except (BlockingIOError, PermissionError) as error:
            raise refuse(
                "IMAGE_BUSY",
                str(final),
                "Another run is writing this image.",
                "Wait until it has ended and run again.",
            ) from error
        os.ftruncate(descriptor, 0)
        try:
            yield place
        finally:
            # It may have been renamed, and another run may already write the next one.
            if place.exists() and os.path.samestat(place.stat(), os.fstat(descriptor)):
                place.unlink()
    finally:
        os.close(descriptor)


def check_space(directory: Path, needed: int, what: str) -> None:
    """Refuse when *directory* has no room for so many bytes."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed + _SPARE:
        raise refuse(
            "IMAGE_NO_SPACE",
            str(directory),
            f"The {what} is expected to take {readable(needed)}, and {readable(free)} are free.",
            "Free some space, or choose another directory.",
            needed=needed + _SPARE,
            free=free,
        )


def convert(source: str, place: Path, target: Target, report: Report, timeout: float) -> None:
    """Write the image *source*, as :func:`qemu.opened_as` names it, to *place*. Raises Refusal IMAGE_CONVERT_FAILED."""
    words = [qemu.tool("qemu-img"), "convert", "-p", *target.words(), source, str(place)]
    try:
        _followed(words, report, timeout)
    except qemu.QemuFailed as error:
        full = "No space left" in error.said
        raise refuse(
            "IMAGE_NO_SPACE" if full else "IMAGE_CONVERT_FAILED",
            place.name,
            "The disk became full while the image was written."
            if full
            else f"qemu-img cannot convert it: {error.said}",
            "Free some space, or choose another directory."
            if full
            else "If it cannot be read, export the image again; else look at what qemu-img says.",
            output=error.said,
        ) from error
    sync(place)


def sync(place: Path) -> None:
    """Have the file's content on its disk."""
    with place.open("rb+") as file:
        os.fsync(file.fileno())


def is_same(one: str, other: str, report: Report, timeout: float) -> bool:
    """Whether the disks in two images have the same content. Raises QemuFailed."""
    words = [qemu.tool("qemu-img"), "compare", "-p", "--force-share", one, other]
    return _followed(words, report, timeout, accept=(0, 1)) == 0


def put(place: Path, final: Path, like: Path) -> None:
    """Give the finished file its name, at once and durably, with the permissions of *like*."""
    os.chmod(place, stat.S_IMODE(like.stat().st_mode))
    os.replace(place, final)
    descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _followed(words: Sequence[str], report: Report, timeout: float, accept: Sequence[int] = (0,)) -> int:
    """Run one of QEMU's programs and pass on how far it says it is; its status. Raises QemuFailed."""
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        list(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=qemu.ENVIRONMENT,
        preexec_fn=qemu.limited,
    ) as program:
        try:
            said = _listened(program.stdout, report, deadline) if program.stdout else ""
        except BaseException:
            program.send_signal(signal.SIGKILL)
            raise
    if program.returncode not in accept:
        raise qemu.QemuFailed(Path(words[0]).name, program.returncode, qemu.without_spec(said))
    return program.returncode


def _listened(output: IO[bytes], report: Report, deadline: float) -> str:
    """Pass the progress on until the program ends; the end of what else it said. Raises QemuFailed when it is late."""
    rest = b""
    while piece := os.read(output.fileno(), 1 << 16):
        rest += piece
        shares = _PERCENT.findall(rest)
        if shares:
            report(float(shares[-1]) / 100)
            rest = _PERCENT.sub(b"", rest)
        rest = rest[-4096:]
        if time.monotonic() > deadline:
            raise qemu.QemuFailed("qemu-img", -1, "its time is over")
    return rest.replace(b"\r", b"\n").decode("utf-8", "replace").strip()
