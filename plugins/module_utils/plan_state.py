# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a source has come, in one word, from its journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEW = "new"
FAILED = "failed"
HELD = "held"
STARTED = "started"


def state_of(journal: Mapping[str, Any] | None, target_id: str) -> str:
    """``new``, ``failed``, ``held``, ``started``, or the last phase that ended well.

    A journal about another target than *target_id* (empty: any) is about another migration.
    """
    if not journal or (target_id and journal.get("target") not in (None, target_id)):
        return NEW
    if journal.get("status") in (FAILED, HELD):
        return str(journal["status"])
    return str(journal.get("phase") or STARTED)
