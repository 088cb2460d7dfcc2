# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is parsed by pure functions: fstab, mountinfo, the ledger, the supervisor's verdict."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import namespaces as ns
from lab.errors import LabError
from lab.freezing import parse_mountinfo
from lab.ledger import Ledger
from lab.machines.devices import Disk
from lab.machines.fstab import Mount, parse_fstab
from lab.machines.init import find_disk
from lab.machines.supervisor import cause_of
from lab.place import Place
from lab.processes import ProcessIdentity, identify, is_alive

DISK = Disk("sdb", os.makedev(7, 3), 1 << 30, "LAB-1", "xfs", "b89bc152-efea")


def test_fstab_gives_what_is_mounted_after_the_root() -> None:
    text = """\
# comment
UUID=1 / ext4 errors=remount-ro 0 1
UUID=b89bc152-efea /var/lib\\040x xfs defaults,noatime,logbufs=8 0 2
UUID=2 /backup auto nofail,ro,x-systemd.automount 0 0
UUID=3 /later ext4 noauto 0 0
UUID=4 none swap sw 0 0
proc /proc proc defaults 0 0
short line
"""
    assert parse_fstab(text) == [
        Mount("UUID=b89bc152-efea", "/var/lib x", "xfs", ns.MS_NOATIME, "logbufs=8", False),
        Mount("UUID=2", "/backup", "auto", ns.MS_RDONLY, "", True),
    ]


@given(st.text())
def test_fstab_is_never_too_odd(text: str) -> None:
    parse_fstab(text)


@pytest.mark.parametrize(
    "spec",
    ["/dev/sdb", "UUID=b89bc152-efea", 'UUID="b89bc152-efea"', "/dev/disk/by-uuid/b89bc152-efea",
     "/dev/disk/by-id/ata-LAB_DISK_LAB-1"],
)  # fmt: skip
def test_disk_is_found_by_every_name(spec: str) -> None:
    assert find_disk(spec, [DISK]) is DISK


def test_disk_without_uuid_is_not_found_by_an_empty_one() -> None:
    blank = Disk("sdb", 1, 1, "LAB-2", "", "")
    assert find_disk("UUID=", [blank]) is None
    assert find_disk("UUID=b89bc152-efea", [blank]) is None


def test_mountinfo_names_are_unescaped() -> None:
    line = "75 46 7:3 / /mnt/a\\040b\\134c rw,relatime shared:1 - ext4 /dev/sda rw,errors=remount-ro\n"
    (entry,) = parse_mountinfo(line)
    assert (entry.mountpoint, entry.device, entry.source) == ("/mnt/a b\\c", os.makedev(7, 3), "/dev/sda")
    assert not entry.read_only
    (read_only,) = parse_mountinfo(line.replace(" rw,errors", " ro,errors"))
    assert read_only.read_only


def test_own_mountinfo_is_understood() -> None:
    text = Path("/proc/self/mountinfo").read_text()
    assert "/" in {entry.mountpoint for entry in parse_mountinfo(text)}


def test_ledger_lists_what_was_written_and_skips_a_line_cut_short(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.read().namespaces == ()
    ledger.namespace("fl-x-net")
    ledger.namespace("fl-x-net")
    ledger.cgroup("/sys/fs/cgroup/devices/fl-x-web")
    ledger.process(ProcessIdentity(4711, 12))
    with ledger.path.open("a") as stream:
        stream.write('{"kind": "namespace", "na')
    holdings = ledger.read()
    assert holdings.namespaces == ("fl-x-net",)
    assert holdings.cgroups == ("/sys/fs/cgroup/devices/fl-x-web",)
    assert holdings.processes == (ProcessIdentity(4711, 12),)


def test_processes_of_another_boot_are_not_the_labs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.process(ProcessIdentity(1, 1))
    ledger.path.write_text(ledger.path.read_text().replace('"boot": "', '"boot": "other-'))
    assert ledger.read().processes == ()


def test_recycled_process_id_is_another_process() -> None:
    myself = identify(os.getpid())
    assert myself is not None and is_alive(myself)
    assert not is_alive(ProcessIdentity(myself.pid, myself.start - 1))


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (signal.SIGINT.value, "power_off"),
        (signal.SIGHUP.value, "reboot"),
        (signal.SIGKILL.value, "cut"),
        (0, "power_off"),
        (64 << 8, "reboot"),
        (1 << 8, "failed"),
    ],
)
def test_end_of_process_one_says_why_the_machine_ended(status: int, cause: str) -> None:
    assert cause_of(status) == cause


@pytest.mark.parametrize("name", ["", "Demo", "a-b", "../x", "toolonganame1", "1st"])
def test_bad_lab_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot be a lab's name"):
        Place.of(name)


@pytest.mark.parametrize("directory", ["here", "/with:colon", "/with space", "/" + "long" * 30])
def test_directory_that_cannot_work_is_refused(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETLIFT_LAB_DIR", directory)
    with pytest.raises(LabError, match="FLEETLIFT_LAB_DIR is"):
        Place.of("demo")
