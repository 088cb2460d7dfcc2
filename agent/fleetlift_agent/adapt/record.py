# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was changed on a copy, with the originals beside it, so that all of it can be undone.

``/var/lib/fleetlift/adapt.json`` lists every path, ``/var/lib/fleetlift/originals`` holds what was there before. An
original is saved, and the record written, before the first change; a run that was cut off is continued by the next,
which never takes a changed file for an original.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetlift_agent import __version__
from fleetlift_agent.errors import AgentError

from .tree import Staged, Tree

DIRECTORY = "/var/lib/fleetlift"
RECORD = f"{DIRECTORY}/adapt.json"
ORIGINALS = f"{DIRECTORY}/originals"
SCRATCH = f"{DIRECTORY}/scratch"
SCHEMA = 1


class Record:
    """The record on the copy below *tree*'s root."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._value: dict[str, Any] = {
            "schema": SCHEMA,
            "version": __version__,
            "created": int(time.time()),
            "changes": [],
            "pending": [],
        }
        self._path = tree.root / RECORD.lstrip("/")
        if self._path.exists():
            self._value = self._load()

    @property
    def changes(self) -> list[dict[str, Any]]:
        return list(self._value["changes"])

    @property
    def pending(self) -> list[str]:
        """The kernels whose initramfs an earlier run wanted to rebuild and did not."""
        return list(self._value["pending"])

    def set_pending(self, kernels: list[str]) -> None:
        """Note, durably, which kernels still need their initramfs rebuilt."""
        if kernels != self._value["pending"]:
            self._value["pending"] = list(kernels)
            self._save()

    def commit(self, staged: list[Staged], pending: list[str]) -> None:
        """Save the originals, write the record, then make the changes, each atomically."""
        if not staged and pending == self._value["pending"]:
            return
        for change in staged:
            self._remember(change.path, change.concern)
        self._value["pending"] = list(pending)
        self._save()
        for change in staged:
            _apply(change, self._tree.root / change.path.lstrip("/"))

    def remember(self, path: str, concern: str) -> None:
        """Save the original of *path*, which something else is about to replace."""
        self._remember(path, concern)
        self._save()

    def undo(self) -> list[str]:
        """Put every original back and remove what was new; returns the paths. The record goes last."""
        done = []
        for change in reversed(self._value["changes"]):
            place = self._tree.root / change["path"].lstrip("/")
            if change["action"] == "created":
                place.unlink(missing_ok=True)
            elif change.get("link") is not None:
                _apply(Staged(change["path"], change["concern"], None, change["link"]), place)
            else:
                original = self._original(change["path"])
                if not original.exists():
                    raise AgentError(
                        "ADAPT_ORIGINAL_MISSING",
                        f"the original of {change['path']} is not in {ORIGINALS} any more",
                        "Restore the target from its source: replicate again",
                        subject=change["path"],
                    )
                beside = _beside(place)
                beside.unlink(missing_ok=True)
                _keep(original, beside)
                os.replace(beside, place)
            done.append(change["path"])
        if self._path.exists():
            _sync_directory(self._path.parent)
            self._path.unlink()
            shutil.rmtree(self._tree.root / ORIGINALS.lstrip("/"), ignore_errors=True)
            with contextlib.suppress(OSError):
                # Someone else's files may lie there.
                self._path.parent.rmdir()
        return done

    def _remember(self, path: str, concern: str) -> None:
        if any(change["path"] == path for change in self._value["changes"]):
            return
        place = self._tree.root / path.lstrip("/")
        entry: dict[str, Any] = {"path": path, "concern": concern, "action": "replaced"}
        if not os.path.lexists(place):
            entry["action"] = "created"
        elif place.is_symlink():
            entry["link"] = os.readlink(place)
        else:
            original = self._original(path)
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            original.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Left by a run that was cut off before its record was written.
            original.unlink(missing_ok=True)
            _keep(place, original)
            entry["original"] = f"{ORIGINALS}{path}"
        self._value["changes"].append(entry)

    def _original(self, path: str) -> Path:
        return self._tree.root / ORIGINALS.lstrip("/") / path.lstrip("/")

    def _load(self) -> dict[str, Any]:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AgentError(
                "ADAPT_RECORD_UNREADABLE",
                f"{RECORD} on the copy is not JSON: {error}",
                "Replicate again: the record belongs to the copy and is replaced with it",
                subject=RECORD,
            ) from error
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise AgentError(
                "ADAPT_RECORD_UNREADABLE",
                f"{RECORD} on the copy was written by another version",
                "Use the version that wrote it, or replicate again",
                subject=RECORD,
            )
        return value

    def _save(self) -> None:
        self._value["updated"] = int(time.time())
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps(self._value, indent=1, sort_keys=True) + "\n"
        _apply(Staged(RECORD, "record", text.encode(), None, 0o600), self._path)


def describe(staged: Staged, root: Path) -> dict[str, Any]:
    """One change for the result: path, action, and both texts where they are texts."""
    place = root / staged.path.lstrip("/")
    there = os.path.lexists(place)
    if staged.data is None and staged.link is None:
        action = "removed"
    else:
        action = "changed" if there else "created"
    before = f"-> {os.readlink(place)}\n" if place.is_symlink() else _text(place.read_bytes()) if there else ""
    after = f"-> {staged.link}\n" if staged.link is not None else _text(staged.data or b"")
    return {"path": staged.path, "concern": staged.concern, "action": action, "before": before, "after": after}


def _text(data: bytes) -> str:
    if b"\0" in data:
        return f"({len(data)} bytes of binary data)\n"
    return data.decode("utf-8", "replace")


def _apply(change: Staged, place: Path) -> None:
    """Replace *place*; owner, permissions and extended attributes (security labels) of what is there stay."""
    if change.data is None and change.link is None:
        place.unlink(missing_ok=True)
        _sync_directory(place.parent)
        return
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = _beside(place)
    beside.unlink(missing_ok=True)
    if change.link is not None:
        beside.symlink_to(change.link)
    else:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(change.data or b"")
            file.flush()
            if place.is_file() and not place.is_symlink():
                copy_attributes(place, beside)
            else:
                os.fchmod(file.fileno(), change.mode)
            os.fsync(file.fileno())
    os.replace(beside, place)
    _sync_directory(place.parent)


def copy_attributes(old: Path, new: Path) -> None:
    """Owner, permissions and extended attributes of *old* for *new*; the time stays that of the change."""
    status = old.stat()
    os.chown(new, status.st_uid, status.st_gid)
    os.chmod(new, stat.S_IMODE(status.st_mode))
    with contextlib.suppress(OSError):
        # vfat, for one, has no extended attributes.
        for name in os.listxattr(old):
            os.setxattr(new, name, os.getxattr(old, name))


def _keep(old: Path, new: Path) -> None:
    """*new* becomes *old*'s content with all metadata; as a link where both lie on one filesystem.

    Nothing is ever written into a file that is there, only beside it, so that a link keeps the old content.
    """
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)
        status = old.stat()
        with contextlib.suppress(PermissionError):
            # vfat has no owners.
            os.chown(new, status.st_uid, status.st_gid)
        with open(new, "rb") as file:
            os.fsync(file.fileno())


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.fleetlift")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def changed_paths(value: Mapping[str, Any]) -> list[str]:
    """The paths in a record."""
    return [str(change["path"]) for change in value["changes"]]
