# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu-img and qemu-nbd, told exactly which file to open and how: they never guess a format nor follow a reference.

An image is data from somebody else. Probing would let it choose its own format, and a backing file, an external data
file or an extent would make the programs read any file of this host. So the driver is always named, backing files are
switched off, and images whose header names other files are refused before the programs see them.
"""

from __future__ import annotations

import ctypes
import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..findings import Refusal, refuse
from .header import Header, ImageFile
from .recognise import QEMU_DRIVERS, recognise

# Far more than a sound image needs; a malicious one may not take the host's memory.
MEMORY = 4 << 30
# include/uapi/linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True)
class Consistency:
    """What ``qemu-img check`` says: ``checked`` is False for formats without a check, with the reason in ``reason``."""

    checked: bool
    ok: bool = True
    errors: int = 0
    leaks: int = 0
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """The JSON form that modules return."""
        return dict(vars(self))


class QemuFailed(Exception):
    """One of the programs ended with an error; ``said`` is the end of its output."""

    def __init__(self, program: str, status: int, said: str) -> None:
        super().__init__(f"{program} ended with status {status}: {said}")
        self.status = status
        self.said = said


def tool(name: str) -> str:
    """The path of one of QEMU's programs. Raises Refusal QEMU_IMG_MISSING."""
    found = shutil.which(name, path=ENVIRONMENT["PATH"])
    if found is None:
        raise refuse(
            "QEMU_IMG_MISSING",
            name,
            f"{name} is not installed on the machine that has the image.",
            "Install it: the package is qemu-utils on Debian and Ubuntu, qemu-img on RHEL and its relatives, "
            "qemu-tools on SUSE.",
        )
    return found


def opened_as(path: Path, header: Header) -> str:
    """The words for an image that make QEMU open this file with this driver and nothing else.

    Raises Refusal for a format without a driver, and for a header that names other files.
    """
    if header.format not in QEMU_DRIVERS:
        raise refuse(
            "IMAGE_FORMAT_UNSUPPORTED", path.name, f"This is {header.format}, not a disk image.", "Give a disk image."
        )
    if header.backing or (header.parts and header.format != "vmdk"):
        raise _names_others(path, header)
    options: dict[str, Any] = {
        "driver": QEMU_DRIVERS[header.format],
        "file": {"driver": "file", "filename": str(path.absolute())},
    }
    if header.format in ("qcow2", "vmdk"):
        options["backing"] = None
    if header.format == "vhd":
        # The size in the footer, as the importers take it, and not the one that its geometry comes to.
        options["force_size_calc"] = "current_size"
    if header.parts:
        check_parts(path, header)
    return "json:" + json.dumps(options)


def _names_others(path: Path, header: Header) -> Refusal:
    return refuse(
        "IMAGE_BACKING_FILE",
        path.name,
        f"The image is only the difference to another file ({header.backing or ', '.join(header.parts)}).",
        "Merge the snapshots on the old platform, or convert the whole chain there, and export one image.",
    )


def check_parts(path: Path, header: Header) -> None:
    """Refuse parts that are not plain files beside the image: a descriptor may name any file of the host."""
    for name in header.parts:
        part = path.parent / name
        if not name or "/" in name or ":" in name or name in (".", "..", path.name) or part.is_symlink():
            raise refuse(
                "IMAGE_EXTERNAL_DATA",
                path.name,
                f"The image says that its data lies in {name!r}, which is not a plain file beside it.",
                "Do not use an image from a source that you do not trust. If it is your own, export it as one file.",
                file=name,
            )
        if not part.is_file():
            raise refuse(
                "IMAGE_PART_MISSING",
                path.name,
                f"The data of the image lies in {name}, which is not there.",
                f"Put {name} beside {path.name}, or export the disk as one file.",
                file=name,
            )
        with ImageFile(str(part)) as file:
            inner = recognise(file)
        if inner.format == "vmdk" and (inner.problem or inner.parts or inner.backing):
            # QEMU takes a part without a capacity for another descriptor, and follows what that names.
            raise refuse(
                "IMAGE_EXTERNAL_DATA",
                path.name,
                f"{name}, which holds its data, is no part of a disk: {inner.problem or 'it names other files'}.",
                "Do not use an image from a source that you do not trust. If it is your own, export it as one file.",
                file=name,
            )


def ends_with_us() -> None:
    """To be called in the child before it starts: it is killed when its parent ends, however that ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limited(cpu_seconds: int | None = None) -> None:
    """To be called in the child before it starts: bounds what a malicious image can cost, and ends it with us."""
    ends_with_us()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))


def run(words: Sequence[str], *, timeout: float, cpu_seconds: int | None = None, accept: Sequence[int] = (0,)) -> str:
    """The output of one of the programs. Raises QemuFailed, also when its time is over."""
    try:
        done = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
            env=ENVIRONMENT,
            preexec_fn=lambda: limited(cpu_seconds),
        )
    except subprocess.TimeoutExpired as error:
        raise QemuFailed(Path(words[0]).name, -1, f"nothing after {timeout:.0f} s") from error
    if done.returncode not in accept:
        raise QemuFailed(Path(words[0]).name, done.returncode, without_spec((done.stderr or done.stdout)[-1000:]))
    return done.stdout


def without_spec(said: str) -> str:
    """QEMU repeats the words that an image was opened with; they say nothing to people."""
    lines = [line.partition("': ")[2] or line if "json:" in line else line for line in said.strip().splitlines()]
    return "; ".join(dict.fromkeys(line.removeprefix("qemu-img: ") for line in lines))


def check(path: Path, header: Header, timeout: float) -> Consistency:
    """Whether the image's own tables are consistent: qemu-img(1), check. Raises Refusal, never QemuFailed."""
    if header.format not in ("qcow2", "vmdk", "vdi", "vhdx") or header.parts or header.variant == "fixed":
        return Consistency(False, reason=f"QEMU has no check for {header.format} {header.variant}".rstrip())
    words = [tool("qemu-img"), "check", "--force-share", "--output=json", opened_as(path, header)]
    try:
        answer: Mapping[str, Any] = json.loads(run(words, timeout=timeout, accept=(0, 2, 3)))
    except QemuFailed as error:
        if error.status == 63:
            return Consistency(False, reason=f"QEMU has no check for {header.format} {header.variant}".rstrip())
        return Consistency(True, False, reason=error.said)
    errors = int(answer.get("corruptions", 0)) + int(answer.get("check-errors", 0))
    return Consistency(True, not errors, errors, int(answer.get("leaks", 0)))


def extents(path: Path, header: Header, timeout: float) -> list[tuple[int, int]]:
    """Offset and length, in bytes, of what holds data that is not known to be zero. Raises QemuFailed."""
    words = [tool("qemu-img"), "map", "--force-share", "--output=json", opened_as(path, header)]
    found = json.loads(run(words, timeout=timeout))
    return [(int(each["start"]), int(each["length"])) for each in found if each["data"] and not each["zero"]]
