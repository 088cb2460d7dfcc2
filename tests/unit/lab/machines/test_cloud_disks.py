# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an instance's disks hold after a snapshot, a rollback and a reset, with real machines."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lab import loopdisk
from lab.cloud.hypervisor import DiskSpec, InstanceSpec, PacketRule
from lab.hypervisor import LabHypervisor
from lab.imagelibrary import ImageLibrary
from lab.loopdisk import COPY_STEP, copy_sparse

from .conftest import Bench, eventually

PASSWORD = "Stock-pass-42"
INSTANCE = "ins-snap0001"
DISK = "disk-snap001"
ADDRESS = "203.0.113.11"
SPEC = InstanceSpec(
    instance_id=INSTANCE,
    name="target",
    host_name="stock",
    zone="ap-guangzhou-3",
    private_addresses=("10.97.0.11",),
    public_addresses=(ADDRESS,),
    cpu=1,
    memory_gb=1,
    image_id="img-debian12",
    disks=(DiskSpec(DISK, DISK, 1, "SYSTEM_DISK"),),
    password=PASSWORD,
)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_copy_keeps_bytes_and_holes_and_tells_how_far_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    size = 5 * COPY_STEP + 4096
    loopdisk.create_sparse(source, size)
    with source.open("r+b") as stream:
        for offset in (0, 2 * COPY_STEP + 4096, size - 100):
            stream.seek(offset)
            stream.write(b"x" * 100)
    told: list[int] = []
    copy_sparse(source, target, told.append)
    assert target.read_bytes() == source.read_bytes()
    assert allocated(target) <= allocated(source) + 3 * 4096
    assert told == sorted(set(told)) and told[-1] == 100


def test_copy_of_nothing_but_a_hole_is_one(tmp_path: Path) -> None:
    loopdisk.create_sparse(tmp_path / "source", COPY_STEP)
    copy_sparse(tmp_path / "source", tmp_path / "target")
    assert allocated(tmp_path / "target") == 0
    assert (tmp_path / "target").stat().st_size == COPY_STEP


@pytest.mark.root
def test_running_instance_goes_back_to_its_snapshot_and_to_its_image(bench: Bench) -> None:
    images = ImageLibrary(bench.place.directory / "images", socket.socket)
    hypervisor = LabHypervisor(bench.site, bench.network, bench.place.directory / "disks", images)
    hypervisor.create_disk(DISK, 1)
    hypervisor.create(SPEC)
    everything = [PacketRule("all", (), "0.0.0.0/0", "ACCEPT")]
    hypervisor.set_policies(INSTANCE, everything, everything)
    hypervisor.start(INSTANCE)

    def does(command: str) -> bool:
        return bench.ssh(ADDRESS, command, PASSWORD).returncode == 0

    eventually(lambda: does("echo kept > /root/kept && sync"), "ssh")
    told: list[int] = []
    hypervisor.snapshot_disk(DISK, "snap-00000001", told.append)
    assert told[-1] == 100
    # The machine works on afterwards: its filesystems were thawed.
    assert does("rm /root/kept && echo new > /root/new && sync")
    hypervisor.stop(INSTANCE, hard=True)

    hypervisor.apply_snapshot("snap-00000001", DISK)
    hypervisor.start(INSTANCE)
    eventually(lambda: does("grep -q kept /root/kept && ! test -e /root/new"), "the disk of the snapshot")
    hypervisor.stop(INSTANCE, hard=True)

    hypervisor.reinstall(SPEC)
    hypervisor.start(INSTANCE)
    eventually(lambda: does("! test -e /root/kept"), "the fresh image")
    hypervisor.delete_snapshot("snap-00000001")
    hypervisor.delete_snapshot("snap-00000001")
    assert list((bench.place.directory / "disks" / "snapshots").iterdir()) == []
    hypervisor.destroy(INSTANCE)
