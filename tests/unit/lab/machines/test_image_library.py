# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Image files of every kind, good and bad, through COS into the library: the documented codes have real causes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from cos_site import BUCKET, CosSite

from lab import loopdisk
from lab.bootdisk import Volume, looped
from lab.cloud.hypervisor import ImageOrder, ImageRejected
from lab.command import run
from lab.imagecontent import mentions
from lab.imagelibrary import ImageLibrary

from .conftest import eventually

MIB = 1024 * 1024
SIZE = 96 * MIB
pytestmark = pytest.mark.root


def make_disk(
    directory: Path,
    name: str = "disk",
    *,
    label: str = "dos",
    virtio: bool = True,
    cloud_init: bool = True,
    system: bool = True,
    home: bool = False,
) -> Path:
    """A raw disk with one partition, or two, and the few files that make a system of it."""
    file = directory / f"{name}.raw"
    loopdisk.create_sparse(file, SIZE)
    lines = [f"label: {label}", "start=2048,size=98304", *(["start=100352,size=40960"] if home else [])]
    run(["sfdisk", "--quiet", str(file)], stdin="\n".join(lines) + "\n")
    volumes = [Volume(file, MIB, 48 * MIB), *([Volume(file, 49 * MIB, 20 * MIB)] if home else [])]
    fstab = ["/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0"]
    for number, volume in reversed(list(enumerate(volumes))):
        with looped(volume) as device:
            run(["mkfs.ext4", "-q", device])
            fstab.insert(0, f"UUID={loopdisk.probe(device).uuid} {'/home' if number else '/'} ext4 defaults 0 1")
            tree = directory / "tree"
            tree.mkdir()
            run(["mount", device, str(tree)])
            try:
                if number:
                    (tree / "alice").write_text("at home\n")
                else:
                    fill(tree, fstab, virtio=virtio, cloud_init=cloud_init, system=system)
            finally:
                loopdisk.unmount(tree)
                tree.rmdir()
    return file


def fill(tree: Path, fstab: list[str], *, virtio: bool, cloud_init: bool, system: bool) -> None:
    for path in (
        "etc",
        "usr/bin",
        "usr/sbin",
        "boot",
        "home",
        "lib/modules/6.1.0-9-amd64",
        "lib/modules/6.1.0-10-amd64",
    ):
        (tree / path).mkdir(parents=True, exist_ok=True)
    (tree / "etc/fstab").write_text("\n".join(fstab) + "\n")
    if system:
        (tree / "usr/sbin/init").symlink_to("/lib/systemd/systemd")
    if cloud_init:
        (tree / "usr/bin/cloud-init").write_text("#!/bin/sh\n")
    driver = b"usr/lib/modules/6.1.0/kernel/drivers/block/virtio_blk.ko"
    # Only the newest kernel counts, and 10 is newer than 9.
    old, new = (b"", driver) if virtio else (driver, b"usr/lib/modules/ata_piix.ko")
    (tree / "boot/initrd.img-6.1.0-9-amd64").write_bytes(zstandard.compress(b"070701" + old))
    (tree / "boot/initrd.img-6.1.0-10-amd64").write_bytes(b"070701" + bytes(42) + zstandard.compress(new))


