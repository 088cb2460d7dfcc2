# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writers that leave nothing undone to a filesystem, until they are told to stop: `python stress_writers.py ...`.

Files are made, appended to, synced, truncated, renamed over each other, deleted and made again; ranges are allocated,
punched, zeroed and cut out; pages are written through a map, blocks past the cache; and a database in a file, with a
write-ahead log, grows. Each row that the database acknowledged is noted *outside* of the filesystem afterwards:
whatever copy is made of the filesystem later must hold it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

MIB = 1 << 20
DATABASE = "journal.db"
# linux/falloc.h: keep size; punch a hole; cut out; zero.
_FALLOCATE = (0, 1, 3, 0x8, 0x10)
_libc = ctypes.CDLL(None, use_errno=True)
# What a filesystem may answer without being broken: full, so that a file was not made, or an operation that it lacks.
_HARMLESS = {errno.ENOSPC, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL}


class Writers:
    """All of them below `top`; they use about `budget` bytes and rest `pace` seconds between two steps."""

    def __init__(self, top: Path, acknowledged: Path, seed: int, budget: int, pace: float) -> None:
        self._top = top
        self._acknowledged = acknowledged
        self._seed = seed
        self._budget = budget
        self._pace = pace
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Until SIGTERM. Raises what a writer did not expect."""
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())
        threads = [threading.Thread(target=self._guard, args=(kind,), daemon=True) for kind in self._kinds()]
        for thread in threads:
            thread.start()
        for thread in threads:
            # Without a timeout no signal would be noticed.
            while thread.is_alive():
                thread.join(0.2)
        if self._failure is not None:
            raise self._failure

    def _kinds(self) -> list[Callable[[random.Random], None]]:
        return [self._files, self._holes, self._pages, self._blocks, self._database]

    def _guard(self, kind: Callable[[random.Random], None]) -> None:
        try:
            kind(random.Random(f"{self._seed}/{kind.__name__}"))
        except BaseException as failure:
            self._failure = failure
            self._stopping.set()
            raise

    def _resting(self) -> bool:
        """Whether to go on after a rest."""
        return not self._stopping.wait(self._pace)

    def _files(self, chance: random.Random) -> None:
        top = self._top / "files"
        top.mkdir()
        files: list[Path] = []
        step = 0
        while self._resting():
            step += 1
            try:
                self._file_step(chance, top, files, step)
                crowded = sum(path.stat().st_size for path in files) > self._budget // 3
            except OSError as error:
                if error.errno not in _HARMLESS:
                    raise
                crowded = True
            if crowded:
                for path in files[::2]:
                    path.unlink(missing_ok=True)
                del files[::2]

    def _file_step(self, chance: random.Random, top: Path, files: list[Path], step: int) -> None:
        action = chance.random()
        if action < 0.35 or len(files) < 4:
            directory = top / f"d{chance.randrange(12)}"
            directory.mkdir(exist_ok=True)
            # Names come back after their files were deleted.
            path = directory / f"f{chance.randrange(200)}"
            if path not in files:
                files.append(path)
            path.write_bytes(chance.randbytes(chance.choice((0, 60, 3000, 4096, 40_000, 300_000, 1_500_000))))
            return
        index = chance.randrange(len(files))
        path = files[index]
        if action < 0.55:
            with path.open("r+b") as file:
                file.seek(chance.randrange(max(1, 2 * path.stat().st_size)))
                file.write(chance.randbytes(chance.randrange(1, 60_000)))
                if chance.random() < 0.7:
                    os.fsync(file.fileno())
        elif action < 0.65:
            os.truncate(path, chance.randrange(200_000))
        elif action < 0.75:
            other = chance.randrange(len(files))
            if other != index:
                path.rename(files[other])
                files.pop(index)
        elif action < 0.85:
            path.unlink()
            files.pop(index)
        elif action < 0.92:
            link = top / f"l{step % 50}"
            link.unlink(missing_ok=True)
            if chance.random() < 0.5:
                link.hardlink_to(path)
            else:
                link.symlink_to(path)
        elif action < 0.96:
            os.setxattr(path, "user.step", str(step).encode() * chance.randrange(1, 40))
        else:
            shutil.rmtree(path.parent)
            files[:] = [kept for kept in files if kept.parent != path.parent]

    def _holes(self, chance: random.Random) -> None:
        path = self._top / "holes"
        path.write_bytes(chance.randbytes(2 * MIB))
        with path.open("r+b") as file:
            while self._resting():
                with _harmless():
                    offset, length = chance.randrange(1024) * 4096, chance.randrange(1, 100) * 4096
                    mode = ctypes.c_int(chance.choice(_FALLOCATE))
                    if _libc.fallocate(file.fileno(), mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
                        raise OSError(ctypes.get_errno(), "fallocate")
                with _harmless():
                    os.pwrite(file.fileno(), chance.randbytes(chance.randrange(1, 50_000)), chance.randrange(4 * MIB))
                if path.stat().st_size > 8 * MIB:
                    os.ftruncate(file.fileno(), chance.randrange(MIB))

    def _pages(self, chance: random.Random) -> None:
        size = MIB
        path = self._top / "pages"
        path.write_bytes(chance.randbytes(size))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as pages:
            while self._resting():
                at = chance.randrange(size - 600)
                pages[at : at + 600] = chance.randbytes(600)
                if chance.random() < 0.2:
                    pages.flush()

    def _blocks(self, chance: random.Random) -> None:
        path = self._top / "blocks"
        path.write_bytes(chance.randbytes(4 * MIB))
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        buffer = mmap.mmap(-1, 64 << 10)
        while self._resting():
            count = chance.choice((4, 4, 8, 64)) << 10
            buffer[:count] = chance.randbytes(count)
            os.pwrite(descriptor, memoryview(buffer)[:count], chance.randrange(4 * MIB // count) * count)

    def _database(self, chance: random.Random) -> None:
        connection = sqlite3.connect(self._top / DATABASE, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE journal (seq INTEGER PRIMARY KEY, note BLOB NOT NULL, digest TEXT NOT NULL)")
        record = os.open(self._acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        seq = 0
        while self._resting():
            # Where nothing more fits, rows are only small.
            largest = 20_000 if (self._top / DATABASE).stat().st_size < self._budget // 4 else 40
            note = chance.randbytes(chance.randrange(20, largest))
            try:
                row = (seq + 1, note, hashlib.sha256(note).hexdigest())
                connection.execute("INSERT INTO journal VALUES (?, ?, ?)", row)
            except sqlite3.OperationalError as error:
                if "full" not in str(error):
                    raise
                continue
            seq += 1
            os.write(record, b"%d\n" % seq)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _HARMLESS:
            raise


def acknowledged(path: Path) -> int:
    """The last row that the database acknowledged, by the note; 0 when there is none."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return int(whole.rpartition(b"\n")[2] or 0)


