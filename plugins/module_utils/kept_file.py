# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files on the controller: replaced as a whole; JSON that several processes share is held by one at a time."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces the file at *path* by *value*; see :func:`replace_file`."""
    replace_file(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")


def replace_file(path: Path, content: bytes) -> None:
    """Replaces the file at *path*, so that a reader sees the old one or the new one, also after a power cut.

    Readable for its owner only; the directory is made where there is none. Raises ``OSError``.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        # mkstemp gives 0600.
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def shared_json(path: Path) -> Iterator[dict[str, Any]]:
    """The mapping in the file at *path*, for this process alone; what the caller makes of it is kept.

    A file that is not there or cannot be read as JSON is an empty mapping: such files are about what runs now, and fill
    again by themselves. The lock goes with the process that holds it. Nothing is kept after an exception.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A lock of its own, since the file itself is replaced.
    with open(f"{path}.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = _read(path)
        value = json.loads(json.dumps(before))
        yield value
        if value != before:
            replace_json(path, value)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