class Importing:
    """A COS with an image library beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cos = CosSite(directory)
        self.library = ImageLibrary(directory / "images", lambda: socket.create_connection(self.cos.address))
        self.number = 0

    def url(self, file: Path, *, life: int = 600) -> str:
        """Store a file and sign a link to it."""
        client = self.cos.sdk()
        with file.open("rb") as stream:
            client.put_object(BUCKET, stream, file.name)
        client._conf._ip = None
        return str(client.get_presigned_url(BUCKET, file.name, "GET", Expired=life))

    def take(self, *files: Path, **demands: bool | str) -> str:
        """Import files as an image; returns its id."""
        self.number += 1
        order = ImageOrder(f"img-{self.number:08}", tuple(self.url(file) for file in files))
        self.library.import_image(replace(order, **demands))
        return order.image_id

    def code(self, file: Path, **demands: bool | str) -> str:
        """The code with which a file is rejected; nothing of it may stay."""
        with pytest.raises(ImageRejected) as caught:
            self.take(file, **demands)
        assert not list((self.directory / "images").iterdir())
        return caught.value.code


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Importing]:
    monkeypatch.setenv("NO_PROXY", "*")
    site = Importing(tmp_path)
    try:
        yield site
    finally:
        site.cos.close()
        assert not loopdisk.attached_under(tmp_path)


def converted(disk: Path, kind: str, name: str, *options: str) -> Path:
    file = disk.with_name(name)
    run(["qemu-img", "convert", "-f", "raw", "-O", kind, *options, str(disk), str(file)])
    return file


def truncated(file: Path, share: float) -> Path:
    with file.open("r+b") as stream:
        stream.truncate(int(file.stat().st_size * share) // 512 * 512)
    return file


def test_every_format_becomes_the_same_disk_whatever_it_is_called(importing: Importing, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    files = [
        disk,
        converted(disk, "qcow2", "packed.vmdk", "-c"),
        converted(disk, "vpc", "old.raw", "-o", "force_size=on"),
        converted(disk, "vmdk", "esx.qcow2"),
        converted(disk, "vmdk", "streamed.vhd", "-o", "subformat=streamOptimized"),
    ]
    for file in files:
        image_id = importing.take(file)
        got = tmp_path / "got.img"
        importing.library.put(image_id, 0, got, SIZE + MIB)
        assert got.stat().st_size == SIZE + MIB
        run(["cmp", "-n", str(SIZE), str(disk), str(got)])
        got.unlink()
        importing.library.delete(image_id)
        assert not importing.library.has(image_id)


def test_bad_images_are_rejected_with_the_documented_codes(importing: Importing, tmp_path: Path) -> None:
    good = make_disk(tmp_path)
    base = converted(good, "qcow2", "base.qcow2")
    overlay = tmp_path / "web-000001.vmdk"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(overlay)])
    assert importing.code(overlay) == "InvalidFormatSize"
    descriptor = tmp_path / "flat.vmdk"
    descriptor.write_text('# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
                          f'RW {SIZE // 512} FLAT "{good}" 0\n')  # fmt: skip
    assert importing.code(descriptor) == "InvalidFormatSize"
    other = tmp_path / "x.qcow2"
    run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            f"data_file={tmp_path / 'data'},data_file_raw=on",
            str(other),
            "64M",
        ]
    )
    assert importing.code(other) == "InvalidFormatSize"
    assert importing.code(converted(good, "vdi", "box.qcow2")) == "InvalidFormatSize"
    huge = tmp_path / "huge.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(huge), "501G"])
    assert importing.code(huge) == "InvalidFormatSize"
    for file in (
        truncated(converted(good, "qcow2", "cut.qcow2"), 0.5),
        truncated(converted(good, "vmdk", "cut.vmdk"), 0.5),
    ):
        assert importing.code(file) == "PartitionNotPresent"
    text = tmp_path / "notes.qcow2"
    text.write_text("no image at all\n" * 1000)
    assert importing.code(text) == "PartitionNotPresent"
    for name, code, options in (
        ("gpt", "PartitionNotPresent", {"label": "gpt"}),
        ("data", "RootPartitionNotFound", {"system": False}),
        ("ide", "VirtioNotInstall", {"virtio": False}),
        ("plain", "CloudInitNotInstalled", {"cloud_init": False}),
    ):
        assert importing.code(make_disk(tmp_path, name, **options)) == code, name
    assert importing.code(truncated(good, 0.2)) == "PartitionNotPresent"


def test_force_waives_cloud_init_and_nothing_else(importing: Importing, tmp_path: Path) -> None:
    importing.take(make_disk(tmp_path, "plain", cloud_init=False), force=True)
    importing.library.delete("img-00000001")
    assert importing.code(make_disk(tmp_path, "ide", virtio=False), force=True) == "VirtioNotInstall"


def test_gpt_is_taken_where_uefi_is(importing: Importing, tmp_path: Path) -> None:
    importing.take(make_disk(tmp_path, label="gpt"), gpt_accepted=True)


def test_link_that_has_expired_or_leads_nowhere_is_rejected(importing: Importing, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    url = importing.url(disk, life=60)
    importing.cos.offset = 61.0 + 900
    with pytest.raises(ImageRejected) as caught:
        importing.library.import_image(ImageOrder("img-00000001", (url,)))
    assert caught.value.code == "InvalidUrl" and "q-signature" not in str(caught.value)
    plain = url.partition("?")[0]
    with pytest.raises(ImageRejected):
        importing.library.import_image(ImageOrder("img-00000001", (plain,)))
    importing.cos.sdk().put_object_acl(BUCKET, disk.name, ACL="public-read")
    importing.library.import_image(ImageOrder("img-00000001", (plain,)))


def test_broken_transfer_is_continued(importing: Importing, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    url = importing.url(disk)
    importing.cos.fault("cut", method="GET", after=60 * MIB)
    importing.library.import_image(ImageOrder("img-00000001", (url,)))

    def sent() -> list[int]:
        return [entry["parameters"]["sent"] for entry in importing.cos.requests("get_object")]

    eventually(lambda: len(sent()) == 2, "the second request is in the log")
    # What was under way when the connection was reset is lost.
    assert sum(sent()) <= SIZE + 16 * MIB


def test_data_disks_come_with_the_image(importing: Importing, tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    data.write_bytes(b"precious" * 512)
    image_id = importing.take(make_disk(tmp_path), data)
    got = tmp_path / "got.img"
    importing.library.put(image_id, 1, got, MIB)
    assert got.read_bytes()[:4096] == data.read_bytes()


def test_machine_without_partitions_gets_the_root_filesystem_with_the_others_in_it(
    importing: Importing, tmp_path: Path
) -> None:
    image_id = importing.take(make_disk(tmp_path, home=True))
    got = tmp_path / "got.img"
    importing.library.put_root(image_id, got, 2 * SIZE, tmp_path / "scratch")
    with loopdisk.mounted(got, tmp_path / "mnt") as root:
        assert (root / "home/alice").read_text() == "at home\n"
        (line,) = (root / "etc/fstab").read_text().splitlines()
    assert line.split()[1] == "/" and line.split()[0] == f"UUID={loopdisk.probe(str(got)).uuid}"


@pytest.mark.parametrize("pack", [lambda data: data, zstandard.compress])
def test_driver_is_found_in_each_archive_of_an_initramfs(pack: Callable[[bytes], bytes]) -> None:
    early = b"070701" + bytes(58)
    assert mentions(early + pack(b"kernel/virtio_blk.ko.xz"), b"virtio_blk.ko")
    assert not mentions(early + pack(b"kernel/ata_piix.ko"), b"virtio_blk.ko")
