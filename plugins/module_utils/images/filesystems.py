# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files on a volume, read without mounting it: by the dissect packages, which know ext, XFS, btrfs, FAT and LVM.

They are given the bytes of somebody else's filesystem. Whatever is wrong with it ends in :class:`Damaged`.
"""

from __future__ import annotations

import io
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

PACKAGES = "dissect.extfs dissect.xfs dissect.btrfs dissect.fat dissect.volume"
# What a parser stumbles over in damaged structures, besides the packages' own errors.
_STUMBLES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
# No kernel or initramfs comes near it.
LARGEST_FILE = 1 << 30
_PIECE = 1 << 20


class Damaged(Exception):
    """The reason, for people, why the files cannot be read."""


class ReadableDevice(Protocol):
    """Something to read bytes from."""

    def read(self, offset: int, length: int) -> bytes: ...


class Window(io.RawIOBase):
    """A stretch of a device as a file; ``start`` and ``size`` in bytes."""

    def __init__(self, device: ReadableDevice, start: int, size: int) -> None:
        super().__init__()
        self._device = device
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        data = self._device.read(self._start + self._position, wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def window(device: ReadableDevice, start: int, size: int) -> IO[bytes]:
    """The stretch as a buffered file."""
    return io.BufferedReader(Window(device, start, size), 1 << 16)


@contextmanager
def damage_told() -> Iterator[None]:
    """Raise Damaged for whatever a parser stumbles over."""
    try:
        yield
    except Damaged:
        raise
    except NotImplementedError as error:
        raise Damaged(f"it uses what is not read here ({error})") from error
    except _STUMBLES as error:
        raise Damaged(f"its structures are damaged ({type(error).__name__}: {error})") from error
    except Exception as error:
        if not type(error).__module__.startswith("dissect."):
            raise
        raise Damaged(str(error)) from error


class Node(Protocol):
    """A file, directory or link."""

    kind: int

    def children(self) -> Mapping[str, Node]: ...

    def open(self) -> IO[bytes]: ...

    def target(self) -> str: ...


class _UnixNode:
    """An inode of ext, XFS or btrfs. *kind* is as S_IFMT gives it."""

    def __init__(self, inode: Any, kind: int) -> None:
        self._inode = inode
        self.kind = kind

    def children(self) -> Mapping[str, Node]:
        listed: dict[str, Node] = {}
        for name, inode in self._inode.listdir().items():
            if name not in (".", ".."):
                listed[name] = _UnixNode(inode, _kind_of(inode))
        return listed

    def open(self) -> IO[bytes]:
        stream: IO[bytes] = self._inode.open()
        return stream

    def target(self) -> str:
        return str(self._inode.link)


def _kind_of(inode: Any) -> int:
    kind = inode.filetype if hasattr(inode, "filetype") else inode.type
    return int(kind)


class _FatNode:
    """An entry of a FAT directory; its names are as they are written there."""

    def __init__(self, entry: Any) -> None:
        self._entry = entry
        self.kind = stat.S_IFDIR if entry.is_directory() else stat.S_IFREG

    def children(self) -> Mapping[str, Node]:
        return {entry.name: _FatNode(entry) for entry in self._entry.iterdir() if entry.name not in (".", "..")}

    def open(self) -> IO[bytes]:
        stream: IO[bytes] = self._entry.open()
        return stream

    def target(self) -> str:
        return ""


def _open_ext(stream: IO[bytes]) -> Node:
    from dissect.extfs import ExtFS

    return _UnixNode(ExtFS(stream).root, stat.S_IFDIR)


def _open_xfs(stream: IO[bytes]) -> Node:
    from dissect.xfs.xfs import XFS

    return _UnixNode(XFS(stream).root, stat.S_IFDIR)


def _open_btrfs(stream: IO[bytes]) -> Node:
    from dissect.btrfs import Btrfs

    return _UnixNode(Btrfs(stream).default_subvolume.root, stat.S_IFDIR)


def _open_fat(stream: IO[bytes]) -> Node:
    from dissect.fat import FATFS

    return _FatNode(FATFS(stream).root)


_OPENERS: dict[str, Callable[[IO[bytes]], Node]] = {
    "ext4": _open_ext,
    "xfs": _open_xfs,
    "btrfs": _open_btrfs,
    "vfat": _open_fat,
}


def open_filesystem(kind: str, stream: IO[bytes]) -> Node:
    """The root directory of the filesystem of this kind. Raises Damaged, and ImportError without the packages."""
    with damage_told():
        return _OPENERS[kind](stream)


def logical_volumes(streams: list[IO[bytes]]) -> list[tuple[str, IO[bytes], int]]:
    """Name (``group/volume``), bytes and size of the volumes on one group's physical volumes.

    Raises Damaged, and ImportError without the packages. Volumes of kinds that cannot be read are left out.
    """
    from dissect.volume.lvm import LVM2

    with damage_told():
        group = LVM2(list(streams)).volume_group
        found = []
        for volume in group.lv:
            if volume.is_visible and all(segment.type in ("striped", "linear") for segment in volume.segments):
                extents = sum(int(segment.extent_count) for segment in volume.segments)
                found.append((f"{group.name}/{volume.name}", volume.open(), extents * int(group.extent_size) * 512))
        return found


class FilesystemPath:
    """A path on mounted filesystems, with the part of pathlib.Path that looking needs; links are not followed.

    *mounts* are root directories by their mount point; the longest that fits a path holds it.
    """

    def __init__(self, mounts: dict[str, Node], path: str = "/", known: dict[str, Node | None] | None = None) -> None:
        self._mounts = mounts
        self._path = path
        self._known: dict[str, Node | None] = {} if known is None else known

    def __truediv__(self, path: str) -> FilesystemPath:
        joined = "/" + "/".join(part for part in f"{self._path}/{path}".split("/") if part)
        return FilesystemPath(self._mounts, joined, self._known)

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    def is_dir(self) -> bool:
        return self._kind() == stat.S_IFDIR

    def is_file(self) -> bool:
        return self._kind() == stat.S_IFREG

    def is_symlink(self) -> bool:
        return self._kind() == stat.S_IFLNK

    def exists(self) -> bool:
        return bool(self._kind())

    def readlink(self) -> str:
        with damage_told():
            return self._there().target()

    def iterdir(self) -> Iterator[FilesystemPath]:
        with damage_told():
            names = list(self._there().children())
        return (self / name for name in names)

    def open(self, _mode: str = "rb") -> IO[bytes]:
        """The content, in a temporary file. Raises Damaged, also for a file that is larger than any should be."""
        # The caller closes it.
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        with damage_told():
            stream = self._there().open()
            while piece := stream.read(_PIECE):
                copy.write(piece)
                if copy.tell() > LARGEST_FILE:
                    raise Damaged(f"{self._path} is larger than {LARGEST_FILE >> 20} MiB")
        copy.seek(0)
        return copy

    def _kind(self) -> int:
        node = self._node()
        return node.kind if node is not None else 0

    def _there(self) -> Node:
        node = self._node()
        if node is None:
            raise FileNotFoundError(2, "no such file", self._path)
        return node

    def _node(self) -> Node | None:
        if self._path not in self._known:
            self._known[self._path] = self._mounts.get(self._path) or self._child()
        return self._known[self._path]

    def _child(self) -> Node | None:
        parent_path, _slash, name = self._path.rpartition("/")
        parent = FilesystemPath(self._mounts, parent_path or "/", self._known)._node()
        if parent is None or parent.kind != stat.S_IFDIR:
            return None
        with damage_told():
            children = parent.children()
        base = parent_path.rstrip("/")
        # One look into a directory finds all of its names.
        for each, node in children.items():
            path = f"{base}/{each}"
            self._known.setdefault(path, self._mounts.get(path, node))
        return children.get(name)
