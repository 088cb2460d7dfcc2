# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why an import failed: the vendor's codes and messages, and which of them the image itself makes likely.

Codes: the table of asynchronous failures of the vendor's page 213/4945. Messages: page 213/32395 and the FAQ of the
console's offline migration. Where the API tells the code is not documented: it shows ImageState IMPORTFAILED only, and
the code comes by the Message Center.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cloud.errors import Meaning
from .findings import Finding

_CORRUPT = Meaning(
    "IMAGE_CORRUPT",
    "The image is damaged, or it is no disk with an MBR and a Linux system in a partition.",
    "Check the file with image_info and compare it with what was exported; export and upload it again. A GPT needs"
    " boot_mode UEFI, where the site knows that.",
)
_TOO_SMALL = Meaning(
    "TARGET_DISK_SMALLER",
    "The target's disk is smaller than the disk in the image, or than the image file.",
    "Give the target a system or data disk of at least the image's virtual size, and run again.",
)
_METADATA = Meaning(
    "IMAGE_CORRUPT",
    "The image is damaged, or its format is none of qcow2, vhd, vmdk and raw.",
    "Check it with image_info; export it again in one of these formats, upload it and run again.",
)
_UNREADABLE = Meaning(
    "IMAGE_URL_REFUSED",
    "The cloud could not read the object: its link has expired or was used before, or it is in another region.",
    "Run again, which makes a new link; raise url_life for a large image. The bucket has to be in the same region.",
)
_SUPPORT = Meaning(
    "IMAGE_IMPORT_FAILED",
    "The import failed inside the cloud.",
    "Run again once; if it fails again, open a ticket with the vendor's support and attach the evidence file.",
)

CODES: dict[str, Meaning] = {
    "InvalidUrl": _UNREADABLE,
    "InvalidFormatSize": Meaning(
        "IMAGE_FORMAT_UNSUPPORTED",
        "The image's format or size is not accepted: it is none of qcow2, vhd, vmdk and raw, refers to another file (a"
        " snapshot), is larger than 50 GB or holds a disk larger than 500 GB.",
        "Merge snapshots and export the whole disk, convert it to compressed qcow2 (image_convert), or migrate online.",
    ),
    "VirtioNotInstall": Meaning(
        "IMAGE_NO_VIRTIO",
        "The image's kernel or initramfs has no virtio drivers.",
        "Adapt it with image_prepare and import the result.",
    ),
    "PartitionNotPresent": _CORRUPT,
    "CloudInitNotInstalled": Meaning(
        "IMAGE_NO_CLOUD_INIT",
        "cloud-init is not installed in the image.",
        "Import it with force, after image_prepare has set its network to DHCP; or install cloud-init.",
    ),
    "RootPartitionNotFound": Meaning(
        "IMAGE_NO_ROOT",
        "No partition of the image holds a Linux root filesystem.",
        "Export the system disk with the boot sector, the root and any separate /boot on it; a data disk cannot be"
        " imported as a system.",
    ),
    "InternalError": _SUPPORT,
}

# What the console's messages say, in a few words of each, in the languages in which the vendor publishes them.
MESSAGES: tuple[tuple[tuple[str, ...], Meaning], ...] = (
    (("이미지 파일 검증 실패", "verification of the image file failed", "image file verification failed"), _TOO_SMALL),
    (("storage space of the target device is too small", "镜像文件校验失败"), _TOO_SMALL),
    (("메타데이터 획득 실패", "obtain the metadata of the image file", "获取镜像文件元数据失败"), _METADATA),
    (("image decompression failed", "镜像解压失败"), _METADATA),
    (("access the cos image file", "访问cos镜像文件失败"), _UNREADABLE),
    (("migrate to the destination disk",), _TOO_SMALL),
    (("작업 시간 초과", "시스템 오류", "기타 원인", "task timeout", "system error", "other reasons"), _SUPPORT),
)


def meaning_of_notice(notice: str) -> Meaning | None:
    """What a notice's code or text means, None when it is none of the documented ones."""
    for code, meaning in CODES.items():
        if code in notice:
            return meaning
    lowered = notice.lower()
    return next((meaning for texts, meaning in MESSAGES if any(text in lowered for text in texts)), None)


def likely_code(facts: Mapping[str, Any], *, force: bool) -> str | None:
    """The first code that what is known of the image makes likely; *facts* is what ``image_info`` returned."""
    consistency = facts.get("consistency") or {}
    checks = (
        ("InvalidFormatSize", bool((facts.get("image") or {}).get("backing_file"))),
        ("PartitionNotPresent", consistency.get("ok") is False or facts.get("partition_table") in ("none", "gpt")),
        ("RootPartitionNotFound", "root" in facts and facts["root"] is None and not facts.get("unread")),
        ("VirtioNotInstall", facts.get("virtio") is False),
        ("CloudInitNotInstalled", facts.get("cloud_init") is False and not force),
    )
    return next((code for code, holds in checks if holds), None)


def failed_import(
    subject: str, *, notice: str | None, facts: Mapping[str, Any], force: bool, evidence: Mapping[str, Any]
) -> Finding:
    """The finding about an import that ended as IMPORTFAILED: by the notice, by the image, or all that may be."""
    meaning = meaning_of_notice(notice) if notice else None
    if meaning is not None:
        code, cause, action = meaning.code, meaning.cause, meaning.action
        return Finding(code, "blocker", subject, cause, action, {**evidence, "notice": notice})
    likely = likely_code(facts, force=force)
    possible = [likely] if likely else list(CODES)
    where = "The API does not tell why; the notice in the console's Message Center has the code."
    if likely:
        cause = f"The cloud rejected the image. What is known of it points to {likely}: {CODES[likely].cause}"
        return Finding(
            CODES[likely].code, "blocker", subject, cause, CODES[likely].action, {**evidence, "code": likely}
        )
    causes = {code: f"{CODES[code].cause} {CODES[code].action}" for code in possible}
    return Finding(
        "IMAGE_IMPORT_FAILED",
        "blocker",
        subject,
        f"The cloud rejected the image. {where}",
        "Look the code up in the evidence, or give it to the next run as notice; without one, give the evidence file to"
        " the vendor's support.",
        {**evidence, "possible": causes},
    )
