# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that comes into use after the plan was made is told, and no cutover goes past it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from block_devices import MIB, HostTree, loop_device, run
from fleetlift_agent import unplanned
from fleetlift_agent.errors import AgentError
from fleetlift_agent.unplanned import UnplannedDisks

pytestmark = pytest.mark.root


@pytest.fixture
def planned(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "planned", 16 * MIB) as device:
        yield device


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "newcomer", 128 * MIB) as device:
        yield device


@pytest.fixture
def host(tmp_path: Path, planned: Path, newcomer: Path) -> HostTree:
    """A server with the disks sda, which is migrated, and sdb."""
    host = HostTree.create(tmp_path / "host")
    host.add_disk("sda", planned, "A")
    host.add_disk("sdb", newcomer, "B")
    return host


@contextmanager
def mounted(device: Path, mountpoint: Path) -> Iterator[Path]:
    mountpoint.mkdir()
    run("mount", device, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


@contextmanager
def volume_in_use(host: HostTree, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A volume on sda that is mounted: its directory in /sys, and where."""
    with loop_device(tmp_path / "volume", 16 * MIB) as device:
        volume = host.add_disk("dm-0", device, "")
        (host.sys / "block/sda/holders/dm-0").symlink_to(volume)
        run("mkfs.ext4", "-q", device)
        with mounted(device, tmp_path / "data") as mountpoint:
            yield volume, mountpoint


def looked_at(host: HostTree, planned: Path, *left_behind: str) -> UnplannedDisks:
    # The mounts are this process's own.
    return UnplannedDisks([planned], left_behind, sys=host.sys)


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs"])
def test_disk_that_comes_into_use_is_told_and_refused(
    host: HostTree, planned: Path, newcomer: Path, tmp_path: Path, filesystem: str
) -> None:
    subject = looked_at(host, planned)
    run(f"mkfs.{filesystem}", "-q", newcomer)
    assert subject.in_use() == []
    subject.refuse()
    with mounted(newcomer, tmp_path / "srv") as mountpoint:
        assert subject.in_use() == [{"device": "/dev/sdb", "mounts": [str(mountpoint)]}]
        with pytest.raises(AgentError) as caught:
            subject.refuse()
        assert caught.value.code == "SOURCE_DISK_UNPLANNED"
        assert str(mountpoint) in str(caught.value)
        looked_at(host, planned, "/dev/sdb").refuse()
    subject.refuse()


def test_disk_that_joins_a_volume_in_use_is_refused(
    host: HostTree, planned: Path, newcomer: Path, tmp_path: Path
) -> None:
    """As when a volume group is extended by a new disk: its volume is mounted, the disk itself is not."""
    with volume_in_use(host, tmp_path) as (volume, mountpoint):
        subject = looked_at(host, planned)
        assert subject.in_use() == []
        (host.sys / "block/sdb/holders/dm-0").symlink_to(volume)
        assert subject.in_use() == [{"device": "/dev/sdb", "mounts": [str(mountpoint)]}]


def test_another_path_to_a_planned_disk_is_none_of_its_own(host: HostTree, newcomer: Path, tmp_path: Path) -> None:
    """Multipath: the map is what is migrated, sda and sdb lead to it."""
    with loop_device(tmp_path / "map", 16 * MIB) as device:
        map_of_both = host.add_disk("dm-0", device, "")
        for name in ("sda", "sdb"):
            (host.sys / "block" / name / "holders/dm-0").symlink_to(map_of_both)
        run("mkfs.ext4", "-q", device)
        with mounted(device, tmp_path / "data"):
            assert looked_at(host, device).in_use() == []


def test_images_that_are_mounted_are_files_of_a_disk(host: HostTree, planned: Path, tmp_path: Path) -> None:
    """Loop devices and memory, which the real /sys of this host has too."""
    with loop_device(tmp_path / "image", 16 * MIB) as device:
        host.add_disk("loop7", device, "")
        run("mkfs.ext4", "-q", device)
        with mounted(device, tmp_path / "snap"):
            assert looked_at(host, planned).in_use() == []


def test_another_disk_with_the_path_of_one_that_stays_behind(
    host: HostTree, planned: Path, newcomer: Path, tmp_path: Path
) -> None:
    """sdb was unplugged, and the next disk is called sdb now. (The kernel counts disks as they appear.)"""
    (host.sys / "block/sdb/diskseq").write_text("7\n")
    run("mkfs.ext4", "-q", newcomer)
    with mounted(newcomer, tmp_path / "srv"):
        subject = looked_at(host, planned, "/dev/sdb")
        assert subject.in_use() == []
        (host.sys / "block/sdb/diskseq").write_text("9\n")
        # Plugged in again.
        assert subject.in_use() == []
        (host.sys / "block/sdb/serial").write_text("another\n")
        assert [disk["device"] for disk in subject.in_use()] == ["/dev/sdb"]


def test_disk_that_stays_behind_may_not_join_a_volume_that_is_migrated(
    host: HostTree, planned: Path, newcomer: Path, tmp_path: Path
) -> None:
    with volume_in_use(host, tmp_path) as (volume, _mountpoint):
        before = looked_at(host, planned, "/dev/sdb")
        (host.sys / "block/sdb/holders/dm-0").symlink_to(volume)
        assert [disk["device"] for disk in before.in_use()] == ["/dev/sdb"]
        # Accepted as it is now.
        assert looked_at(host, planned, "/dev/sdb").in_use() == []


def test_device_that_vanishes_while_it_is_looked_at_does_not_hide_its_disk(
    host: HostTree, planned: Path, newcomer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = looked_at(host, planned)
    run("mkfs.ext4", "-q", newcomer)
    family = unplanned.device_family
    vanishing = iter([FileNotFoundError(2, "a snapshot's device"), OSError(19, "its attribute")])

    def walked(number: int, sys: Path) -> list[int]:
        if error := next(vanishing, None):
            raise error
        return family(number, sys)

    monkeypatch.setattr(unplanned, "device_family", walked)
    with mounted(newcomer, tmp_path / "srv"):
        assert [disk["device"] for disk in subject.in_use()] == ["/dev/sdb"]


def test_disks_without_medium_are_not_read(host: HostTree, planned: Path, tmp_path: Path) -> None:
    """With a btrfs mounted somewhere: whose it is says the kernel. The nodes of this host's disks lead nowhere."""
    with loop_device(tmp_path / "btrfs", 128 * MIB) as device:
        run("mkfs.btrfs", "-q", device)
        with mounted(device, tmp_path / "data") as mountpoint:
            subject = looked_at(host, planned)
            for node in host.dev.glob("sd*"):
                node.unlink()
            assert subject.in_use() == []
            host.add_disk("sdc", device, "C")
            assert subject.in_use() == [{"device": "/dev/sdc", "mounts": [str(mountpoint)]}]
