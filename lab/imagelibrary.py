# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imported images: fetched from COS, judged by what is in them, kept as raw disks that instances are made of.

Nothing of a user's file is believed: its format is the one that its bytes show, a file that refers to another one is
refused before anything opens that, and no program of the image is run. The codes are those of the vendor's page
213/4945.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from lab import loopdisk
from lab.bootdisk import Volume, looped
from lab.cloud.hypervisor import ImageOrder, ImageRejected
from lab.command import run
from lab.cos.fetch import FetchError, fetch
from lab.errors import LabError
from lab.imagecontent import Content, inspect, mounted_volume
from lab.namespaces import in_private_mounts

GIB = 1024**3
# Vendor's page 213/4945: the size of the file, and of the disk that is in it.
LARGEST_FILE = 50 * GIB
LARGEST_DISK = 500 * GIB
FORMATS = ("qcow2", "vpc", "vmdk", "raw")
CHECKED = ("qcow2", "vmdk")
# qemu-img check: 2 is corruption, 3 only leaked clusters, 63 that the format cannot be checked.
CORRUPT = 2


class ImageLibrary:
    """The images of one lab, below a directory of their own. ``connect`` returns a connection to COS."""

    def __init__(self, directory: Path, connect: Callable[[], socket.socket]) -> None:
        self._directory = directory
        self._connect = connect

    def has(self, image_id: str) -> bool:
        """Whether this image was imported."""
        return self._disk(image_id, 0).exists()

    def import_image(self, order: ImageOrder) -> tuple[int, ...]:
        """Fetch, judge and convert the disks of an image; returns their sizes in bytes. Raises ImageRejected."""
        place = self._directory / order.image_id
        place.mkdir(mode=0o700, parents=True)
        try:
            sizes = tuple(self._take(url, self._disk(order.image_id, number)) for number, url in enumerate(order.urls))
            content = in_private_mounts(lambda: inspect(self._disk(order.image_id, 0), place / "mnt"))
            check(content, order)
        except BaseException:
            shutil.rmtree(place)
            raise
        return sizes

    def delete(self, image_id: str) -> None:
        """Forget an image."""
        if (self._directory / image_id).exists():
            shutil.rmtree(self._directory / image_id)

    def put(self, image_id: str, number: int, file: Path, size: int) -> None:
        """Make ``file`` a disk of ``size`` bytes that begins with a disk of the image, byte for byte."""
        loopdisk.copy_sparse(self._disk(image_id, number), file)
        with file.open("r+b") as stream:
            stream.truncate(size)

    def put_root(self, image_id: str, file: Path, size: int, scratch: Path) -> None:
        """Make ``file`` a disk of ``size`` bytes with the image's root filesystem on it and no partitions.

        What its fstab mounts from other partitions of the image is copied into it.
        """
        disk = self._disk(image_id, 0)
        content = inspect(disk, scratch)
        if content.root is None:
            raise LabError(f"{image_id} has no root filesystem that this host can read")
        file.unlink(missing_ok=True)
        copy_part(content.root, file)
        with file.open("r+b") as stream:
            stream.truncate(max(size, content.root.size))
        with loopdisk.mounted(file, scratch) as root:
            merge(root, disk, content, scratch.with_name(f"{scratch.name}-part"))
        scratch.rmdir()

    def _disk(self, image_id: str, number: int) -> Path:
        return self._directory / image_id / f"disk-{number}.raw"

    def _take(self, url: str, disk: Path) -> int:
        download = disk.with_suffix(".download")
        try:
            size = fetch(url, download, self._connect)
        except FetchError as error:
            # A refusal's text repeats the signature.
            said = f"COS answered with status {error.status}." if error.status else str(error)
            raise ImageRejected("InvalidUrl", said) from error
        if size > LARGEST_FILE:
            raise ImageRejected("InvalidFormatSize", f"The file has {size} bytes.")
        convert(download, disk)
        download.unlink()
        return disk.stat().st_size


