# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The parts of virtual machines that need none to run; `make boot` runs whole ones."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab import baseroot, bootdisk, guestimage, loopdisk
from lab.command import run
from lab.description import Description, Virtual
from lab.errors import LabError
from lab.machines.protocol import MachineDisk, MachineError, State
from lab.machines.qemu import ACCELERATOR, Hardware, accelerator, disk_words
from lab.machines.qmp import Monitor
from lab.machines.virtual import VirtualMachine, wait_for

MIB = 1024 * 1024
DISKS = [MachineDisk(Path("/lab/a.img"), "disk-a"), MachineDisk(Path("/lab/b.qcow2"), "disk-b", 4 * MIB)]


def lab(source: dict[str, Any], instance: dict[str, Any]) -> dict[str, Any]:
    disk = {"device": "sda", "serial": "S0", "size_mib": 1024, "filesystem": "ext4", "mount": "/"}
    return {
        "sources": [{"name": "vm1", "address": "10.96.0.9", "disks": [disk], **source}],
        "instances": [
            {
                "id": "ins-00000001",
                "name": "target",
                "private_address": "10.97.0.9",
                "public_address": "203.0.113.9",
                "state": "STOPPED",
                "system_disk": {"id": "disk-00000001", "size_gb": 2},
                **instance,
            }
        ],
    }


@pytest.mark.parametrize(
    ("bus", "devices"),
    [
        ("ide", ["ide-hd,bus=ide.0,unit=0,", "ide-hd,bus=ide.0,unit=1,"]),
        ("ahci", ["ide-hd,bus=ide.0,", "ide-hd,bus=ide.1,"]),
        ("virtio", ["virtio-blk-pci,", "virtio-blk-pci,"]),
    ],
)
def test_every_disk_has_its_serial_and_the_first_is_booted_first(bus: str, devices: list[str]) -> None:
    words = disk_words(Hardware("bios", bus, "virtio"), DISKS)
    found = [word for before, word in zip(words, words[1:], strict=False) if before == "-device"]
    assert found == [
        f"{devices[0]}drive=disk0,serial=disk-a,bootindex=1",
        f"{devices[1]}drive=disk1,serial=disk-b,bootindex=2",
    ]
    assert [word.split(",")[1] for word in words if word.startswith("file=")] == ["format=raw", "format=qcow2"]


def test_a_disk_in_a_compressed_file_has_the_size_that_the_guest_sees() -> None:
    assert DISKS[1].size == 4 * MIB


@pytest.mark.parametrize(
    ("source", "instance", "problem"),
    [
        ({"virtual": {"firmware": "uefi"}}, {"image": "none"}, "has a gpt"),
        ({"virtual": {"lvm": True}}, {"image": "none"}, "needs separate_boot"),
        ({"virtual": {"bus": "nvme"}}, {"image": "none"}, "expected one of ide, ahci, virtio"),
        ({}, {"firmware": "bios"}, "has no stock image"),
        ({"virtual": {"tabel": "gpt"}}, {"image": "none"}, "unknown key 'tabel'"),
    ],
)
def test_mistakes_are_named(source: dict[str, Any], instance: dict[str, Any], problem: str) -> None:
    with pytest.raises(LabError) as caught:
        Description.from_dict("lab.yml", lab(source, instance))
    assert problem in caught.value.cause


def test_a_source_is_made_of_namespaces_unless_it_is_virtual() -> None:
    plain = Description.from_dict("lab.yml", lab({}, {}))
    virtual = Description.from_dict("lab.yml", lab({"virtual": {}}, {"image": "none", "firmware": "uefi"}))
    assert plain.sources[0].virtual is None and plain.instances[0].firmware == ""
    assert virtual.sources[0].virtual == Virtual("bios", "ide", "e1000", "mbr", False, False, "most")
    assert virtual.instances[0].firmware == "uefi"


