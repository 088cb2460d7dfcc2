# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the disks of a benchmark hold, and how it changes.

`python content.py dirty TOP SEED` makes 50 MB dirty; `write DEVICE COUNT` writes granules past every cache, and prints
the seconds and the CPU seconds that it took.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path

MB = 1_000_000
MIB = 1 << 20
GRANULE = 4096
DATABASE = "database"
_DATABASE_SIZE = 256 * MIB
# What `make_dirty` changes, half of it in granules; it does not compress.
DIRTY = 50 * MB
_DIRTY_GRANULES = DIRTY // 2 // GRANULE
_CHANGED_GRANULES = 3000


def fill_server(top: Path, base_root: Path) -> None:
    """A small installed system, 150 MiB of files that do not compress, and as much that was deleted again."""
    subprocess.run(["cp", "--archive", str(base_root), str(top / "system")], check=True)
    chance = random.Random("server")
    (top / "data").mkdir()
    for number in range(15):
        (top / "data" / f"file{number}").write_bytes(chance.randbytes(10 * MIB))
    garbage = top / "garbage"
    garbage.write_bytes(chance.randbytes(150 * MIB))
    sync(top)
    garbage.unlink()
    sync(top)


def fill_files(top: Path, count: int) -> None:
    """`count` small files and a database of 256 MiB that does not compress."""
    chance = random.Random("files")
    text = chance.randbytes(4000).hex().encode()
    for number in range(count):
        if number % 500 == 0:
            directory = top / f"d{number // 500}"
            directory.mkdir()
        at = chance.randrange(4000)
        (directory / f"f{number}").write_bytes(text[at : at + chance.randrange(100, 4000)])
    fill_database(top)


def fill_database(top: Path) -> None:
    with (top / DATABASE).open("wb") as file:
        for _block in range(_DATABASE_SIZE // MIB):
            file.write(os.urandom(MIB))
    sync(top)


def change_one_percent(top: Path, seed: int) -> None:
    """About 1 % of a 2 GiB disk: 3000 granules in place, 5 MB appended, 5 MB new, 2 MB of small files replaced."""
    chance = random.Random(seed)
    files = sorted((top / "data").iterdir())
    for _change in range(_CHANGED_GRANULES):
        path = chance.choice(files)
        with path.open("r+b") as file:
            file.seek(chance.randrange(path.stat().st_size // GRANULE) * GRANULE)
            file.write(chance.randbytes(GRANULE))
    with files[0].open("ab") as file:
        file.write(chance.randbytes(5 * MB))
    (top / "data" / f"new{seed}").write_bytes(chance.randbytes(5 * MB))
    (top / "small").mkdir(exist_ok=True)
    for number in range(500):
        (top / "small" / f"{number}").write_bytes(chance.randbytes(GRANULE))
    sync(top)


def make_dirty(top: Path, seed: int) -> None:
    """50 MB: half of it in granules of the database at random, half in a new file."""
    chance = random.Random(seed)
    with (top / DATABASE).open("r+b") as file:
        for granule in chance.sample(range(_DATABASE_SIZE // GRANULE), _DIRTY_GRANULES):
            file.seek(granule * GRANULE)
            file.write(chance.randbytes(GRANULE))
    (top / "new").write_bytes(chance.randbytes(DIRTY // 2))
    sync(top)


def changed_bytes(before: Path, after: Path) -> int:
    """How many bytes of granules differ between two images of one size."""
    count = 0
    with before.open("rb") as old, after.open("rb") as new:
        while chunk := old.read(MIB):
            other = new.read(MIB)
            if chunk != other:
                count += sum(
                    chunk[at : at + GRANULE] != other[at : at + GRANULE] for at in range(0, len(chunk), GRANULE)
                )
    return count * GRANULE


def sync(top: Path) -> None:
    subprocess.run(["sync", "--file-system", str(top)], check=True)


def write_granules(device: Path, count: int) -> dict[str, float]:
    """The seconds and CPU seconds of so many direct writes, one after the other."""
    chance = random.Random(count)
    descriptor = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    granules = os.lseek(descriptor, 0, os.SEEK_END) // GRANULE
    with mmap.mmap(-1, GRANULE) as buffer:
        places = [chance.randrange(granules) * GRANULE for _write in range(count)]
        begun, cpu = time.monotonic(), time.process_time()
        for place in places:
            os.pwrite(descriptor, buffer, place)
        return {"wall": time.monotonic() - begun, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        print(json.dumps(write_granules(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        make_dirty(Path(sys.argv[2]), int(sys.argv[3]))
