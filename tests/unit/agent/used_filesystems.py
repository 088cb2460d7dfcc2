# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems to judge a map of used blocks by: made, filled and thinned out at random, then compared byte for byte."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from block_devices import MountNamespace, run

GARBAGE = b"\xa5" * (1 << 20)


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory for sparse images that no disk has to keep up with."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@contextlib.contextmanager
def loop_over(image: Path, *options: str) -> Iterator[Path]:
    """A loop device over an image that exists."""
    device = run("losetup", *options, "--find", "--show", image)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted_at(
    namespace: MountNamespace, device: Path, mountpoint: str, kind: str, options: str = "defaults"
) -> Iterator[Path]:
    """Mount in the namespace; the path leads there from outside of it."""
    namespace.run("mkdir", "-p", mountpoint)
    namespace.run("mount", "-t", kind, "-o", options, device, mountpoint)
    try:
        yield namespace.root / mountpoint.lstrip("/")
    finally:
        namespace.run("umount", mountpoint)


def churn(root: Path, seed: int, steps: int, budget: int) -> None:
    """Create, overwrite, extend, truncate, preallocate, punch, link, rename and delete, at random, on disk at once."""
    chance = random.Random(seed)
    files: list[Path] = []
    for step in range(steps):
        action = chance.random()
        if action < 0.45 or len(files) < 4:
            directory = root / f"d{chance.randrange(8)}"
            directory.mkdir(exist_ok=True)
            path = directory / f"f{seed}-{step}"
            path.write_bytes(chance.randbytes(chance.choice((0, 40, 900, 5000, 70_000, budget // 40, budget // 12))))
            files.append(path)
        elif action < 0.60:
            files.pop(chance.randrange(len(files))).unlink()
        elif action < 0.70:
            with chance.choice(files).open("r+b") as file:
                file.seek(chance.randrange(200_000))
                file.write(chance.randbytes(chance.randrange(1, 30_000)))
                os.fsync(file.fileno())
        elif action < 0.78:
            os.truncate(chance.choice(files), chance.randrange(100_000))
        elif action < 0.85:
            subprocess.run(
                ["fallocate", *chance.choice(((), ("--punch-hole",), ("--keep-size",))), "--offset", "8192"]
                + ["--length", str(chance.randrange(1, 400_000)), str(chance.choice(files))],
                stderr=subprocess.DEVNULL,
            )
        elif action < 0.92:
            path = root / f"l{seed}-{step}"
            if chance.random() < 0.5:
                os.link(chance.choice(files), path)
            else:
                path.symlink_to("target" * chance.randrange(1, 30))
        else:
            index = chance.randrange(len(files))
            path = root / f"r{seed}-{step}"
            files[index] = files[index].rename(path)
    # Everything reaches the disk, then a part goes again: its blocks hold old data and are free.
    run("sync", "--file-system", root)
    for path in files[:: chance.randrange(2, 4)]:
        path.unlink()


def tree_digest(root: Path) -> str:
    """One hash over names, kinds, contents and metadata of everything below *root*."""
    digest = hashlib.sha256()
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            path = Path(directory, name)
            status = path.lstat()
            facts = (
                os.path.relpath(path, root),
                status.st_mode,
                status.st_nlink,
                status.st_uid,
                status.st_size if not stat.S_ISDIR(status.st_mode) else 0,
                status.st_mtime_ns,
                sorted(os.listxattr(path, follow_symlinks=False)),
            )
            digest.update(repr(facts).encode())
            if stat.S_ISREG(status.st_mode):
                digest.update(path.read_bytes())
            elif stat.S_ISLNK(status.st_mode):
                digest.update(os.readlink(path).encode())
    return digest.hexdigest()


def spoil(image: Path, ranges: Iterable[tuple[int, int]]) -> int:
    """Overwrite these byte ranges of the image with garbage; return how many bytes that were."""
    count = 0
    with image.open("r+b", buffering=0) as file:
        for start, end in ranges:
            position = start
            while position < end:
                position += os.pwrite(file.fileno(), GARBAGE[: end - position], position)
            count += end - start
    return count


def copy_sparse(source: Path, target: Path) -> Path:
    run("cp", "--sparse=always", source, target)
    return target
