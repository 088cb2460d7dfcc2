# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is found out about real images, good and bad, and that none of them makes us read anything else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import image_files
import lvm_volume
import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.images import filesystems, guest, nbd, qemu
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.estimate import Assumptions
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.header import Header, ImageFile
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.inspection import Order, inspect
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.judgement import Wishes
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.recognise import recognise
from image_files import MIB, run
from play_here import play

AGENT = str(Path(__file__).resolve().parents[3] / "agent")
SECRET = b"the contents of a file of this host "


def look(path, **wishes):
    """The module's result for an image."""
    return inspect(str(path), Order(AGENT), Wishes(**wishes), Assumptions(12.5e6))


def codes(result, severity=None):
    """The codes of the findings, of one severity or all."""
    return [each["code"] for each in result["findings"] if severity in (None, each["severity"])]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def volume(workshop):
    """The filesystem of a system that starts with virtio."""
    image_files.filesystem(workshop / "volume", "ext4", image_files.system(workshop / "root"), 16 * MIB)
    return workshop / "volume"


@pytest.fixture(scope="module")
def good(workshop, volume):
    """A raw disk that boots by BIOS with virtio."""
    return image_files.disk(workshop / "good.raw", volume)


@pytest.fixture
def qcow2(good, tmp_path):
    return image_files.converted(good, tmp_path, "qcow2")


@pytest.mark.parametrize("name", image_files.FORMATS)
def test_every_format_is_known_by_its_content_and_the_system_in_it_found(name, good, tmp_path):
    made = image_files.converted(good, tmp_path, name)
    disguised = tmp_path / "disguised.bin"
    if name not in ("flat vmdk", "split vmdk"):
        made.rename(disguised)
        made = disguised

    found = look(made)

    assert found["image"]["format"] == {"vpc": "vhd"}.get(image_files.FORMATS[name][0], image_files.FORMATS[name][0])
    # A VHD that QEMU makes has the size that its geometry comes to.
    assert 0 <= found["image"]["virtual_size"] - good.stat().st_size < MIB
    assert found["partition_table"] == "mbr"
    assert found["firmware"] == ["bios"]
    assert found["root"]["filesystem"] == "ext4"
    assert found["system"] == {
        "id": "debian",
        "version": "12",
        "name": "Debian GNU/Linux 12 (bookworm)",
        "architecture": "x86_64",
        "hostname": "web1",
    }
    assert found["virtio"] is True
    assert found["cloud_init"] is True
    assert found["unread"] == []
    assert found["estimate"]["compressed"]["bytes"] < good.stat().st_size
    expected = {"vdi": ["IMAGE_FORMAT_UNSUPPORTED"], "vhdx": ["IMAGE_FORMAT_UNSUPPORTED"]}
    expected.update({"flat vmdk": ["IMAGE_SPLIT"], "split vmdk": ["IMAGE_SPLIT"]})
    assert codes(found, "blocker") == expected.get(name, [])
    assert found["ok"] is (not codes(found, "blocker"))


def test_what_import_image_is_told_comes_from_the_disk(good):
    assert look(good)["import_parameters"] == {
        "architecture": "x86_64",
        "os_type": "Debian",
        "os_version": "12",
        "boot_mode": "Legacy BIOS",
    }


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_filesystems_are_read_without_a_mount(kind, volume, tmp_path):
    size = {"xfs": 300, "btrfs": 128}[kind] * MIB
    image_files.filesystem(tmp_path / "volume", kind, image_files.system(tmp_path / "root"), size)

    found = look(image_files.disk(tmp_path / "disk.raw", tmp_path / "volume"))

    assert found["unread"] == []
    assert found["root"]["filesystem"] == kind
    assert found["system"]["id"] == "debian"
    assert found["virtio"] is True


def test_a_system_on_a_logical_volume_is_found(volume, tmp_path):
    physical = lvm_volume.physical_volume(tmp_path / "physical", volume)

    found = look(image_files.disk(tmp_path / "disk.raw", physical, kind="lvm"))

    assert found["unread"] == []
    assert found["root"]["volume"] == "lvm vg0/root"
    assert found["system"]["hostname"] == "web1"
    assert found["virtio"] is True


