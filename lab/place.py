# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a lab keeps its state, and the mark that says a directory is a lab's."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from lab.description import NAME
from lab.errors import LabError

DEFAULT_DIRECTORY = "/var/lib/fleetlift-lab"
MARK = "lab.json"
# A Unix socket's path is at most 107 bytes long; overlay mounts give meaning to some characters.
LONGEST_BASE = 80
PATH = re.compile(rf"[A-Za-z0-9._/-]{{1,{LONGEST_BASE}}}")
SCHEMA = 1


@dataclass(frozen=True)
class Place:
    """The state directory of one lab."""

    base: Path
    name: str

    @classmethod
    def of(cls, name: str) -> Place:
        """Return the place of the lab ``name``, by FLEETLIFT_LAB_DIR."""
        if not NAME.fullmatch(name):
            raise LabError(f"{name!r} cannot be a lab's name", f"Use a name that matches {NAME.pattern}")
        base = Path(os.environ.get("FLEETLIFT_LAB_DIR") or DEFAULT_DIRECTORY)
        if not base.is_absolute():
            raise LabError(f"FLEETLIFT_LAB_DIR is {str(base)!r}", "Set it to an absolute path")
        if not PATH.fullmatch(str(base)):
            raise LabError(
                f"FLEETLIFT_LAB_DIR is {str(base)!r}",
                f"Use only letters, digits and ._/- in it, and at most {LONGEST_BASE} characters",
            )
        return cls(base, name)

    @property
    def directory(self) -> Path:
        """Everything of this lab."""
        return self.base / self.name

    @property
    def cache(self) -> Path:
        """What all labs share."""
        return self.base / "cache"

    @property
    def ledger(self) -> Path:
        """What the lab has taken from the machine."""
        return self.directory / "ledger.jsonl"

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.directory / "lab.sock"

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.directory / "daemon.log"

    @property
    def credentials(self) -> Path:
        """The cloud account's keys."""
        return self.directory / "credentials.json"

    @property
    def key(self) -> Path:
        """The SSH key that every source lets in."""
        return self.directory / "ssh" / "id_ed25519"

    def exists(self) -> bool:
        """Whether this lab has state; raise LabError when something else is in its place."""
        if not self.directory.is_dir() or self.directory.is_symlink():
            if os.path.lexists(self.directory):
                raise LabError(f"{self.directory} is no directory", "Choose another --name")
            return False
        if (self.directory / MARK).is_file():
            return True
        if any(self.directory.iterdir()):
            raise LabError(f"{self.directory} was not made by a lab", "Choose another --name or FLEETLIFT_LAB_DIR")
        return False

    def create(self) -> None:
        """Make the state directory and mark it as a lab's."""
        self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.base.stat()
        if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
            raise LabError(f"{self.base} can be written by others than root", "Choose another FLEETLIFT_LAB_DIR")
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)
        (self.directory / MARK).write_text(json.dumps({"schema": SCHEMA, "name": self.name}) + "\n", encoding="ascii")
