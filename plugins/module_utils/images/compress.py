# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An image as a compressed qcow2, when that ends sooner than uploading it as it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..findings import Finding, Refusal, refuse
from ..upload_progress import UploadProgress
from . import conversion, judgement, qemu
from .conversion import Target
from .estimate import Assumptions, estimate, in_words
from .header import Header, ImageFile
from .inspection import Inspected, Order, look_at, parts_size
from .recognise import recognise

# Of the findings about a file, those that converting is the remedy for.
CURED = ("IMAGE_FORMAT_UNSUPPORTED", "IMAGE_SPLIT", "IMAGE_TOO_LARGE")


@dataclass(frozen=True)
class Wish:
    """What to make: *when* is always, pays or never; *compression* zlib or zstd; *timeout* in seconds."""

    path: str
    dest: str
    when: str = "pays"
    compression: str = "zlib"
    timeout: float = 86400
    check_mode: bool = False


def convertible(found: Inspected) -> list[Finding]:
    """The blockers that converting removes. Raises Refusal for the first one that it does not."""
    if found.failure is not None:
        raise Refusal(found.failure)
    about_file = judgement.judge(found.look, judgement.Wishes(purpose="data"))
    blockers = [finding for finding in about_file if finding.blocks]
    cured = [each for each in blockers if each.code in CURED and _is_cured(each, found)]
    for each in blockers:
        if each not in cured and each.code != "IMAGE_DISK_TOO_LARGE":
            raise Refusal(each)
    return cured


def _is_cured(finding: Finding, found: Inspected) -> bool:
    header = found.look.header
    if finding.code == "IMAGE_FORMAT_UNSUPPORTED":
        return header.format in judgement.CONVERTIBLE
    return finding.code != "IMAGE_SPLIT" or bool(header.parts)


def compress(wish: Wish, agent: str, assumptions: Assumptions, progress: UploadProgress) -> dict[str, Any]:
    """Do it when it is to be done; the module's result. Raises Refusal; nothing is left under the final name then."""
    started = time.monotonic()
    final = Path(wish.dest).absolute()
    with ImageFile(wish.path) as file:
        check_place(file, final)
        found = look_at(file, Order(agent, content=False))
        cured = convertible(found)
        forecast = estimate(file.size + parts_size(file, found.look.header), found.sample, assumptions)
        result: dict[str, Any] = {
            "changed": False,
            "path": str(file.path.absolute()),
            "converted": False,
            "verified": False,
            "reason": "",
            "source_size": file.size,
            "size": file.size,
            "estimate": forecast,
            "estimate_text": in_words(forecast),
        }
        wanted, result["reason"] = _decision(wish.when, cured, forecast)
        if not wanted:
            return result
        source = qemu.opened_as(file.path, found.look.header)
        progress.announce(result["estimate_text"])
        progress.resize(found.look.header.virtual_size or 0)
        if _is_there(final, source, wish, progress):
            done = {"path": str(final), "converted": True, "verified": True, "size": final.stat().st_size}
            return {**result, **done, "reason": "it is there already, with the same content"}
        expected = found.sample.compressed if found.sample is not None else found.look.header.virtual_size or 0
        conversion.check_space(final.parent, expected + expected // 10, "compressed image")
        if wish.check_mode:
            return {**result, "changed": True, "path": str(final), "converted": True}
        size = _written(file, source, final, wish, progress)
        seconds = time.monotonic() - started
        return {
            **result,
            "changed": True,
            "path": str(final),
            "converted": True,
            "verified": True,
            "size": size,
            "seconds": round(seconds, 1),
            "rate": round((found.look.header.virtual_size or 0) / seconds) if seconds else 0,
        }


def check_place(file: ImageFile, final: Path) -> None:
    """Refuse to write over the image itself, or over what is no plain file."""
    if final.exists() and final.samefile(file.path):
        raise refuse(
            "IMAGE_DEST_IS_SOURCE",
            str(final),
            "dest is the image itself, which is never changed.",
            "Give another name.",
        )
    if not final.parent.is_dir():
        raise refuse(
            "IMAGE_DIRECTORY",
            str(final),
            f"There is no directory {final.parent}.",
            "Create it, or give another place for the new image.",
        )
    if final.is_dir() or final.is_symlink():
        raise refuse("IMAGE_DIRECTORY", str(final), "dest is not a plain file.", "Give the name of the file to write.")


def _decision(when: str, cured: list[Finding], forecast: dict[str, Any]) -> tuple[bool, str]:
    """Whether to convert, and why or why not."""
    if when == "never":
        return False, "it was not to be converted"
    if when == "always":
        return True, "it was to be converted in any case"
    if cured:
        return True, f"it cannot be imported as it is: {cured[0].cause}"
    if forecast["compression_pays"]:
        return True, "converting and uploading takes less time than uploading it as it is"
    if forecast["compressed"] is None:
        return False, "what compressing it would save could not be found out"
    return False, "uploading it as it is takes less time than converting it first"


def _is_there(final: Path, source: str, wish: Wish, progress: UploadProgress) -> bool:
    """Whether the file that is wanted is there: whole, in this format, and with this content."""
    if not final.is_file():
        return False
    with ImageFile(str(final)) as file:
        header = recognise(file)
        if header.format != "qcow2" or header.compression != wish.compression or header.backing or header.parts:
            return False
        if not qemu.check(final, header, wish.timeout).ok:
            return False
        try:
            progress.enter("comparing")
            return conversion.is_same(source, qemu.opened_as(final, header), progress.share, wish.timeout)
        except qemu.QemuFailed:
            return False


def _written(file: ImageFile, source: str, final: Path, wish: Wish, progress: UploadProgress) -> int:
    """Write the image and compare it; its size in bytes."""
    with conversion.partial(final) as place:
        progress.enter("converting")
        conversion.convert(source, place, Target("qcow2", wish.compression), progress.share, wish.timeout)
        progress.enter("comparing")
        verify(source, place, Header("qcow2"), progress, wish.timeout)
        size = place.stat().st_size
        conversion.put(place, final, file.path)
        progress.enter("ready")
    return size


def verify(source: str, place: Path, made: Header, progress: UploadProgress, timeout: float) -> None:
    """Compare the new image with its source. Raises Refusal IMAGE_DIFFERS.

    *made* says what was written: a raw disk may begin with whatever its guest has put there.
    """
    try:
        same = conversion.is_same(source, qemu.opened_as(place, made), progress.share, timeout)
        said = "their disks differ"
    except qemu.QemuFailed as error:
        same, said = False, error.said
    if not same:
        raise refuse(
            "IMAGE_DIFFERS",
            place.name,
            f"The new image is not the same as its source: {said}. It was removed.",
            "Make sure that nothing writes to the source meanwhile, and look at the kernel log for errors of the disk.",
        )