def test_a_boot_partition_of_its_own_is_looked_into(tmp_path):
    root = image_files.system(tmp_path / "root")
    (root / "boot").rename(tmp_path / "boot")
    (root / "boot").mkdir()
    (root / "etc/fstab").write_text("LABEL=boot /boot ext4 defaults 0 2\n/dev/sda1 / ext4 defaults 0 1\n")
    image_files.filesystem(tmp_path / "rootfs", "ext4", root, 16 * MIB)
    image_files.filesystem(tmp_path / "bootfs", "ext4", tmp_path / "boot", 8 * MIB)
    run("tune2fs", "-L", "boot", tmp_path / "bootfs")

    found = look(image_files.disk(tmp_path / "disk.raw", tmp_path / "rootfs", tmp_path / "bootfs"))

    assert found["root"]["volume"] == "d0p1"
    assert found["kernels"][0]["initramfs"] == f"/boot/initrd.img-{image_files.KERNEL}"
    assert found["virtio"] is True


def test_an_initramfs_without_virtio_is_a_blocker_that_names_the_remedy(tmp_path):
    root = image_files.system(tmp_path / "root", in_initramfs=["ata_piix"], cloud_init=False)
    image_files.filesystem(tmp_path / "volume", "ext4", root, 16 * MIB)

    found = look(image_files.disk(tmp_path / "disk.raw", tmp_path / "volume"))

    assert codes(found) == ["IMAGE_NO_VIRTIO", "IMAGE_NO_CLOUD_INIT"]
    assert "image_prepare" in found["findings"][0]["action"]
    assert found["kernels"][0]["missing"] == sorted(image_files.VIRTIO)
    assert found["ok"] is False


def test_a_gpt_and_uefi_warn_or_block_as_the_user_decides(volume, good, tmp_path):
    gpt = image_files.disk(tmp_path / "gpt.raw", volume, table="gpt", esp=True)
    uefi = image_files.disk(tmp_path / "uefi.raw", volume, table="gpt", esp=True, boot_code=False)

    assert look(gpt)["firmware"] == ["bios", "uefi"]
    assert codes(look(gpt)) == ["IMAGE_GPT"]
    assert codes(look(uefi), "warning") == ["IMAGE_UEFI"]
    assert codes(look(uefi, uefi="block"), "blocker") == ["IMAGE_UEFI"]
    assert look(uefi, uefi="ignore")["findings"] == []
    assert look(uefi)["import_parameters"]["boot_mode"] == "UEFI"


def test_a_disk_that_nothing_boots_from_is_a_blocker_unless_it_is_a_data_disk(volume, tmp_path):
    blank = image_files.disk(tmp_path / "disk.raw", volume, boot_code=False)

    assert codes(look(blank)) == ["IMAGE_NOT_BOOTABLE"]
    assert codes(look(volume), "blocker") == ["IMAGE_UNPARTITIONED"]
    assert look(blank, purpose="data")["findings"] == []


def test_a_partitioned_disk_without_a_system_is_a_blocker(tmp_path):
    (tmp_path / "root").mkdir()
    image_files.filesystem(tmp_path / "volume", "ext4", tmp_path / "root", 16 * MIB)

    found = look(image_files.disk(tmp_path / "disk.raw", tmp_path / "volume"))

    assert codes(found, "blocker") == ["IMAGE_NO_ROOT"]


def test_a_target_disk_that_is_smaller_is_a_blocker(qcow2, good):
    size = good.stat().st_size

    assert codes(look(qcow2, target_disk_size=size - 1), "blocker") == ["TARGET_DISK_SMALLER"]
    assert codes(look(qcow2, target_disk_size=size)) == []


