# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A deterministic listing of a file tree with all its metadata, to tell whether two trees are the same.

Listed for each path: type, permissions, owner, group, time of modification to the nanosecond, size and
content hash of files, device numbers, link targets, hard-link groups, every extended attribute (POSIX
ACLs and capabilities are such) and the inode's flags. Left out is what a copy cannot or need not keep:
access and change times, inode numbers, the size of directories.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

# linux/fs.h: FS_IOC_GETFLAGS, and those flags that a user sets (append only, immutable, no dump, no atime).
FS_IOC_GETFLAGS = 0x80086601
USER_FLAGS = 0x20 | 0x10 | 0x40 | 0x80
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One path of a tree. ``blocks`` (512 bytes each) is information only: it is no part of the digest."""

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    rdev: int
    target: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    flags: int
    same_file_as: bytes
    content: str
    blocks: int = field(default=0, compare=False)

    def line(self) -> bytes:
        """Return the entry as one line, the same for the same entry everywhere."""
        values = [(name, getattr(self, name)) for name in COMPARED]
        return ascii(values).encode("ascii") + b"\n"


COMPARED = tuple(item.name for item in fields(Entry) if item.compare)


@dataclass(frozen=True)
class Difference:
    """What is not the same about one path."""

    path: bytes
    what: str

    def __str__(self) -> str:
        return f"{os.fsdecode(self.path)!r}: {self.what}"


class _Reader:
    def __init__(self, root: Path, excluded: frozenset[bytes]) -> None:
        self._root = os.fsencode(root)
        self._excluded = excluded
        self._device = os.stat(root).st_dev
        self._first_names: dict[int, bytes] = {}

    def entries(self, path: bytes = b"") -> Iterator[Entry]:
        directory = self._root + b"/" + path
        for name in sorted(os.listdir(directory)):
            child = path + b"/" + name if path else name
            if child in self._excluded:
                continue
            status = os.lstat(self._root + b"/" + child)
            if status.st_dev != self._device:
                continue
            yield self._entry(child, status)
            if stat.S_ISDIR(status.st_mode):
                yield from self.entries(child)

    def _entry(self, path: bytes, status: os.stat_result) -> Entry:
        full = self._root + b"/" + path
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        regular = kind == "file"
        return Entry(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            size=status.st_size if regular else 0,
            rdev=status.st_rdev,
            target=os.readlink(full) if kind == "symlink" else b"",
            xattrs=_xattrs(full),
            flags=_flags(full) if kind in ("file", "directory") else 0,
            same_file_as=self._link_group(path, status),
            content=_content(full) if regular else "",
            blocks=status.st_blocks,
        )

    def _link_group(self, path: bytes, status: os.stat_result) -> bytes:
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode):
            return b""
        return self._first_names.setdefault(status.st_ino, path)


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))


def _open(path: bytes) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC)


def _flags(path: bytes) -> int:
    fd = _open(path)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 8))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return 0
        raise
    finally:
        os.close(fd)
    return int(flags) & USER_FLAGS


def _content(path: bytes) -> str:
    digest = hashlib.sha256()
    fd = _open(path)
    try:
        while chunk := os.read(fd, CHUNK):
            digest.update(chunk)
    finally:
        os.close(fd)
    return digest.hexdigest()


def read_tree(root: Path, exclude: Iterable[str] = ()) -> Iterator[Entry]:
    """List the tree under ``root`` in a fixed order, without other filesystems and without ``exclude``.

    ``exclude`` names paths relative to ``root``; what lies below them is left out too.
    """
    return _Reader(root, frozenset(os.fsencode(path.strip("/")) for path in exclude)).entries()


def tree_digest(entries: Iterable[Entry]) -> str:
    """Return one hash over a listing."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.line())
    return digest.hexdigest()


def compare(left: Iterable[Entry], right: Iterable[Entry]) -> Iterator[Difference]:
    """Yield what differs between two listings."""
    ours = {entry.path: entry for entry in left}
    theirs = {entry.path: entry for entry in right}
    for path in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(path), theirs.get(path)
        if mine is None:
            yield Difference(path, "is only in the second tree")
        elif other is None:
            yield Difference(path, "is only in the first tree")
        elif mine != other:
            pairs = [(name, getattr(mine, name), getattr(other, name)) for name in COMPARED]
            yield Difference(
                path, "; ".join(f"{name} {old!r} became {new!r}" for name, old, new in pairs if old != new)
            )
