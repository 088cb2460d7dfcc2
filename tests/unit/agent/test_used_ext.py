# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The free blocks of ext2, ext3 and ext4, against dumpe2fs and against e2fsck."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent.usedblocks import ext
from fleetlift_agent.usedblocks.runs import FreeRuns
from fleetlift_agent.usedblocks.volume import BufferedDevice, ReadInFull, Volume

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import MIB, MountNamespace, mount_namespace, run
from used_filesystems import churn, copy_sparse, loop_over, memory_directory, mounted_at, spoil, tree_digest

pytestmark = pytest.mark.root

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "default": (1024, []),
    "odd size": (777, []),
    "block groups never used, without flex_bg": (2048, ["-O", "^flex_bg,uninit_bg,^metadata_csum"]),
    "without flex_bg": (2048, ["-O", "^flex_bg"]),
    "1 KiB blocks": (300, ["-b", "1024"]),
    "2 KiB blocks": (500, ["-b", "2048"]),
    "without 64bit": (600, ["-O", "^64bit"]),
    "ext2": (400, ["-t", "ext2"]),
    "ext2 revision 0": (100, ["-t", "ext2", "-r", "0"]),
    "ext3": (400, ["-t", "ext3"]),
    "meta_bg": (2048, ["-O", "meta_bg,^resize_inode"]),
    "meta_bg, 1 KiB blocks, without flex_bg": (400, ["-b", "1024", "-O", "meta_bg,^resize_inode,^flex_bg"]),
    "sparse_super2": (1024, ["-O", "sparse_super2"]),
    "without sparse_super": (1024, ["-t", "ext3", "-O", "^sparse_super,^resize_inode"]),
    "resize_inode": (600, ["-O", "resize_inode", "-E", "resize=4000000"]),
    "mmp": (300, ["-O", "mmp"]),
    "bigalloc": (1024, ["-O", "bigalloc", "-C", "65536"]),
    "bigalloc, 1 KiB blocks": (400, ["-b", "1024", "-O", "bigalloc"]),
}


@pytest.fixture(scope="module")
def namespace() -> Iterator[MountNamespace]:
    with mount_namespace() as namespace:
        yield namespace


@pytest.fixture
def image() -> Iterator[Path]:
    with memory_directory() as directory:
        yield directory / "disk.img"


def make(image: Path, size: int, options: list[str]) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-F", *(() if "-t" in options else ("-t", "ext4")), *options, image)


def free_of(image: Path, *, live: bool = False) -> FreeRuns:
    with image.open("rb", buffering=0) as file:
        return ext.free_runs(Volume(BufferedDevice(file.fileno()), 0, image.stat().st_size), live=live)


def dumped(image: Path) -> list[tuple[int, int]]:
    """What dumpe2fs calls free, in bytes, joined."""
    text = run("dumpe2fs", image)
    block = int(re.findall(r"Block size: +(\d+)", text)[0])
    # The end of a range of clusters is printed as the first block of the last cluster.
    unit = int((re.findall(r"Cluster size: +(\d+)", text) or [block])[0])
    limit = int(re.findall(r"Block count: +(\d+)", text)[0]) * block
    runs: list[tuple[int, int]] = []
    for part in re.findall(r"(\d+(?:-\d+)?)", ", ".join(re.findall(r"^  Free blocks: (.*)$", text, re.MULTILINE))):
        first, _dash, last = part.partition("-")
        start, end = int(first) * block, min(limit, int(last or first) * block + unit)
        if runs and runs[-1][1] == start:
            start = runs.pop()[0]
        runs.append((start, end))
    return runs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_free_blocks_are_those_of_dumpe2fs_and_nobody_misses_them(
    layout: str, image: Path, namespace: MountNamespace
) -> None:
    size, options = LAYOUTS[layout]
    make(image, size * MIB, options)
    assert list(free_of(image)) == dumped(image), "just made"
    with loop_over(image) as device, mounted_at(namespace, device, "/mnt/source", "ext4") as root:
        churn(root, seed=size, steps=90, budget=30 * MIB)
        before = tree_digest(root)
    free = free_of(image)
    assert list(free) == dumped(image)
    assert spoil(image, free) == free.total > size * MIB // 3
    run("e2fsck", "-fn", image)
    with loop_over(image) as device, mounted_at(namespace, device, "/mnt/copy", "ext4", "ro") as root:
        assert tree_digest(root) == before


def test_one_used_block_called_free_is_noticed(image: Path, namespace: MountNamespace) -> None:
    """The proof above is one: it fails for a map that is wrong by a single block, of data or of metadata."""
    make(image, 200 * MIB, ["-b", "4096"])
    with loop_over(image) as device, mounted_at(namespace, device, "/mnt/source", "ext4") as root:
        churn(root, seed=1, steps=40, budget=20 * MIB)
        (root / "file").write_bytes(os.urandom(64 << 10))
        before = tree_digest(root)
    number = int(run("debugfs", "-R", "bmap /file 3", image).splitlines()[-1])
    data = copy_sparse(image, image.with_name("data.img"))
    spoil(data, [(number * 4096, number * 4096 + 4096)])
    with loop_over(data) as device, mounted_at(namespace, device, "/mnt/copy", "ext4", "ro") as root:
        assert tree_digest(root) != before
    table = int(re.findall(r"Inode table at (\d+)", run("dumpe2fs", image))[0])
    spoil(image, [(table * 4096, table * 4096 + 4096)])
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True).returncode != 0


def test_journal_that_needs_a_replay_is_not_trusted(image: Path, namespace: MountNamespace) -> None:
    make(image, 64 * MIB, ["-b", "4096"])
    crashed = image.with_name("crashed.img")
    with loop_over(image) as device, mounted_at(namespace, device, "/mnt/source", "ext4") as root:
        (root / "file").write_bytes(bytes(MIB))
        run("sync", "--file-system", root)
        copy_sparse(image, crashed)
    with pytest.raises(ReadInFull, match="journal"):
        free_of(crashed)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (1024 + 0x60, 0x2C2 | 1 << 19, "features"),
        (1024 + 0x64, 0x46B | 0x80, "features"),
        (1024 + 0x18, 9, "block size"),
        (1024 + 0x4, 1 << 30, "does not fit"),
        (1024 + 0x20, 12345, "does not fit"),
        (1024 + 0x3A, 0x10003, "errors"),
        (4096, 0x7FFFFFFF, "outside"),
        (4096 + 0xC, 17, "in its descriptor"),
    ],
)
def test_damage_and_novelty_are_read_in_full(image: Path, offset: int, value: int, reason: str) -> None:
    make(image, 64 * MIB, ["-b", "4096"])
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(4, "little"))
    with pytest.raises(ReadInFull, match=reason):
        free_of(image)


def test_filesystem_larger_than_its_volume_is_read_in_full(image: Path) -> None:
    make(image, 64 * MIB, ["-b", "4096"])
    os.truncate(image, 63 * MIB)
    with pytest.raises(ReadInFull, match="does not fit"):
        free_of(image)