@pytest.mark.parametrize("name", [name for name in image_files.FORMATS if "flat" not in name and "split" not in name])
def test_an_image_that_was_cut_off_is_a_blocker(name, good, tmp_path):
    image = image_files.converted(good, tmp_path, name)
    # VHDX allocates ahead, and behind the last partition there is a MiB that nothing uses.
    size = image.stat().st_size
    os.truncate(
        image, {"vhdx": size * 2 // 3, "raw": size - 2 * MIB, "fixed vhd": size - 2 * MIB}.get(name, size - 70000)
    )

    found = look(image)

    assert found["ok"] is False
    assert set(codes(found, "blocker")) & {"IMAGE_TRUNCATED", "IMAGE_CORRUPT"}


def test_the_end_of_a_disk_is_missed_where_nothing_lies(volume, tmp_path):
    odd = image_files.disk(tmp_path / "odd.raw", volume)
    gpt = image_files.disk(tmp_path / "gpt.raw", volume, table="gpt")
    for image, cut in ((odd, 100), (gpt, 4096)):
        os.truncate(image, image.stat().st_size - cut)

        assert codes(look(image), "blocker") == ["IMAGE_TRUNCATED"]


def test_a_corrupt_table_is_a_blocker(qcow2):
    with qcow2.open("r+b") as file:
        # The first table: docs/interop/qcow2.txt, l1_table_offset.
        file.seek(40)
        at = int.from_bytes(file.read(8), "big")
        file.seek(at)
        file.write(b"\x80\0\0\0\x7f\xff\0\0")

    found = look(qcow2)

    assert codes(found, "blocker") == ["IMAGE_CORRUPT"]


def test_snapshots_inside_an_image_are_told(qcow2):
    run("qemu-img", "snapshot", "-c", "before-upgrade", qcow2)

    found = look(qcow2)

    assert found["image"]["snapshots"] == ["before-upgrade"]
    assert codes(found) == ["IMAGE_INTERNAL_SNAPSHOTS"]
    assert found["ok"] is True


def test_a_vmdk_of_a_chain_of_snapshots_is_refused_by_header_and_by_name(good, tmp_path):
    base = image_files.converted(good, tmp_path, "sparse vmdk")
    delta = tmp_path / "web1-000001.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-F", "vmdk", "-b", base, delta)
    renamed = tmp_path / "web1.vmdk"
    shutil.copy(delta, renamed)
    named = tmp_path / "other-000002.vmdk"
    shutil.copy(base, named)

    for image in (delta, renamed, named):
        assert codes(look(image), "blocker") == ["IMAGE_SNAPSHOT_CHAIN"], image
    assert look(delta)["partition_table"] is None


def test_a_part_of_a_split_disk_is_no_image(good, tmp_path):
    image_files.converted(good, tmp_path, "split vmdk")

    assert codes(look(tmp_path / "split-vmdk-s001.vmdk"), "blocker") == ["IMAGE_SPLIT"]


def test_a_part_that_is_not_there_is_named(good, tmp_path):
    image = image_files.converted(good, tmp_path, "flat vmdk")
    (tmp_path / "flat-vmdk-flat.vmdk").unlink()

    found = look(image)

    assert "IMAGE_PART_MISSING" in codes(found)
    assert found["ok"] is False


def test_an_image_in_use_or_encrypted_or_with_leaks_is_told(qcow2, tmp_path):
    content = bytearray(qcow2.read_bytes())
    # docs/interop/qcow2.txt: incompatible_features, bit 0 is the dirty bit.
    content[79] |= 1
    (tmp_path / "dirty.qcow2").write_bytes(content)
    secret = [
        "--object",
        "secret,id=s,data=words",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ]
    run("qemu-img", "create", "-q", "-f", "qcow2", *secret, tmp_path / "secret.qcow2", MIB)
    # The first table of reference counts names a block of them, each of two bytes, for clusters of 64 KiB.
    table = int.from_bytes(content[48:56], "big")
    block = int.from_bytes(content[table : table + 8], "big")
    unused = len(content) // 65536 + 1
    content[79] &= 0xFE
    content[block + 2 * unused + 1] = 1
    (tmp_path / "leak.qcow2").write_bytes(content.ljust((unused + 1) * 65536, b"\0"))

    assert "IMAGE_IN_USE" in codes(look(tmp_path / "dirty.qcow2"), "warning")
    assert codes(look(tmp_path / "secret.qcow2"), "blocker") == ["IMAGE_ENCRYPTED"]
    leaking = look(tmp_path / "leak.qcow2")
    assert codes(leaking) == ["IMAGE_LEAKS"]
    assert leaking["consistency"]["ok"] is True


def changed_system(tmp_path, change):
    """What is found on a disk whose system was changed by *change* before it was packed."""
    root = image_files.system(tmp_path / "root")
    change(root)
    image_files.filesystem(tmp_path / "volume", "ext4", root, 16 * MIB)
    return look(image_files.disk(tmp_path / "disk.raw", tmp_path / "volume"))


