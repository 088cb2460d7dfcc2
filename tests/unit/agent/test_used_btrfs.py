# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Btrfs: what no extent stands for and yet is kept, and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent.usedblocks import btrfs
from fleetlift_agent.usedblocks.runs import FreeRuns
from fleetlift_agent.usedblocks.volume import BufferedDevice, ReadInFull, Volume

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import MIB, mount_namespace, run
from used_filesystems import copy_sparse, loop_over, memory_directory, mounted_at

pytestmark = pytest.mark.root


@pytest.fixture
def image() -> Iterator[Path]:
    with memory_directory() as directory:
        yield directory / "disk.img"


def make(image: Path, size: int, *options: str) -> None:
    with image.open("wb") as file:
        file.truncate(size * MIB)
    run("mkfs.btrfs", "-q", *options, image)


def free_of(image: Path) -> FreeRuns:
    with image.open("rb", buffering=0) as file:
        return btrfs.free_runs(Volume(BufferedDevice(file.fileno()), 0, image.stat().st_size))


def test_every_copy_of_the_superblock_and_the_boot_area_are_kept(image: Path) -> None:
    """257 GiB have the third copy; none of them is recorded as an extent."""
    make(image, 257 << 10)
    free = free_of(image)
    assert free.total > 256 << 30
    for start, end in [(0, MIB), *((copy, copy + 65536) for copy in (65536, 64 * MIB, 256 << 30))]:
        assert free.within(start, end) == []
    with image.open("rb") as file:
        for copy in (65536, 64 * MIB, 256 << 30):
            file.seek(copy + 64)
            assert file.read(8) == btrfs.MAGIC


def test_several_devices_are_read_in_full(image: Path) -> None:
    second = image.with_name("second.img")
    for path in (image, second):
        with path.open("wb") as file:
            file.truncate(200 * MIB)
    with loop_over(image) as one, loop_over(second) as two:
        run("mkfs.btrfs", "-q", "-d", "single", "-m", "single", one, two)
        with pytest.raises(ReadInFull, match="spans 2 devices"):
            free_of(image)


def test_pending_log_is_read_in_full(image: Path) -> None:
    """What fsync left in the log is in no extent tree before the next transaction."""
    make(image, 200)
    crashed = image.with_name("crashed.img")
    with (
        mount_namespace() as namespace,
        loop_over(image) as device,
        mounted_at(namespace, device, "/mnt/source", "btrfs", "commit=300") as root,
    ):
        with (root / "file").open("wb") as file:
            file.write(os.urandom(MIB))
            run("sync", "--file-system", root)
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        copy_sparse(image, crashed)
    with pytest.raises(ReadInFull, match="log"):
        free_of(crashed)
    assert free_of(image).total > 100 * MIB


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (188, 1 << 13, "features"),
        (180, 1 << 20, "features"),
        (56, 1 | 1 << 32, "features"),
        (148, 5000, "does not fit"),
        (209, 1 << 50, "does not fit"),
        (80, 77 << 40, "in no chunk"),
        (72, 999_999, "damaged"),
        (120, 4096, "superblock states"),
    ],
)
def test_damage_and_novelty_are_read_in_full(offset: int, value: int, reason: str, image: Path) -> None:
    make(image, 200)
    with image.open("r+b") as file:
        file.seek(btrfs.SUPERBLOCK + offset)
        file.write(value.to_bytes(4 if offset == 148 else 8, "little"))
    with pytest.raises(ReadInFull, match=reason):
        free_of(image)


def test_each_damaged_tree_block_is_noticed(image: Path) -> None:
    """A tree block with the wrong address is never believed."""
    make(image, 200, "-m", "single")
    free = free_of(image)
    raw = image.read_bytes()
    fsid = raw[65536 + 32 : 65536 + 48]
    blocks = [at for at in range(MIB, len(raw), 16384) if raw[at + 32 : at + 48] == fsid]
    refused = 0
    for at in blocks:
        if free.within(at, at + 1):
            continue
        with image.open("r+b") as file:
            file.seek(at + 48)
            file.write(b"\xff" * 8)
        try:
            assert list(free_of(image)) == list(free)
        except ReadInFull:
            refused += 1
        with image.open("r+b") as file:
            file.seek(at)
            file.write(raw[at : at + 16384])
    # Chunk, root and extent tree; the others are not looked at.
    assert refused == 3
