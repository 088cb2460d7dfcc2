# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the agent's boot adaptation takes and gives, for those who call it: on a landing's disks or on an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def agent_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the agent's request for a module's arguments."""
    return {
        "skip": arguments["skip"],
        "firmware": arguments["firmware"],
        "grow": arguments.get("grow", False),
        "root": arguments["root"] or "",
        "network": {key: value for key, value in (arguments["network"] or {}).items() if value is not None},
        "consoles": arguments["consoles"],
        "cloud_init": arguments["cloud_init"],
        "timeout": arguments["command_timeout"],
    }


def listed(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The changes as modules return them, without texts."""
    return [{key: each[key] for key in ("concern", "action", "path")} for each in changes]


def shown(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The changes of files as Ansible shows differences."""
    return [
        {
            "before_header": change["path"],
            "after_header": change["path"],
            "before": change["before"],
            "after": change["after"],
        }
        for change in changes
        if change["path"] and change.get("before") != change.get("after")
    ]
