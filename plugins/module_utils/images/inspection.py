# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One image looked at, from its first byte to the drivers in its initramfs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..findings import Finding, Refusal, by_severity
from . import disk as disks
from . import estimate, guest, judgement, nbd, qemu, sampling
from .filesystems import Damaged
from .header import Header, ImageFile
from .judgement import Look, Wishes
from .recognise import name_fits, recognise

_BROKEN = ("IMAGE_CORRUPT", "IMAGE_TRUNCATED")


@dataclass(frozen=True)
class Order:
    """What to look at. ``agent`` is the agent's zipapp or directory; times in seconds."""

    agent: str
    check: bool = True
    content: bool = True
    check_timeout: float = 3600
    content_timeout: float = 300


@dataclass(frozen=True)
class Inspected:
    """What was seen; ``failure`` is why it was not all of it."""

    look: Look
    partitions: list[dict[str, Any]] = field(default_factory=list)
    sample: estimate.Sample | None = None
    failure: Finding | None = None


class TooSlow(Damaged):
    """Somebody else's filesystem may be made to keep its reader busy for ever."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the main thread when the block takes longer."""

    def ring(_number: int, _frame: object) -> None:
        raise TooSlow(f"that took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def inspect(path: str, order: Order, wishes: Wishes, assumptions: estimate.Assumptions) -> dict[str, Any]:
    """The result of image_info. Raises Refusal when the file or a program that is needed is not there."""
    with ImageFile(path) as file:
        found = look_at(file, order)
        look = found.look
        findings = judgement.judge(look, wishes)
        if found.failure is not None:
            findings = by_severity([*findings, found.failure])
        forecast = estimate.estimate(look.size + parts_size(file, look.header), found.sample, assumptions)
        return {
            "image": {
                **look.header.record(),
                "path": str(file.path),
                "name": look.name,
                "file_size": file.size,
                "allocated_size": file.allocated,
                "extension_fits": name_fits(look.name, look.header),
            },
            "consistency": {**look.consistency.record(), "ok": not any(each.code in _BROKEN for each in findings)},
            "partition_table": look.table or None,
            "partitions": found.partitions,
            "firmware": list(look.firmware),
            **_about_guest(look),
            "import_parameters": judgement.import_parameters(look),
            "estimate": forecast,
            "estimate_text": estimate.in_words(forecast),
            "findings": [finding.record() for finding in findings],
            "ok": not any(finding.blocks for finding in findings),
        }


def parts_size(file: ImageFile, header: Header) -> int:
    """The bytes of the files beside the image that hold its data, as far as they are there."""
    parts = [file.path.parent / name for name in header.parts if "/" not in name]
    return sum(part.stat().st_size for part in parts if part.is_file())


def unreadable(path: str, refusal: Refusal) -> dict[str, Any]:
    """The result for a file that cannot even be opened."""
    return {"image": {"path": path}, "findings": [refusal.finding.record()], "ok": False}


def _about_guest(look: Look) -> dict[str, Any]:
    found = look.guest or guest.Guest()
    return {
        "root": found.root,
        "filesystems": found.filesystems,
        "system": found.system,
        "kernels": found.kernels,
        "virtio": found.virtio,
        "cloud_init": found.cloud_init,
        "unread": found.unread,
    }


def look_at(file: ImageFile, order: Order) -> Inspected:
    """Everything that the findings and the estimate need. Raises Refusal when a program is missing."""
    header = recognise(file)
    found = Inspected(Look(file.path.name, file.size, header, qemu.Consistency(False, reason="it was not asked for")))
    if header.virtual_size is None or header.backing or header.problem or header.encrypted or not file.size:
        return found
    if header.variant == "extent" or (header.format == "qcow2" and header.parts):
        return found
    try:
        if header.parts:
            qemu.check_parts(file.path, header)
        if order.check:
            found = replace(
                found, look=replace(found.look, consistency=qemu.check(file.path, header, order.check_timeout))
            )
        found = _with_content(file, found, order)
        return replace(found, sample=sample_of(file, header)) if found.look.consistency.ok else found
    except Refusal as refusal:
        if refusal.finding.code == "QEMU_IMG_MISSING" and header.format != "raw":
            raise
        return replace(found, failure=refusal.finding)


def _with_content(file: ImageFile, found: Inspected, order: Order) -> Inspected:
    """The same with what is on the disk."""
    if not order.content:
        return found
    look = found.look
    with disks.with_agent(order.agent):
        from fleetlift_agent.usedblocks.partitions import BeyondDisk
        from fleetlift_agent.usedblocks.volume import ReadInFull

        try:
            with disks.opened(file, look.header) as disk, deadline(order.content_timeout):
                copy = disks.contents(disk)
                look = replace(
                    look,
                    table=disks.table_name(copy, disk),
                    firmware=tuple(disks.starts_with(copy, disk)),
                    partitions=len(copy.volumes) if copy.table else 0,
                    beyond_end=disks.missing_end(disk),
                    has_content=any(volume.content.kind for volume in copy.volumes),
                )
                look = replace(look, guest=guest.examine(disk, copy))
                return replace(found, look=look, partitions=disks.partitions(copy))
        except BeyondDisk as error:
            look = replace(look, beyond_end=error.missing)
        except ReadInFull as error:
            look = replace(look, table_problem=str(error))
        except (nbd.DiskUnreadable, Damaged, OSError) as error:
            look = replace(look, unread=str(error))
    return replace(found, look=look)


def sample_of(file: ImageFile, header: Header) -> estimate.Sample | None:
    """Some clusters of the disk, compressed; None where they cannot be read."""
    try:
        with disks.opened(file, header) as disk:
            return sampling.take(disk, qemu.extents(file.path, header, timeout=600))
    except (nbd.DiskUnreadable, qemu.QemuFailed, OSError):
        return None
