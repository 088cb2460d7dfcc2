# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has happened to one source so far, kept on the controller.

The journal is a cache: the truth is with the agents and in the cloud, and a migration goes on without it. So one that
cannot be read is never repaired or moved, only reported.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .findings import refuse
from .kept_file import replace_json

SCHEMA = 1
# What a phase's record can say: it has begun, it has ended well, it has ended badly, it was not begun on purpose.
STATUSES = ("started", "ok", "failed", "held")


def journal_path(directory: str, source: str) -> Path:
    """The file of *source* below *directory*. Raises ``Refusal`` for a name that would leave it."""
    if not source or source != os.path.basename(source) or source.startswith("."):
        raise refuse(
            "JOURNAL_NAME_INVALID",
            source,
            f"{source!r} cannot be the name of a journal.",
            "Use a name without slashes that does not begin with a dot.",
        )
    return Path(directory) / f"{source}.json"


def read_journal(path: Path) -> dict[str, Any] | None:
    """The journal at *path*, None when there is none. Raises ``Refusal`` for one that this version cannot read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    try:
        journal = json.loads(text)
    except ValueError as error:
        raise _unreadable(path, f"not JSON: {error}") from error
    if not isinstance(journal, dict) or not isinstance(journal.get("schema"), int):
        raise _unreadable(path, "no schema number")
    if journal["schema"] > SCHEMA:
        raise refuse(
            "JOURNAL_NEWER",
            str(path),
            f"The journal {path} has schema {journal['schema']}; this version knows up to {SCHEMA}.",
            "Use the version of the collection that wrote it, or delete the file: it is a cache.",
            schema=journal["schema"],
        )
    phases = journal.get("phases")
    if not isinstance(phases, list) or not all(isinstance(item, dict) and item.get("phase") for item in phases):
        raise _unreadable(path, "its phases are not a list of records")
    return journal


def with_phase(
    journal: Mapping[str, Any] | None,
    *,
    source: str,
    target: str | None,
    phase: str,
    status: str,
    data: Mapping[str, Any],
    now: float,
) -> dict[str, Any]:
    """*journal* with one more word about *phase*, which becomes the last one; *now* is in seconds since the epoch.

    The data of a phase is merged with what it has, except that what a failure or a hold said goes when the phase is
    tried again. A journal of another target is begun anew.
    """
    known = dict(journal or {})
    if not known or (target and known.get("target") not in (None, target)):
        known = {"schema": SCHEMA, "source": source, "target": target, "phases": []}
    earlier: dict[str, Any] = next((item for item in known["phases"] if item["phase"] == phase), {})
    kept = {} if earlier.get("status") in ("failed", "held") else dict(earlier.get("data") or {})
    record = {
        "phase": phase,
        "status": status,
        "started": now if status == "started" else earlier.get("started"),
        "finished": None if status == "started" else now,
        "data": {**kept, **data},
    }
    phases = [item for item in known["phases"] if item["phase"] != phase] + [record]
    ended_well = [item["phase"] for item in phases if item["status"] == "ok"]
    return {
        **known,
        "schema": SCHEMA,
        "target": target or known.get("target"),
        "phases": phases,
        "phase": ended_well[-1] if ended_well else None,
        "status": status,
        "updated": now,
        "data": {item["phase"]: item["data"] for item in phases if item["status"] != "failed"},
    }


def write_journal(path: Path, journal: Mapping[str, Any]) -> None:
    """Replaces the file at *path*."""
    replace_json(path, journal)


def remove_journal(path: Path, *, dry: bool) -> bool:
    """Removes the file at *path* unless *dry*; whether there was one."""
    if not path.exists():
        return False
    if not dry:
        path.unlink()
    return True


def _unreadable(path: Path, reason: str) -> Exception:
    return refuse(
        "JOURNAL_CORRUPT",
        str(path),
        f"The journal {path} cannot be read: {reason}.",
        f"Delete it ({path}): it is a cache, and the migration goes on from what the agents and the cloud know.",
        reason=reason,
    )


def keep(params: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """What the options of the module ``journal`` ask for; returns its result.

    Raises ``Refusal``, and ``OSError`` when the file cannot be written.
    """
    path = journal_path(params["path"], params["source"])
    if params["state"] == "absent":
        return _result(path, None, changed=remove_journal(path, dry=check_mode))
    journal = read_journal(path)
    if params["state"] == "present":
        journal = with_phase(
            journal,
            source=params["source"],
            target=params["target"],
            phase=params["phase"],
            status=params["status"],
            data=params["data"],
            now=round(time.time(), 3),
        )
        if not check_mode:
            write_journal(path, journal)
    return _result(path, journal, changed=False)


def _result(path: Path, journal: dict[str, Any] | None, *, changed: bool) -> dict[str, Any]:
    return {"changed": changed, "journal": journal, "file": str(path)}