def test_a_system_that_the_api_has_no_name_for_is_told(tmp_path):
    def change(root):
        (root / "usr/lib/os-release").write_text("ID=gentoo\nNAME=Gentoo\n")

    found = changed_system(tmp_path, change)

    assert codes(found) == ["IMAGE_OS_UNKNOWN"]
    assert found["import_parameters"]["os_type"] == "Other Linux"


def test_a_kernel_without_virtio_at_all_is_a_blocker_that_no_initramfs_cures(tmp_path):
    def change(root):
        (root / f"usr/lib/modules/{image_files.KERNEL}/modules.dep").write_text("kernel/ata_piix.ko:\n")

    found = changed_system(tmp_path, change)

    assert codes(found, "blocker") == ["KERNEL_WITHOUT_VIRTIO"]
    assert found["kernels"][0]["no_driver"] is True


def test_a_system_without_a_kernel_does_not_boot(tmp_path):
    found = changed_system(tmp_path, lambda root: (root / f"boot/vmlinuz-{image_files.KERNEL}").unlink())

    assert codes(found, "blocker") == ["NO_KERNEL"]


def test_a_system_of_before_os_release_is_known_by_its_own_file(tmp_path):
    def change(root):
        (root / "etc/os-release").unlink()
        (root / "usr/lib/os-release").unlink()
        (root / "etc/redhat-release").write_text("CentOS release 6.10 (Final)\n")
        (root / "etc/centos-release").write_text("CentOS release 6.10 (Final)\n")

    found = changed_system(tmp_path, change)

    assert found["import_parameters"]["os_type"] == "CentOS"
    assert found["import_parameters"]["os_version"] == "6.10"


def test_two_systems_on_one_disk_are_not_guessed_between(volume, tmp_path):
    found = look(image_files.disk(tmp_path / "disk.raw", volume, volume))

    assert found["system"] is None
    assert "2 volumes hold one" in found["unread"][0]["why"]


def test_what_keeps_its_reader_busy_or_fills_its_memory_comes_to_an_end(good, monkeypatch):
    monkeypatch.setattr(filesystems, "LARGEST_FILE", 20)
    small = look(good)
    monkeypatch.undo()

    def for_ever(_disk, _found):
        while True:
            pass

    monkeypatch.setattr(guest, "examine", for_ever)
    slow = inspect(str(good), Order(AGENT, content_timeout=0.2), Wishes(), Assumptions(12.5e6))

    assert "larger than" in small["unread"][0]["why"]
    assert codes(slow) == ["IMAGE_UNREAD"]
    assert "took longer" in slow["findings"][0]["cause"]


def test_a_program_ends_with_the_one_that_started_it():
    collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir())
    script = (
        "import subprocess, time\n"
        "from ansible_collections.fleetlift.cvm.plugins.module_utils.images import qemu\n"
        "print(subprocess.Popen(['sleep', '600'], preexec_fn=qemu.limited).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": collections}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        with open(f"/proc/{child}/comm") as comm:
            assert comm.read() == "sleep\n"
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    gone = not Path(f"/proc/{child}").exists()
    if not gone:
        os.kill(child, signal.SIGKILL)
    assert gone


def test_archives_isos_and_nothing_at_all_are_told_apart(tmp_path, good):
    with tarfile.open(tmp_path / "web1.ova", "w") as tar:
        (tmp_path / "web1.ovf").write_text("<Envelope/>")
        tar.add(tmp_path / "web1.ovf", "web1.ovf")
    gz = tmp_path / "web1.qcow2"
    gz.write_bytes(b"\x1f\x8b\x08" + bytes(2000))
    iso = tmp_path / "debian.iso"
    iso.write_bytes(bytes(32769) + b"CD001" + bytes(4000))
    (tmp_path / "empty.raw").touch()

    assert codes(look(tmp_path / "web1.ova")) == ["IMAGE_ARCHIVE"]
    assert codes(look(gz)) == ["IMAGE_ARCHIVE"]
    assert codes(look(gz, feature="console"), "blocker") == []
    assert look(iso)["image"]["format"] == "iso"
    assert codes(look(iso)) == ["IMAGE_FORMAT_UNSUPPORTED"]
    assert codes(look(tmp_path / "empty.raw")) == ["IMAGE_EMPTY"]


