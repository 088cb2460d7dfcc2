# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a mounted copy, with every change staged first: nothing is written before all of it is known."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_LINKS = 40
_TEXT_LIMIT = 4 << 20


@dataclass(frozen=True)
class Staged:
    """What *path* is to become: a file with *data*, a symbolic link to *link*, or nothing when both are None."""

    path: str
    concern: str
    data: bytes | None = None
    link: str | None = None
    mode: int = 0o644


class Tree:
    """A root directory as its own system sees it. Paths are absolute inside of it; symbolic links stay inside."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staged: dict[str, Staged] = {}

    @property
    def staged(self) -> list[Staged]:
        """The changes that are not on the disk yet, in the order of their paths."""
        return [self._staged[path] for path in sorted(self._staged) if not self._is_on_disk(self._staged[path])]

    def real(self, path: str) -> str:
        """The path behind all symbolic links. Raises OSError for a chain of links without an end."""
        return self._resolve(path, follow_last=True)

    def host(self, path: str) -> Path:
        """Where *path*, symbolic links in it followed, lies for this process."""
        return self._outside(self.real(path))

    def exists(self, path: str) -> bool:
        real = self.real(path)
        staged = self._staged.get(real)
        if staged is not None:
            return staged.data is not None or staged.link is not None
        return self._outside(real).exists()

    def is_file(self, path: str) -> bool:
        real = self.real(path)
        staged = self._staged.get(real)
        if staged is not None:
            return staged.data is not None
        return self._outside(real).is_file()

    def is_directory(self, path: str) -> bool:
        return self._outside(self.real(path)).is_dir()

    def read(self, path: str) -> str | None:
        """The text of a file as it will be; None when there is none. Foreign bytes survive a round trip."""
        real = self.real(path)
        staged = self._staged.get(real)
        if staged is not None:
            data = staged.data
        else:
            outside = self._outside(real)
            if not outside.is_file():
                return None
            with outside.open("rb") as file:
                data = file.read(_TEXT_LIMIT)
        return None if data is None else data.decode("utf-8", "surrogateescape")

    def link_target(self, path: str) -> str | None:
        """What the symbolic link *path* points to; None when it is none."""
        place = self._resolve(path, follow_last=False)
        staged = self._staged.get(place)
        if staged is not None:
            return staged.link
        outside = self._outside(place)
        return str(outside.readlink()) if outside.is_symlink() else None

    def names(self, directory: str) -> list[str]:
        """The names in *directory* as they will be, sorted; none when there is no such directory."""
        real = self.real(directory)
        outside = self._outside(real)
        found = {each.name for each in outside.iterdir()} if outside.is_dir() else set()
        for path, staged in self._staged.items():
            parent, name = posixpath.split(path)
            if parent == real:
                (found.discard if staged.data is None and staged.link is None else found.add)(name)
        return sorted(found)

    def glob(self, pattern: str) -> list[str]:
        """The paths that match *pattern*, which may have wildcards in every part; hidden names only if asked for."""
        return sorted(self._glob("/", pattern.strip("/").split("/")))

    def write(self, concern: str, path: str, text: str, *, mode: int = 0o644) -> None:
        """Stage *text* as the content of the file *path*; its permissions stay, *mode* is for a new one."""
        real = self.real(path)
        self._staged[real] = Staged(real, concern, text.encode("utf-8", "surrogateescape"), None, mode)

    def write_bytes(self, concern: str, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Stage *data* as the content of the file *path*."""
        real = self.real(path)
        self._staged[real] = Staged(real, concern, data, None, mode)

    def remove(self, concern: str, path: str) -> None:
        """Stage the removal of the file or symbolic link *path*, not of what the link points to."""
        place = self._resolve(path, follow_last=False)
        if place in self._staged and not self._lexists(place):
            del self._staged[place]
        elif self._lexists(place):
            self._staged[place] = Staged(place, concern)

    def symlink(self, concern: str, path: str, target: str) -> None:
        """Stage a symbolic link at *path*."""
        place = self._resolve(path, follow_last=False)
        self._staged[place] = Staged(place, concern, None, target)

    def _lexists(self, place: str) -> bool:
        return os.path.lexists(self._outside(place))

    def _is_on_disk(self, staged: Staged) -> bool:
        outside = self._outside(staged.path)
        try:
            status = os.lstat(outside)
        except FileNotFoundError:
            return staged.data is None and staged.link is None
        if staged.link is not None:
            return stat.S_ISLNK(status.st_mode) and os.readlink(outside) == staged.link
        if staged.data is None or not stat.S_ISREG(status.st_mode) or status.st_size != len(staged.data):
            return False
        return outside.read_bytes() == staged.data

    def _outside(self, real: str) -> Path:
        return self.root / real.lstrip("/")

    def _resolve(self, path: str, *, follow_last: bool) -> str:
        """As the kernel does it inside of the root: .. ends at the top, and links are relative to the root."""
        pending = [part for part in path.split("/") if part][::-1]
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if done:
                    done.pop()
                continue
            here = "/" + "/".join([*done, part])
            target = self._link_at(here) if pending or follow_last else None
            if target is None:
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(40, f"too many symbolic links in {path}")
            if target.startswith("/"):
                done = []
            pending += [each for each in target.split("/") if each][::-1]
        return "/" + "/".join(done)

    def _link_at(self, here: str) -> str | None:
        staged = self._staged.get(here)
        if staged is not None:
            return staged.link
        outside = self._outside(here)
        return str(outside.readlink()) if outside.is_symlink() else None

    def _glob(self, base: str, parts: list[str]) -> Iterator[str]:
        head, rest = parts[0], parts[1:]
        if any(sign in head for sign in "*?["):
            matching = [
                name
                for name in self.names(base)
                if fnmatch.fnmatchcase(name, head) and (head.startswith(".") or not name.startswith("."))
            ]
        else:
            matching = [head] if head in self.names(base) else []
        for name in matching:
            path = posixpath.join(base, name)
            if not rest:
                yield path
            elif self.is_directory(path):
                yield from self._glob(path, rest)
