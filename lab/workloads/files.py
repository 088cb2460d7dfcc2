# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A server full of files: tens of thousands of small ones, and one of everything a copy can get wrong."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from pathlib import Path

TOP = "srv/app"
DIRECTORIES = 200
PER_DIRECTORY = 100
LINKS = 400
ODD_NAMES = (
    b"spaces and\ttabs",
    b"new\nline",
    b"back\\slash",
    b"latin-1-\xe9\xe8\xfc",
    b"not-utf-8-\xff\xfe\x80",
    "한국어-이름".encode(),
    b"-dash-first",
    b"*?[glob]",
    b"'quotes\"",
    b"trailing ",
    b"l" * 255,
)
# One second before the epoch, 2038 and beyond, and nanoseconds that are not a multiple of anything.
TIMES = (-1_000_000_000, 2**31 * 1_000_000_000 + 1, 4_000_000_000_123_456_789, 1_600_000_000_000_000_001)
ACL_VERSION = 2
# linux/posix_acl.h: tag, permissions, id.
ACL_UNDEFINED_ID = 0xFFFFFFFF
ACL_ENTRIES = (
    (0x01, 6, ACL_UNDEFINED_ID),
    (0x02, 4, 1001),
    (0x04, 4, ACL_UNDEFINED_ID),
    (0x08, 5, 1002),
    (0x10, 5, ACL_UNDEFINED_ID),
    (0x20, 0, ACL_UNDEFINED_ID),
)
# linux/capability.h: revision 2, effective; CAP_NET_BIND_SERVICE permitted.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
SPARSE_SIZE = 64 * 1024 * 1024


def acl() -> bytes:
    """Return a POSIX ACL as system.posix_acl_access holds it."""
    return struct.pack("<I", ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in ACL_ENTRIES)


def seed(root: Path, directories: int = DIRECTORIES) -> None:
    """Fill the disk with ``directories`` directories of small files, and with everything odd."""
    top = root / TOP
    top.mkdir(parents=True)
    _small_files(top, directories)
    _links(top, directories)
    _special_files(top)
    _odd_names(top)
    _sparse_files(top)
    _metadata(top)
    # Directories last: what was made in them has changed their times.
    for number, directory in enumerate(sorted(top.iterdir())):
        if directory.is_dir():
            os.utime(directory, ns=(0, 1_500_000_000_000_000_000 + number))


def _small_files(top: Path, directories: int) -> None:
    source = random.Random("files")
    for directory in range(directories):
        path = top / f"d{directory:03}"
        path.mkdir(mode=source.choice((0o755, 0o700, 0o2775, 0o1777)))
        for number in range(PER_DIRECTORY):
            file = path / f"f{number:02}"
            file.write_bytes(source.randbytes(source.choice((0, 1, 37, 512, 2000, 4096, 9000))))
            file.chmod(source.choice((0o644, 0o600, 0o755, 0o440)))
            os.chown(file, source.choice((0, 33, 1000, 65534, 123456)), source.choice((0, 33, 1000)))
            if number % 10 == 0:
                os.setxattr(file, "user.origin", f"{directory}/{number}".encode())
            if number % 25 == 0:
                os.setxattr(file, "system.posix_acl_access", acl())
            os.utime(file, ns=(0, 1_400_000_000_000_000_000 + source.randrange(10**17)))


def _links(top: Path, directories: int) -> None:
    links = top / "links"
    links.mkdir()
    for number in range(LINKS):
        target = top / f"d{number % directories:03}" / f"f{number % PER_DIRECTORY:02}"
        (links / f"hard{number:03}").hardlink_to(target)
        (links / f"soft{number:03}").symlink_to(os.path.relpath(target, links))
    (links / "dangling").symlink_to("/nowhere/at all")
    (links / "loop").symlink_to("loop")
    os.lchown(links / "dangling", 1000, 1000)


def _special_files(top: Path) -> None:
    special = top / "special"
    special.mkdir()
    os.mknod(special / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(special / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(special / "big-minor", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.mkfifo(special / "fifo", 0o622)
    with socket.socket(socket.AF_UNIX) as server:
        # A socket's path is at most 108 bytes long: name it from its own directory.
        here = os.open(special, os.O_RDONLY | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)


def _odd_names(top: Path) -> None:
    directory = os.fsencode(top / "names")
    os.mkdir(directory)
    for name in ODD_NAMES:
        fd = os.open(directory + b"/" + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, name)
        os.close(fd)
    deep = top / "deep"
    for _ in range(60):
        deep = deep / "level-of-a-deep-tree"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("here\n", encoding="ascii")


def _sparse_files(top: Path) -> None:
    sparse = top / "sparse"
    sparse.mkdir()
    for number in range(8):
        with (sparse / f"hole{number}").open("wb") as stream:
            stream.seek(number * 1024 * 1024)
            stream.write(b"data between holes" * 1000)
            stream.truncate(SPARSE_SIZE)
    with (sparse / "only-a-hole").open("wb") as stream:
        stream.truncate(SPARSE_SIZE)


def _metadata(top: Path) -> None:
    metadata = top / "metadata"
    metadata.mkdir()
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1644), ("nothing", 0o000)):
        (metadata / name).write_bytes(b"#!/bin/sh\n")
        (metadata / name).chmod(mode)
    capable = metadata / "capability"
    capable.write_bytes(b"\x7fELF")
    capable.chmod(0o755)
    os.setxattr(capable, "security.capability", CAPABILITY)
    attributes = metadata / "attributes"
    attributes.write_bytes(b"")
    # All attributes of a file share one block on ext4.
    for number in range(12):
        os.setxattr(attributes, f"user.name-{number}", b"\x00binary\xff" * number)
    os.setxattr(attributes, "user.large", b"x" * 2000)
    os.setxattr(attributes, "trusted.overlooked", b"seen by root only")
    inherited = metadata / "default-acl"
    inherited.mkdir()
    os.setxattr(inherited, "system.posix_acl_default", acl())
    for number, time in enumerate(TIMES):
        path = metadata / f"time{number}"
        path.write_bytes(b"")
        os.utime(path, ns=(0, time))
