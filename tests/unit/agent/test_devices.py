# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent.devices import find_target, open_source, parse_mountinfo
from fleetlift_agent.errors import AgentError

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import MIB, HostTree, loop_device, mount_namespace, run

pytestmark = pytest.mark.root

SERIAL = "disk-websys01"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        yield device


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "other.img", 64 * MIB) as device:
        yield device


@pytest.fixture
def host(tmp_path: Path) -> HostTree:
    return HostTree.create(tmp_path / "host")


def refusal(host: HostTree, serial: str = SERIAL, minimum_size: int = 64 * MIB) -> AgentError:
    with pytest.raises(AgentError) as caught:
        find_target(serial, minimum_size, sys=host.sys, dev=host.dev, proc=host.proc)
    assert caught.value.cause and caught.value.action
    return caught.value


def test_source_is_opened_read_only_and_direct(disk: Path, host: HostTree) -> None:
    host.add_disk("sda", disk, "SN-1")
    with open_source(disk, 64 * MIB, sys=host.sys) as source:
        flags = fcntl.fcntl(source.fd, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert flags & os.O_DIRECT
        assert fcntl.fcntl(source.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert (source.size, source.logical_block_size, source.serial) == (64 * MIB, 512, "SN-1")
        fd = source.fd
    with pytest.raises(OSError):
        os.fstat(fd)


def test_logical_block_size_is_the_device_s_own(tmp_path: Path) -> None:
    with (
        loop_device(tmp_path / "4k.img", 64 * MIB, "--sector-size", "4096") as device,
        open_source(device, 64 * MIB) as source,
    ):
        assert source.logical_block_size == 4096


def test_resized_source_is_refused(disk: Path) -> None:
    with pytest.raises(AgentError) as caught:
        open_source(disk, 63 * MIB)
    assert caught.value.code == "SOURCE_DISK_SIZE_CHANGED"
    assert caught.value.evidence == {"size": 64 * MIB, "expected_size": 63 * MIB}


def test_plain_file_is_no_source(tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(bytes(MIB))
    with pytest.raises(AgentError) as caught:
        open_source(file, MIB)
    assert caught.value.code == "SOURCE_DISK_NOT_A_DISK"


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as caught:
        open_source(tmp_path / "sdz", MIB)
    assert caught.value.code == "SOURCE_DISK_NOT_FOUND"


def test_partition_is_no_source(disk: Path, other_disk: Path, host: HostTree) -> None:
    host.add_disk("sda", disk, "SN-1")
    host.add_partition("sda", "sda1", other_disk)
    with pytest.raises(AgentError) as caught:
        open_source(host.dev / "sda1", 64 * MIB, sys=host.sys)
    assert caught.value.code == "SOURCE_DISK_NOT_A_DISK"


def test_target_is_found_by_serial_and_held_exclusively(disk: Path, other_disk: Path, host: HostTree) -> None:
    host.add_disk("vda", other_disk, "disk-another1")
    host.add_disk("vdb", disk, SERIAL)
    with find_target(SERIAL, 64 * MIB, sys=host.sys, dev=host.dev, proc=host.proc) as target:
        assert (target.name, target.serial, target.size) == ("vdb", SERIAL, 64 * MIB)
        os.pwrite(target.fd, b"fleetlift", 0)
        os.fsync(target.fd)
        second = refusal(host)
        assert second.code == "TARGET_DISK_IN_USE"
    assert disk.open("rb").read(9) == b"fleetlift"


def test_serial_longer_than_virtio_keeps_is_compared_by_what_is_kept(disk: Path, host: HostTree) -> None:
    long = "disk-0123456789abcdefghij"
    host.add_disk("vda", disk, long[:20])
    with find_target(long, MIB, sys=host.sys, dev=host.dev, proc=host.proc) as target:
        assert target.serial == long


def test_unknown_serial_is_refused_with_the_serials_seen(disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, "disk-another1")
    error = refusal(host)
    assert error.code == "TARGET_DISK_NOT_FOUND"
    assert error.evidence == {"serials": {"vda": "disk-another1"}}


def test_empty_serial_matches_no_disk_without_serial(disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, "")
    assert refusal(host, serial="").code == "TARGET_DISK_NOT_FOUND"


def test_kernel_alone_is_not_believed(disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, SERIAL, link=False)
    assert refusal(host).code == "TARGET_DISK_NOT_FOUND"


def test_link_to_another_disk_is_refused(disk: Path, other_disk: Path, host: HostTree) -> None:
    host.add_disk("vda", other_disk, "disk-another1")
    host.add_disk("vdb", disk, SERIAL, link=False)
    (host.dev / "disk/by-id" / f"virtio-{SERIAL}").symlink_to("../../vda")
    assert refusal(host).code == "TARGET_DISK_AMBIGUOUS"


def test_two_disks_with_one_serial_are_refused(disk: Path, other_disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, SERIAL)
    host.add_disk("vdb", other_disk, SERIAL, link=False)
    assert refusal(host).code == "TARGET_DISK_AMBIGUOUS"


def test_node_of_another_device_is_refused(disk: Path, other_disk: Path, host: HostTree) -> None:
    block = host.add_disk("vda", disk, SERIAL)
    number = other_disk.stat().st_rdev
    (block / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
    assert refusal(host).code == "TARGET_DISK_NOT_FOUND"


def test_plain_file_is_never_a_target(disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, SERIAL, node=False)
    (host.dev / "vda").write_bytes(bytes(MIB))
    assert refusal(host, minimum_size=MIB).code == "TARGET_DISK_NOT_FOUND"


def test_small_target_is_refused_with_both_sizes(disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, SERIAL)
    error = refusal(host, minimum_size=64 * MIB + 1)
    assert error.code == "TARGET_DISK_TOO_SMALL"
    assert error.evidence == {"size": 64 * MIB, "minimum_size": 64 * MIB + 1}


def test_read_only_target_is_refused(tmp_path: Path, host: HostTree) -> None:
    with loop_device(tmp_path / "ro.img", 64 * MIB, "--read-only") as device:
        host.add_disk("vda", device, SERIAL)
        assert refusal(host).code == "TARGET_DISK_READ_ONLY"


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs"])
def test_mounted_target_is_refused(tmp_path: Path, filesystem: str) -> None:
    with loop_device(tmp_path / "disk.img", 128 * MIB) as device, mount_namespace() as namespace:
        run(f"mkfs.{filesystem}", "-q", device)
        namespace.run("mkdir", "/mnt/a b")
        namespace.run("mount", device, "/mnt/a b")
        host = HostTree.create(tmp_path / "host", mountinfo=namespace.mountinfo.read_text())
        host.add_disk("vda", device, SERIAL)
        error = refusal(host)
        assert error.code == "TARGET_DISK_MOUNTED"
        assert error.evidence == {"mountpoints": ["/mnt/a b"]}


def test_mount_in_another_namespace_is_refused(tmp_path: Path, host: HostTree) -> None:
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device, mount_namespace() as namespace:
        run("mkfs.ext4", "-q", device)
        namespace.run("mount", device, "/mnt")
        host.add_disk("vda", device, SERIAL)
        assert refusal(host).code == "TARGET_DISK_IN_USE"


def test_disk_with_a_mounted_partition_is_refused(disk: Path, tmp_path: Path) -> None:
    with loop_device(tmp_path / "part.img", 64 * MIB) as part, mount_namespace() as namespace:
        run("mkfs.ext4", "-q", part)
        namespace.run("mount", part, "/mnt")
        host = HostTree.create(tmp_path / "host", mountinfo=namespace.mountinfo.read_text())
        host.add_disk("vda", disk, SERIAL)
        host.add_partition("vda", "vda1", part)
        assert refusal(host).code == "TARGET_DISK_MOUNTED"


def test_disk_of_the_running_root_is_refused(disk: Path, tmp_path: Path) -> None:
    number = disk.stat().st_rdev
    mountinfo = f"27 1 {os.major(number)}:{os.minor(number)} / / rw - ext4 /dev/vda rw\n"
    host = HostTree.create(tmp_path / "host", mountinfo=mountinfo)
    host.add_disk("vda", disk, SERIAL)
    assert refusal(host).code == "TARGET_DISK_IS_ROOT"


def test_swap_on_the_disk_is_refused(disk: Path, tmp_path: Path) -> None:
    host = HostTree.create(tmp_path / "host")
    host.add_disk("vda", disk, SERIAL)
    (host.proc / "swaps").write_text(f"Filename Type Size Used Priority\n{host.dev}/vda partition 65532 0 -2\n")
    assert refusal(host).code == "TARGET_DISK_SWAP"


def test_disk_held_by_a_volume_is_refused(disk: Path, other_disk: Path, host: HostTree) -> None:
    volume = host.add_disk("dm-0", other_disk, "")
    block = host.add_disk("vda", disk, SERIAL)
    (block / "holders/dm-0").symlink_to(volume)
    error = refusal(host)
    assert error.code == "TARGET_DISK_IN_USE"
    assert error.evidence == {"holders": ["dm-0"]}


def test_refusal_leaves_no_descriptor_open(disk: Path, host: HostTree) -> None:
    host.add_disk("vda", disk, SERIAL)
    before = len(os.listdir("/proc/self/fd"))
    refusal(host, minimum_size=65 * MIB)
    with pytest.raises(AgentError):
        open_source(disk, 1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_mountinfo_of_this_host_is_understood() -> None:
    records = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    assert "/" in [record.mountpoint for record in records]


def test_mountinfo_has_names_with_what_elsewhere_ends_a_line() -> None:
    line = "36 35 98:0 / /a\x0bb\u2028c rw - ext3 /dev/sda rw"
    assert [record.mountpoint for record in parse_mountinfo(f"{line}\n{line}\n")] == ["/a\x0bb\u2028c"] * 2


def test_mountinfo_keeps_escapes_optional_fields_and_superblock_options_apart() -> None:
    before = "36 35 98:0 /sub\\040dir /a\\134b\\011c rw,noatime shared:1 master:2"
    (record,) = parse_mountinfo(f"{before} - ext3 /dev/my\\040disk ro,errors=continue\n")
    assert (record.root, record.mountpoint, record.source) == ("/sub dir", "/a\\b\tc", "/dev/my disk")
    assert (os.major(record.device), os.minor(record.device)) == (98, 0)
    assert record.read_only