def missing_rows(database: Path, last: int) -> list[str]:
    """What is wrong with a database that must hold the rows up to `last`."""
    connection = sqlite3.connect(database)
    try:
        wrong = [row for (row,) in connection.execute("PRAGMA integrity_check") if row != "ok"]
        rows = dict(connection.execute("SELECT seq, digest FROM journal"))
        for seq, note in connection.execute("SELECT seq, note FROM journal"):
            if hashlib.sha256(note).hexdigest() != rows[seq]:
                wrong.append(f"row {seq} is not what was inserted")
        wrong += [f"row {seq} of {last} is missing" for seq in range(1, last + 1) if seq not in rows]
    except sqlite3.DatabaseError as error:
        wrong = [str(error)]
    finally:
        connection.close()
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("top", type=Path)
    parser.add_argument("acknowledged", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=100 * MIB, help="bytes")
    parser.add_argument("--pace", type=float, default=0.005, help="seconds")
    parser.add_argument("--check", action="store_true", help="only look whether a copy has all that was acknowledged")
    options = parser.parse_args()
    if options.check:
        last = acknowledged(options.acknowledged)
        wrong = missing_rows(options.top / DATABASE, last)
        print(f"{last} rows", *wrong[:10], sep="\n")
        return 1 if wrong else 0
    Writers(options.top, options.acknowledged, options.seed, options.budget, options.pace).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