@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="needs sfdisk")
@pytest.mark.parametrize(
    ("table", "lvm", "roles", "types"),
    [
        ("mbr", False, ["root"], ["83"]),
        ("mbr", True, ["boot", "root"], ["83", "8e"]),
        ("gpt", False, ["esp", "root"], [bootdisk.TYPES["gpt"]["esp"], bootdisk.TYPES["gpt"]["linux"]]),
    ],
)
def test_partitions_lie_where_they_are_said_to(
    table: str, lvm: bool, roles: list[str], types: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "disk.img"
    loopdisk.create_sparse(file, 1024 * MIB)
    parts = bootdisk.partition(file, Virtual("bios", "ide", "e1000", table, lvm, True, "most"), roles)
    on_disk = json.loads(run(["sfdisk", "--json", str(file)]))["partitiontable"]["partitions"]
    assert [part["type"] for part in on_disk] == types
    assert [(parts[role].start, parts[role].size) for role in roles] == [
        (part["start"] * 512, part["size"] * 512) for part in on_disk
    ]
    assert all(part.start % MIB == 0 for part in parts.values())
    assert parts["root"].start + parts["root"].size > 1022 * MIB


def test_the_rescue_system_brings_what_its_drivers_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/fs/jbd2/jbd2.ko:\n"
        "kernel/drivers/net/virtio_net.ko:\nkernel/sound/soundcore.ko:\n"
    )
    assert guestimage.with_dependencies(tmp_path, guestimage.RESCUE_MODULES) == [
        "kernel/drivers/net/virtio_net.ko",
        "kernel/fs/ext4/ext4.ko",
        "kernel/fs/jbd2/jbd2.ko",
    ]


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("usr/lib/systemd/", False),
        ("usr/lib/systemd/systemd-udevd", False),
        ("usr/lib/systemd/systemd-logind", True),
        ("usr/lib/modules/", True),
        ("usr/bin/python3.11", False),
        ("etc/ssh/ssh_host_rsa_key", True),
        ("etc/passwd", False),
    ],
)
def test_the_rescue_system_is_not_the_whole_system(path: str, left_out: bool) -> None:
    assert bool(guestimage.RESCUE_LEAVES_OUT.match(path)) is left_out


@contextmanager
def monitor_that_says(path: Path, *answers: str) -> Iterator[None]:
    """A QEMU that greets, and answers each command with the next of ``answers``."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        connection, _address = listening.accept()
        with connection, connection.makefile("rwb") as stream:
            for answer in ('{"QMP": {}}', '{"return": {}}', *answers):
                stream.write(answer.encode() + b"\n")
                stream.flush()
                stream.readline()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        listening.close()


def test_events_are_not_taken_for_answers(tmp_path: Path) -> None:
    with (
        monitor_that_says(tmp_path / "qmp", '{"event": "RESUME"}\n{"return": {"running": true}}'),
        Monitor(tmp_path / "qmp", lambda: True, 10) as monitor,
    ):
        assert monitor.execute("query-status") == {"running": True}


@pytest.mark.parametrize("answer", ['{"error": {"desc": "no such disk"}}', '{"return": "no such disk\\n"}'])
def test_what_qemu_refuses_is_an_error(answer: str, tmp_path: Path) -> None:
    with (
        monitor_that_says(tmp_path / "qmp", answer),
        Monitor(tmp_path / "qmp", lambda: True, 10) as monitor,
        pytest.raises(MachineError, match="no such disk"),
    ):
        monitor.human("savevm x")


def test_a_qemu_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="did not open its monitor"):
        Monitor(tmp_path / "qmp", lambda: False, 60)


@pytest.mark.parametrize(("state", "how"), [(State.OFF, "powered off"), (State.RUNNING, "SSH: not within 0 s")])
def test_a_failed_wait_shows_the_end_of_the_console(state: State, how: str) -> None:
    machine = SimpleNamespace(name="vm1", state=state, tail=lambda: "ALERT! no root")
    with pytest.raises(LabError) as caught:
        wait_for(cast(VirtualMachine, machine), lambda: False, "SSH", 0)
    assert how in caught.value.cause and "ALERT! no root" in caught.value.cause


def test_guests_are_emulated_unless_kvm_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ACCELERATOR, raising=False)
    assert accelerator()[:2] == ["-accel", "tcg,thread=multi"]
    monkeypatch.setenv(ACCELERATOR, "kvm")
    assert accelerator()[:2] == ["-accel", "kvm"]
    monkeypatch.setenv(ACCELERATOR, "hvf")
    with pytest.raises(MachineError, match="can be tcg or kvm"):
        accelerator()


def test_other_releases_come_from_the_mirror_that_this_machine_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = baseroot.apt_sources("bullseye")
    assert re.fullmatch(r"deb \S+ bullseye main", line)
    assert all(Path(path).is_file() for path in baseroot.apt_sources())


@pytest.mark.parametrize(("virtual", "prefix"), [({}, "sd"), ({"bus": "virtio"}, "vd"), ({"kind": "uml"}, "vd")])
def test_a_disk_is_called_as_its_driver_calls_it(virtual: dict[str, Any], prefix: str) -> None:
    described = lab({"virtual": virtual}, {"image": "none"})
    described["sources"][0]["disks"][0]["device"] = f"{prefix}a"
    assert Description.from_dict("lab.yml", described).sources[0].disks[0].device == f"{prefix}a"
    described["sources"][0]["disks"][0]["device"] = "vda" if prefix == "sd" else "sda"
    with pytest.raises(LabError, match=f"devices must be {prefix}a"):
        Description.from_dict("lab.yml", described)
