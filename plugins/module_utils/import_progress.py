# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far an import is: the cloud tells its state and no share of it, so that only time can be shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .progress import duration

WORDS = {
    "absent": "asking for the import",
    "CREATING": "being created",
    "IMPORTING": "being imported",
    "SYNCING": "being copied",
    "NORMAL": "imported",
    "IMPORTFAILED": "import failed",
    "CREATEFAILED": "import failed",
}


class ImportProgress:
    """Keeps a file of mode 0600 up to date with an import's state; None is no file. Times are in seconds."""

    def __init__(self, path: str | None, timeout: float) -> None:
        self._path = Path(path) if path else None
        self._timeout = timeout

    def tell(self, state: str, waited: float) -> None:
        """The image was seen in *state*, *waited* seconds after the beginning."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            json.dump({"state": state, "waited_seconds": waited, "timeout": self._timeout}, stream)
        new.replace(self._path)


def import_line(state: dict[str, Any]) -> str:
    """One line about an import's state."""
    word = WORDS.get(state["state"], state["state"])
    return f"{word:<22} {duration(state['waited_seconds'])} of at most {duration(state['timeout'])}"