def test_the_limits_of_the_import_are_known_before_the_upload(tmp_path):
    """Sparse files, which take no room here."""
    large = tmp_path / "large.raw"
    with large.open("wb") as file:
        file.truncate(51 << 30)
    huge = tmp_path / "huge.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", huge, "501G")

    assert "IMAGE_TOO_LARGE" in codes(look(large), "blocker")
    assert "IMAGE_TOO_LARGE" not in codes(look(large, feature="console"))
    assert "IMAGE_DISK_TOO_LARGE" in codes(look(huge), "blocker")
    os.truncate(large, 51 * 10**9)
    assert "IMAGE_TOO_LARGE" in codes(look(large), "warning")
    os.truncate(large, 50 * 10**9)
    assert "IMAGE_TOO_LARGE" not in codes(look(large))


def test_a_backing_file_is_refused_and_not_read(good, tmp_path):
    secret = tmp_path / "shadow"
    secret.write_bytes(SECRET * 4096)
    evil = tmp_path / "evil.qcow2"
    for backing in (str(secret), f'json:{{"driver":"file","filename":"{secret}"}}'):
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, evil, MIB)

        found = look(evil)

        assert codes(found, "blocker") == ["IMAGE_BACKING_FILE"]
        assert found["image"]["backing_file"] == backing
        assert found["partition_table"] is None


def test_qemu_itself_is_told_to_follow_no_backing_file(tmp_path):
    """The header that we read and the one that QEMU reads may differ when somebody changes the file meanwhile."""
    secret = tmp_path / "shadow"
    secret.write_bytes(SECRET * 4096)
    evil = tmp_path / "evil.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, evil)
    with ImageFile(str(evil)) as file:
        header = replace(recognise(file), backing="")

    with nbd.served(evil, header) as disk:
        assert not any(disk.read(0, 4096))


def test_a_raw_image_that_is_made_to_look_like_another_format_is_refused(good, tmp_path):
    """What a guest writes to its raw disk must not choose the driver: the header of a qcow2 with a backing file."""
    secret = tmp_path / "shadow"
    secret.write_bytes(SECRET * 4096)
    evil = tmp_path / "evil.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, evil)
    raw = tmp_path / "disk.raw"
    raw.write_bytes(evil.read_bytes() + bytes(MIB))

    assert codes(look(raw), "blocker") == ["IMAGE_BACKING_FILE"]
    with nbd.served(raw, Header("raw", virtual_size=raw.stat().st_size)) as disk:
        assert disk.read(0, 4) == b"QFI\xfb"


def test_an_external_data_file_is_refused(good, tmp_path):
    image = tmp_path / "evil.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", image, MIB)

    found = look(image)

    assert codes(found, "blocker") == ["IMAGE_EXTERNAL_DATA"]
    assert found["partition_table"] is None
    with ImageFile(str(image)) as file, pytest.raises(Refusal, match="IMAGE_BACKING_FILE"):
        qemu.opened_as(image, recognise(file))


@pytest.mark.parametrize("named", ["/etc/shadow", "../shadow", "link.vmdk", "json:{}", "evil.vmdk", "nbd:host:1"])
def test_a_descriptor_that_names_files_elsewhere_is_refused(named, tmp_path):
    (tmp_path / "shadow").write_bytes(SECRET * 4096)
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "link.vmdk").symlink_to(tmp_path / "shadow")
    image = directory / "evil.vmdk"
    image.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 288 FLAT "{named}" 0\n'
    )

    found = look(image)

    assert "IMAGE_EXTERNAL_DATA" in codes(found, "blocker")
    assert found["partition_table"] is None
    assert SECRET.decode() not in json.dumps(found)


def test_a_part_that_is_a_descriptor_itself_is_refused(tmp_path):
    """QEMU follows a sparse part of no capacity to the descriptor in it, and that to any file."""
    inner = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 8 FLAT "/etc/shadow" 0\n'
    head = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, 0, 128, 1, 1, 512, 0, 0, 0)
    (tmp_path / "web1-s001.vmdk").write_bytes(head.ljust(512, b"\0") + inner.ljust(512, b"\0"))
    image = tmp_path / "web1.vmdk"
    image.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="twoGbMaxExtentSparse"\n'
        'RW 8 SPARSE "web1-s001.vmdk"\n'
    )

    found = look(image)

    assert "IMAGE_EXTERNAL_DATA" in codes(found, "blocker")
    assert found["partition_table"] is None