def convert(file: Path, disk: Path) -> None:
    """Make the raw ``disk`` of the image in ``file``, whatever it is called. Raises ImageRejected."""
    if opens_others(file):
        raise ImageRejected("InvalidFormatSize", "The image refers to another file.")
    try:
        found = json.loads(run(["qemu-img", "info", "--output=json", str(file)]))
    except LabError as error:
        raise ImageRejected("InvalidFormatSize", f"The file cannot be opened as an image: {error.cause}") from error
    kind = found["format"]
    if kind not in FORMATS:
        raise ImageRejected("InvalidFormatSize", f"The format {kind} is not supported.")
    if refers_to(found):
        raise ImageRejected("InvalidFormatSize", "The image is a snapshot: it refers to another file.")
    if found["virtual-size"] > LARGEST_DISK:
        raise ImageRejected("InvalidFormatSize", f"The disk in the image has {found['virtual-size']} bytes.")
    if kind in CHECKED and is_corrupt(file, kind):
        raise ImageRejected("PartitionNotPresent", "The image is corrupted.")
    try:
        run(["qemu-img", "convert", "-f", kind, "-O", "raw", "-S", "4k", str(file), str(disk)], timeout=7200)
    except LabError as error:
        raise ImageRejected("PartitionNotPresent", f"The image is corrupted: {error.cause}") from error


def opens_others(file: Path) -> bool:
    """Whether ``qemu-img info`` would open another file that this one names: a VMDK descriptor, or a qcow2 data file.

    docs/interop/qcow2.txt of QEMU: bit 2 of the incompatible features at offset 72, since version 3.
    """
    with file.open("rb") as stream:
        head = stream.read(80)
    if head.startswith(b"QFI\xfb"):
        return int.from_bytes(head[4:8], "big") >= 3 and bool(int.from_bytes(head[72:80], "big") & 4)
    return b"Disk DescriptorFile" in head


def refers_to(found: dict[str, object]) -> bool:
    """Whether ``qemu-img info`` shows a file that refers to others: a backing file, a data file, VMDK extents."""
    specific = found.get("format-specific")
    data = specific.get("data", {}) if isinstance(specific, dict) else {}
    extents = [extent.get("filename") for extent in data.get("extents", [])]
    return bool(found.get("backing-filename") or data.get("data-file") or set(extents) - {found.get("filename")})


def is_corrupt(file: Path, kind: str) -> bool:
    """Whether the image's own structures contradict each other."""
    try:
        run(["qemu-img", "check", "-f", kind, str(file)], timeout=7200)
    except LabError as error:
        return f"exit code {CORRUPT}:" in error.cause or "exit code 1:" in error.cause
    return False


def check(content: Content, order: ImageOrder) -> None:
    """Refuse what does not become a CVM, in the order of the vendor's list. Raises ImageRejected."""
    if content.table is None or not content.fits or (content.table == "gpt" and not order.gpt_accepted):
        found = {None: "no partition table", "gpt": "a GPT"}.get(content.table, "partitions beyond its end")
        raise ImageRejected("PartitionNotPresent", f"The disk has {found}.")
    if content.root is None:
        raise ImageRejected("RootPartitionNotFound", "None of its partitions holds a Linux system.")
    if not content.virtio:
        raise ImageRejected("VirtioNotInstall", "The newest kernel has no virtio_blk, built in or in its initramfs.")
    if not content.cloud_init and not order.force:
        raise ImageRejected("CloudInitNotInstalled", "There is no /usr/bin/cloud-init.")


def copy_part(part: Volume, file: Path) -> None:
    """Copy one partition's bytes to the start of ``file``, holes as holes."""
    place = ["iflag=skip_bytes,count_bytes", f"skip={part.start}", f"count={part.size}"]
    run(["dd", f"if={part.file}", f"of={file}", "bs=1M", "conv=sparse,notrunc", *place, "status=none"], timeout=7200)


def merge(root: Path, disk: Path, content: Content, scratch: Path) -> None:
    """Copy what the other partitions hold to where the system below ``root`` mounts them, and forget the mounts."""
    by_uuid = {}
    for volume in content.volumes:
        with looped(volume) as device:
            by_uuid[loopdisk.probe(device).uuid] = volume
    kept = []
    for line in (root / "etc/fstab").read_text(encoding="utf-8").splitlines():
        spec, mount, kind = [*line.split(), "", "", ""][:3]
        part = by_uuid.get(spec.removeprefix("UUID="))
        if mount == "/":
            kept.append(line)
        elif part is not None and kind in ("ext2", "ext3", "ext4", "xfs", "btrfs"):
            with mounted_volume(part, scratch) as tree:
                run(["cp", "-a", f"{tree}/.", str(root / mount.lstrip("/"))])
        elif kind != "vfat" and not spec.startswith("/dev/sr"):
            kept.append(line)
    (root / "etc/fstab").write_text("\n".join(kept) + "\n", encoding="utf-8")
