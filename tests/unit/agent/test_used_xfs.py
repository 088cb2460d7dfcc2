# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The free extents of XFS, against xfs_db, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent.usedblocks import xfs
from fleetlift_agent.usedblocks.runs import FreeRuns
from fleetlift_agent.usedblocks.volume import BufferedDevice, ReadInFull, Volume

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import MIB, run
from used_filesystems import memory_directory

LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "default": (500, []),
    "version 4": (500, ["-m", "crc=0,finobt=0"]),
    "version 4, blocks of 512 bytes": (400, ["-m", "crc=0,finobt=0", "-b", "size=512"]),
    "blocks of 64 KiB": (900, ["-b", "size=65536"]),
    "seven groups": (1024, ["-d", "agcount=7"]),
}


@pytest.fixture
def image() -> Iterator[Path]:
    with memory_directory() as directory:
        yield directory / "disk.img"


def make(image: Path, size: int, options: list[str]) -> None:
    """A filesystem that holds files without having been mounted: this kernel need not know its version."""
    content = image.with_name("content")
    content.write_bytes(b"x" * 300_000)
    files = "\n".join(f"f{number} ---644 0 0 {content}" for number in range(40))
    prototype = image.with_name("prototype")
    prototype.write_text(f"/\n0 0\nd--755 0 0\n{files}\n$\n$\n")
    with image.open("wb") as file:
        file.truncate(size * MIB)
    run("mkfs.xfs", "-q", "-p", prototype, *options, image)


def free_of(image: Path) -> FreeRuns:
    with image.open("rb", buffering=0) as file:
        return xfs.free_runs(Volume(BufferedDevice(file.fileno()), 0, image.stat().st_size))


def ask(image: Path, *commands: str) -> str:
    return run("xfs_db", "-r", *(part for command in commands for part in ("-c", command)), image)


def superblock(image: Path) -> dict[str, int]:
    facts = re.findall(r"^(blocksize|agblocks|agcount) = (\d+)$", ask(image, "sb 0", "print"), re.MULTILINE)
    return {name: int(value) for name, value in facts}


def listed(image: Path) -> set[int]:
    """The blocks that xfs_db calls free, counted from the start of the disk."""
    group = superblock(image)["agblocks"]
    extents = re.findall(r"^ *(\d+) +(\d+) +(\d+)$", ask(image, "freesp -d"), re.MULTILINE)
    starts = [(int(number) * group + int(first), int(count)) for number, first, count in extents]
    return {block for start, count in starts for block in range(start, start + count)}


def set_aside(image: Path) -> set[int]:
    """The blocks that each group keeps for its trees: free to xfs_db, in use to the map."""
    facts = superblock(image)
    found = set()
    for group in range(facts["agcount"]):
        text = ask(image, f"agf {group}", "print flfirst flcount", f"agfl {group}", "print bno")
        first, count = (int(number) for number in re.findall(r"fl\w+ = (\d+)", text))
        entries = dict(re.findall(r"(\d+):(\d+|null)", text.split("bno", 1)[1]))
        for index in range(first, first + count):
            found.add(group * facts["agblocks"] + int(entries[str(index % len(entries))]))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_free_extents_are_those_of_xfs_db(layout: str, image: Path) -> None:
    make(image, *LAYOUTS[layout])
    block = superblock(image)["blocksize"]
    free = {number for start, end in free_of(image) for number in range(start // block, end // block)}
    aside = set_aside(image)
    assert aside and not free & aside
    assert free | aside == listed(image)


@pytest.mark.parametrize(
    ("sector", "offset", "value", "reason"),
    [
        (0, 216, b"\0\0\x04\0", "features"),
        (0, 212, b"\0\0\x01\0", "features"),
        (0, 100, b"\0\x06", "version 6"),
        (0, 126, b"\1", "never made"),
        (0, 8, b"\0\0\0\1", "does not fit"),
        (0, 84, b"\0\0\0\5", "does not fit"),
        (1, 0, b"XXXX", "header of allocation group 0"),
        (1, 8, b"\0\0\0\7", "header of allocation group 0"),
        (1, 16, b"\x7f\0\0\0", "outside"),
        (1, 52, b"\0\0\0\7", "its header says"),
    ],
)
def test_damage_and_novelty_are_read_in_full(sector: int, offset: int, value: bytes, reason: str, image: Path) -> None:
    make(image, 400, [])
    with image.open("r+b") as file:
        file.seek(sector * 512 + offset)
        file.write(value)
    with pytest.raises(ReadInFull, match=reason):
        free_of(image)