def test_a_name_of_another_format_is_a_note(good, tmp_path):
    image = tmp_path / "web1.vmdk"
    shutil.copy(good, image)

    assert codes(look(image), "note") == ["IMAGE_EXTENSION"]
    assert look(image)["image"]["extension_fits"] is False


def test_a_name_that_looks_like_a_protocol_is_a_name(good, tmp_path):
    for name in ('json:{"driver":"nbd"}', "nbd:127.0.0.1:1", "a,b=c.raw"):
        image = tmp_path / name
        shutil.copy(good, image)
        assert look(image)["system"]["id"] == "debian"


def test_a_damaged_filesystem_is_told_and_not_stumbled_over(volume, tmp_path):
    content = bytearray(volume.read_bytes())
    # The group descriptors and what follows them, but not the superblock.
    content[2048 : 2048 + 65536] = os.urandom(65536)
    (tmp_path / "volume").write_bytes(content)

    found = look(image_files.disk(tmp_path / "disk.raw", tmp_path / "volume"))

    assert found["system"] is None
    assert found["unread"]
    assert "IMAGE_UNREAD" in codes(found)


def test_a_filesystem_with_what_is_not_read_here_says_so(workshop, volume, tmp_path):
    with (tmp_path / "volume").open("wb") as file:
        file.truncate(32 * MIB)
    run("mkfs.ext4", "-q", "-F", "-O", "bigalloc", "-C", "16384", "-d", workshop / "root", tmp_path / "volume")

    found = look(image_files.disk(tmp_path / "disk.raw", tmp_path / "volume"))

    assert "not read here" in found["unread"][0]["why"]
    assert codes(found, "blocker") == []


@pytest.mark.root
def test_a_system_in_a_subvolume_is_found(tmp_path):
    """Made with a mount, since mkfs.btrfs makes no subvolumes before 6.12."""
    file, mounted = tmp_path / "volume", tmp_path / "mounted"
    with file.open("wb") as stream:
        stream.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", file)
    mounted.mkdir()
    run("mount", "-o", "loop", file, mounted)
    try:
        run("btrfs", "subvolume", "create", mounted / "@")
        image_files.system(tmp_path / "root")
        run("cp", "-a", f"{tmp_path}/root/.", mounted / "@")
    finally:
        run("umount", mounted)

    found = look(image_files.disk(tmp_path / "disk.raw", file))

    assert found["system"]["hostname"] == "web1"
    assert found["virtio"] is True


@pytest.mark.root
def test_nothing_of_it_needs_root(qcow2):
    """In a user namespace without a root, nothing can be mounted and no device made."""
    collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir())
    words = ["unshare", "--user", sys.executable, str(Path(__file__).with_name("run_module.py")), "image_info"]

    done = subprocess.run(
        words,
        input=json.dumps({"path": str(qcow2), "agent": AGENT}),
        env={**os.environ, "PYTHONPATH": collections},
        capture_output=True,
        text=True,
        check=False,
    )

    found = json.loads(done.stdout)
    assert found["system"]["id"] == "debian", done.stdout
    assert (found["virtio"], found["unread"], found["ok"]) == (True, [], True)


def test_what_is_missing_on_the_machine_is_named_with_the_next_step(qcow2, good, monkeypatch):
    monkeypatch.setitem(qemu.ENVIRONMENT, "PATH", "/nonexistent")

    with pytest.raises(Refusal) as caught:
        look(qcow2)

    assert caught.value.finding.code == "QEMU_IMG_MISSING"
    assert "qemu-utils" in caught.value.finding.action
    raw = look(good)
    assert raw["system"]["id"] == "debian"
    assert "QEMU_IMG_MISSING" in codes(raw)


def test_the_module_runs_in_a_play_and_says_what_cannot_be_read(good, tmp_path):
    tasks = [
        {"fleetlift.cvm.image_info": {"path": str(good)}, "register": "found", "check_mode": True},
        {"fleetlift.cvm.image_info": {"path": str(tmp_path / "nothing")}, "register": "missing"},
        {
            "ansible.builtin.assert": {
                "that": [
                    "found.ok and found.system.id == 'debian' and found is not changed",
                    "not missing.ok and missing.findings[0].code == 'IMAGE_UNREADABLE'",
                ]
            }
        },
    ]

    status, output = play(tmp_path, tasks)

    assert status == 0, output
    assert "[here: good.raw] as it is" in output
    assert list((tmp_path / "remote").glob("*")) == []
