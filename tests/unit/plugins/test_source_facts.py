# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.source_facts import (
    HEAD_BYTES,
    NO_DISK,
    TAIL_BYTES,
    Signature,
    find_disks,
    host_findings,
    is_disk,
    parse_meminfo,
    parse_mountinfo,
    parse_os_release,
    parse_swaps,
    partition_table,
    signature,
)
from fleetlift_agent import unplanned
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
from block_devices import MIB, HostTree, loop_device, mount_namespace, run

UUID = "6c9e2f0e-5a3f-4b6b-8d7e-3f1a2b4c5d6e"
RAID_MAGIC = b"\xfc\x4e\x2b\xa9"


def ends(image: Path) -> tuple[bytes, bytes, int]:
    size = image.stat().st_size
    with image.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(0, size - TAIL_BYTES))
        return head, file.read(TAIL_BYTES), size


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("command", "size", "kind"),
    [
        (["mkfs.ext2", "-q", "-F", "-U", UUID, "-L", "fleet"], 16 * MIB, "ext2"),
        (["mkfs.ext3", "-q", "-F", "-U", UUID, "-L", "fleet"], 16 * MIB, "ext3"),
        (["mkfs.ext4", "-q", "-F", "-U", UUID, "-L", "fleet"], 16 * MIB, "ext4"),
        (["mkfs.xfs", "-q", "-f", "-m", f"uuid={UUID}", "-L", "fleet"], 320 * MIB, "xfs"),
        (["mkfs.btrfs", "-q", "-f", "-U", UUID, "-L", "fleet"], 128 * MIB, "btrfs"),
        (["mkswap", "-U", UUID, "-L", "fleet"], 16 * MIB, "swap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_filesystems_are_recognised_as_their_own_tools_make_them(
    tmp_path: Path, command: list[str], size: int, kind: str
) -> None:
    image = sparse(tmp_path / "disk.img", size)
    image.chmod(0o600)
    run(*command, image)
    assert signature(*ends(image)) == Signature(kind, UUID, "fleet")


def placed(size: int, *parts: tuple[int, bytes]) -> tuple[bytes, bytes, int]:
    """The two ends of a device of *size* bytes that has these bytes at these offsets."""
    device = bytearray(size)
    for offset, data in parts:
        device[offset : offset + len(data)] = data
    return bytes(device[:HEAD_BYTES]), bytes(device[max(0, size - TAIL_BYTES) :]), size


RAW_UUID = uuid.UUID(UUID).bytes
SIZE = 4 * MIB + 3 * 512
EXT4 = (1024, bytes(56) + b"\x53\xef" + bytes(38) + struct.pack("<I", 0x40))
LVM = b"LABELONE" + bytes(12) + struct.pack("<I", 32) + b"LVM2 001" + b"AbCdEf1234567890abcdefghij123456"
FAT32 = bytes(67) + b"\x78\x56\x34\x12ESP        FAT32   "


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            [(0, RAID_MAGIC + b"\1\0\0\0" + bytes(8) + RAW_UUID + b"web1:0")],
            Signature("linux_raid_member", UUID, "web1:0"),
        ),
        ([(4096, RAID_MAGIC + b"\1\0\0\0" + bytes(8) + RAW_UUID)], Signature("linux_raid_member", UUID)),
        (
            [EXT4, (((SIZE // 512 - 16) & ~7) * 512, RAID_MAGIC + b"\1\0\0\0" + bytes(8) + RAW_UUID)],
            Signature("linux_raid_member", UUID),
        ),
        ([EXT4, ((SIZE & ~0xFFFF) - 0x10000, RAID_MAGIC)], Signature("linux_raid_member")),
        ([EXT4], Signature("ext4")),
        ([(0, b"LUKS\xba\xbe\0\1" + bytes(160) + UUID.encode())], Signature("crypto_LUKS", UUID)),
        (
            [(0, b"LUKS\xba\xbe\0\2" + bytes(16) + b"vault".ljust(144, b"\0") + UUID.encode())],
            Signature("crypto_LUKS", UUID, "vault"),
        ),
        ([(512, LVM)], Signature("LVM2_member", "AbCdEf-1234-5678-90ab-cdef-ghij-123456")),
        ([(0, FAT32), (510, b"\x55\xaa")], Signature("vfat", "1234-5678", "ESP")),
        ([], None),
    ],
)
def test_other_signatures_are_recognised_by_their_documented_layout(
    parts: list[tuple[int, bytes]], expected: Signature | None
) -> None:
    assert signature(*placed(SIZE, *parts)) == expected


def test_partition_tables_are_told_apart() -> None:
    entry = b"\x80\0\0\0\x83\0\0\0" + struct.pack("<II", 2048, 4096)
    protective = b"\0\0\0\0\xee\0\0\0" + struct.pack("<II", 1, SIZE // 512 - 1)
    for expected, parts in {
        "dos": [(446, entry), (510, b"\x55\xaa")],
        "gpt": [(446, protective), (510, b"\x55\xaa"), (512, b"EFI PART")],
        "none": [EXT4],
    }.items():
        head, _tail, size = placed(SIZE, *parts)
        assert partition_table(head, 512, size) == expected


def test_gpt_of_a_disk_with_large_blocks_is_found() -> None:
    head, _tail, size = placed(SIZE, (510, b"\x55\xaa"), (450, b"\xee"), (4096, b"EFI PART"))
    assert partition_table(head, 4096, size) == "gpt"


def test_boot_sector_of_a_filesystem_is_no_partition_table() -> None:
    head, _tail, size = placed(SIZE, (0, FAT32), (446, bytes(range(64))), (510, b"\x55\xaa"))
    assert partition_table(head, 512, size) == "none"
    head, _tail, size = placed(SIZE, (510, b"\x55\xaa"))
    assert partition_table(head, 512, size) == "none"


def test_entries_beyond_the_end_are_no_partition_table() -> None:
    entry = b"\x80\0\0\0\x83\0\0\0" + struct.pack("<II", SIZE // 512 + 1, 8)
    head, _tail, size = placed(SIZE, (446, entry), (510, b"\x55\xaa"))
    assert partition_table(head, 512, size) == "none"


@given(head=st.binary(max_size=6000), tail=st.binary(max_size=6000), size=st.integers(0, 1 << 50))
def test_no_content_of_a_disk_breaks_the_reading(head: bytes, tail: bytes, size: int) -> None:
    signature(head, tail, size)
    assert partition_table(head, 512, size) in ("none", "dos", "gpt")


@given(st.sampled_from([b"LABELONE", b"LUKS\xba\xbe\0\2", b"XFSB", RAID_MAGIC + b"\1\0\0\0"]), st.binary(max_size=300))
def test_damaged_content_behind_a_signature_breaks_nothing(magic: bytes, rest: bytes) -> None:
    signature(magic + rest, rest, len(magic + rest))


@given(st.text(max_size=400))
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_os_release(text)
    parse_meminfo(text)
    parse_swaps(text)
    assert parse_mountinfo(text) == []


def test_os_release_is_read_with_and_without_quotes() -> None:
    text = '# comment\nPRETTY_NAME="Red \\"Hat\\" 9"\nID=\'rhel\'\nVERSION_ID=9.4\n'
    assert parse_os_release(text) == {"id": "rhel", "version": "9.4", "pretty": 'Red "Hat" 9'}


def test_old_kernels_without_an_estimate_count_free_and_cached_memory() -> None:
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 30 kB\n"
    assert parse_meminfo(text) == {"total": 1000 * 1024, "available": 150 * 1024}
    assert parse_meminfo(text + "MemAvailable: 500 kB\n")["available"] == 500 * 1024


class Recorded:
    """A server of which only these files and devices exist."""

    def __init__(self, files: dict[str, str], devices: dict[str, tuple[bytes, bytes] | OSError] | None = None) -> None:
        self.files = files
        self.devices = devices or {}
        self.btrfs: dict[str, str] = {}
        self.links: dict[str, str] = {}

    def text(self, path: str) -> str | None:
        text = self.files.get(path)
        return None if text is None else text.strip()

    def data(self, path: str) -> bytes | None:
        text = self.files.get(path)
        return None if text is None else text.encode("latin-1")

    def real(self, path: str) -> str:
        return self.links.get(path, path)

    def names(self, path: str) -> list[str]:
        return sorted({file[len(path) + 1 :].partition("/")[0] for file in self.files if file.startswith(path + "/")})

    def exists(self, path: str) -> bool:
        return path in self.files

    def ends(self, path: str, size: int) -> tuple[bytes, bytes]:
        found = self.devices.get(path, (b"", b""))
        if isinstance(found, OSError):
            raise found
        return found

    def usage(self, mountpoint: str) -> tuple[int, int] | None:
        return (1000, 400)

    def btrfs_id(self, mountpoint: str) -> str | None:
        return self.btrfs.get(mountpoint)


def disk_files(name: str, number: str, size: int, **attributes: str) -> dict[str, str]:
    sysfs = f"/sys/block/{name}"
    named = {f"{sysfs}/{key.replace('__', '/')}": value for key, value in attributes.items()}
    return {f"{sysfs}/dev": number, f"{sysfs}/size": str(size // 512), **named}


def partition_files(disk: str, number: int, start: int, sectors: int) -> dict[str, str]:
    sysfs = f"/sys/block/{disk}/{disk}{number}"
    return {
        f"{sysfs}/partition": str(number),
        f"{sysfs}/dev": f"8:{number}",
        f"{sysfs}/start": str(start),
        f"{sysfs}/size": str(sectors),
    }


@pytest.mark.parametrize("name", ["sda", "vdb", "nvme0n1", "xvda", "hdc", "mmcblk0", "cciss!c0d0", "dasda", "nbd0"])
def test_names_of_disks_are_disks(name: str) -> None:
    assert is_disk(Recorded(disk_files(name, "8:0", MIB)), name)


@pytest.mark.parametrize(
    "name", ["loop0", "ram1", "zram0", "sr0", "fd0", "dm-3", "md127", "md_d0", "mmcblk0boot0", "mmcblk0rpmb", "zd16"]
)
def test_names_of_other_devices_are_no_disks(name: str) -> None:
    assert not is_disk(Recorded(disk_files(name, "8:0", MIB)), name)


def test_disk_without_medium_and_hidden_path_are_no_disks() -> None:
    assert not is_disk(Recorded(disk_files("sdb", "8:16", 0)), "sdb")
    assert not is_disk(Recorded(disk_files("nvme0c0n1", "259:1", MIB, hidden="1")), "nvme0c0n1")


def test_name_decides_and_not_the_device_number() -> None:
    """A loop device may be shown under the name of a disk."""
    (disk,), _findings = find_disks(Recorded(disk_files("sda", "7:4", 8 * MIB, ro="0", device__serial="SN-1")))
    assert (disk["path"], disk["serial"], disk["size"]) == ("/dev/sda", "SN-1", 8 * MIB)


def test_partitions_volumes_and_swap_belong_to_their_disk() -> None:
    part = "/sys/block/sda"
    files = {
        **disk_files("sda", "8:0", 100 * MIB, removable="0", ro="0", queue__logical_block_size="512"),
        **partition_files("sda", 1, 2048, 20480),
        **partition_files("sda", 2, 22528, 40960),
        **partition_files("sda", 10, 70000, 8),
        f"{part}/sda2/holders/dm-0/dev": "253:0",
        f"{part}/sda2/holders/dm-1/dev": "253:1",
        **disk_files("dm-0", "253:0", 15 * MIB, dm__uuid="LVM-abc", dm__name="vg-root"),
        **disk_files("dm-1", "253:1", 5 * MIB, dm__uuid="CRYPT-LUKS2-abc", dm__name="swap"),
        "/proc/swaps": "Filename Type Size Used Priority\n/dev/mapper/swap partition 5 0 -2\n",
        "/proc/self/mountinfo": (
            "20 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw\n"
            "21 20 8:1 / /boot\\040files rw - ext4 /dev/sda1 rw\n"
            "22 20 253:0 /srv /srv rw - ext4 /dev/mapper/vg-root rw\n"
            "23 20 0:25 / /proc rw - proc proc rw\n"
        ),
    }
    head, tail, _size = placed(SIZE, EXT4)
    lvm = placed(SIZE, (512, LVM))[:2]
    system = Recorded(files, {"/dev/sda1": (head, tail), "/dev/sda2": lvm, "/dev/dm-0": (head, tail)})
    (disk,), findings = find_disks(system)
    assert findings == []
    assert [partition["number"] for partition in disk["partitions"]] == [1, 2, 10]
    assert disk["partitions"][0] == {
        "name": "sda1", "path": "/dev/sda1", "number": 1, "start": MIB, "size": 10 * MIB,
    }  # fmt: skip
    assert [(held["device"], held["type"], held["mountpoints"]) for held in disk["filesystems"]] == [
        ("/dev/sda1", "ext4", ["/boot files"]),
        ("/dev/sda2", "LVM2_member", []),
        ("/dev/dm-0", "ext4", ["/", "/srv"]),
    ]
    assert [filesystem["used_bytes"] for filesystem in disk["filesystems"]] == [600, None, 600]
    assert [(holder["type"], holder["volume"]) for holder in disk["holders"]] == [("lvm", "vg-root"), ("crypt", "swap")]
    assert disk["swap"] == ["/dev/dm-1"]
    assert disk["system"] is True
    assert disk["mounted"] is True


def test_agent_takes_the_same_devices_for_disks() -> None:
    """It runs on its own there, and cannot ask us."""
    assert unplanned.NO_DISK.pattern == NO_DISK.pattern


def test_partitions_of_a_raid_belong_to_its_disks() -> None:
    files = {
        **disk_files("sdb", "8:16", 100 * MIB),
        "/sys/block/sdb/holders/md126/dev": "9:126",
        **disk_files("md126", "9:126", 90 * MIB),
        "/sys/block/md126/md126p1/partition": "1",
        "/sys/block/md126/md126p1/dev": "259:3",
        "/sys/block/md126/md126p1/size": "2048",
        "/proc/self/mountinfo": "20 1 259:3 / /srv rw - ext4 /dev/md126p1 rw\n",
    }
    head, tail, _size = placed(SIZE, EXT4)
    (disk,), _findings = find_disks(Recorded(files, {"/dev/md126p1": (head, tail)}))
    assert disk["mounted"]
    assert [held["mountpoints"] for held in disk["filesystems"]] == [["/srv"]]
    assert [holder["path"] for holder in disk["holders"]] == ["/dev/md126", "/dev/md126p1"]


def test_btrfs_is_matched_by_its_uuid_when_number_and_source_say_nothing() -> None:
    block = bytes(32) + RAW_UUID + bytes(16) + b"_BHRfS_M"
    head, tail, _size = placed(SIZE, (65536, block))
    files = {
        **disk_files("sda", "8:0", SIZE),
        **disk_files("sdb", "8:16", SIZE),
        "/proc/self/mountinfo": "20 1 0:30 /@ / rw - btrfs /dev/loop7 rw\n21 1 0:31 / /other rw - btrfs /dev/sdc rw\n",
    }
    system = Recorded(files, {"/dev/sda": (head, tail)})
    system.btrfs = {"/": UUID, "/other": str(uuid.uuid4())}
    (sda, sdb), _findings = find_disks(system)
    assert [filesystem["mountpoints"] for filesystem in sda["filesystems"]] == [["/"]]
    assert (sda["system"], sdb["mounted"]) == (True, False)


def test_unreadable_disk_blocks_only_when_something_is_mounted_from_it() -> None:
    files = {
        **disk_files("sda", "8:0", SIZE),
        **disk_files("sdb", "8:16", SIZE),
        "/proc/self/mountinfo": "20 1 8:0 / / rw - ext4 /dev/sda rw\n",
    }
    broken = OSError(5, "Input/output error")
    disks, findings = find_disks(Recorded(files, {"/dev/sda": broken, "/dev/sdb": broken}))
    assert [(finding.code, finding.subject, finding.severity) for finding in findings] == [
        ("DISK_UNREADABLE", "/dev/sda", "blocker"),
        ("DISK_UNREADABLE", "/dev/sdb", "warning"),
    ]
    assert disks[0]["partition_table"] is None
    assert disks[0]["filesystems"][0]["type"] == "ext4"


def test_serial_of_a_scsi_disk_is_read_from_its_page() -> None:
    page = "\x00\x80\x00\x08SN-42   "
    (disk,), _findings = find_disks(Recorded(disk_files("sda", "8:0", SIZE, device__vpd_pg80=page)))
    assert disk["serial"] == "SN-42"


def findings_of(**changes: Any) -> list[tuple[str, str]]:
    healthy: dict[str, Any] = {
        "root": True,
        "python": (3, 11, 2),
        "memory": {"total": 2 << 30, "available": 1 << 30},
        "epoch": 1000000.0,
        "controller_time": None,
        "disks": [{"system": True}],
    }
    return [(finding.code, finding.severity) for finding in host_findings(**{**healthy, **changes})]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"root": False}, [("NOT_ROOT", "blocker")]),
        ({"python": (3, 8, 18)}, [("PYTHON_TOO_OLD", "blocker")]),
        ({"python": (3, 9, 0)}, []),
        ({"memory": {"available": 100 << 20}}, [("MEMORY_LOW", "warning")]),
        ({"memory": {"available": 10 << 20}}, [("MEMORY_LOW", "blocker")]),
        ({"controller_time": 1000300.0}, []),
        ({"controller_time": 1000301.0}, [("CLOCK_SKEW", "warning")]),
        ({"controller_time": 900000.0}, [("CLOCK_SKEW", "blocker")]),
        ({"unknown_services": ["nope"]}, [("SERVICE_UNKNOWN", "blocker")]),
        ({"disks": [{"system": False}]}, [("SYSTEM_DISK_NOT_FOUND", "blocker")]),
    ],
)
def test_what_stands_in_the_way_is_found(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert findings_of(**changes) == expected


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_module_reports_the_disks_that_the_server_shows(tmp_path: Path, kind: str) -> None:
    """The module itself, through Ansible, on a server whose /sys and /dev show one disk only."""
    with loop_device(tmp_path / "disk.img", 128 * MIB) as device, mount_namespace() as namespace:
        run(f"mkfs.{kind}", "-q", device)
        host = HostTree.create(tmp_path / "host")
        block = host.add_disk("sda", device, "SN-1", node=False)
        (block / "size").write_text(f"{128 * MIB // 512}\n")
        namespace.run("mkdir", "/mnt/data")
        namespace.run("mount", device, "/mnt/data")
        namespace.run("mount", "--bind", host.sys / "block", "/sys/block")
        with_disk = namespace.root / "dev" / "sda"
        namespace.run("mount", "-t", "tmpfs", "tmpfs", "/dev")
        os.mknod(with_disk, 0o600 | stat.S_IFBLK, device.stat().st_rdev)
        for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
            os.mknod(namespace.root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        namespace.run("mkdir", "/dev/shm")
        collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift/cvm").exists())
        arguments = json.dumps({"services": ["no-such-service"], "controller_time": 0, "tools": ["sh", "no-such-tool"]})
        output = namespace.run(
            "env", f"ANSIBLE_COLLECTIONS_PATH={collections}", f"ANSIBLE_HOME={tmp_path}/ansible", "LC_ALL=C.UTF-8",
            Path(sys.executable).parent / "ansible", "localhost", "--one-line", "--check", "--connection", "local",
            "--extra-vars", f"ansible_python_interpreter={sys.executable}",
            "--module-name", "fleetlift.cvm.preflight", "--args", arguments,
        )  # fmt: skip
    result = json.loads(output[output.index("=> ") + 3 :])
    assert result["changed"] is False
    (disk,) = result["facts"]["disks"]
    assert (disk["path"], disk["serial"], disk["size"]) == ("/dev/sda", "SN-1", 128 * MIB)
    (filesystem,) = disk["filesystems"]
    assert (filesystem["type"], filesystem["mountpoints"]) == (kind, ["/mnt/data"])
    assert filesystem["size_bytes"] == filesystem["used_bytes"] + filesystem["free_bytes"] > 0
    assert (disk["mounted"], disk["system"], disk["partition_table"]) == (True, False, "none")
    assert result["facts"]["tools"] == ["sh"]
    codes = {finding["code"]: finding["severity"] for finding in result["findings"]}
    assert codes["SERVICE_UNKNOWN"] == codes["CLOCK_SKEW"] == codes["SYSTEM_DISK_NOT_FOUND"] == "blocker"
