# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's own commands around the freeze: have an application write out before, and let it go on after."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fleetlift_agent.errors import AgentError
from fleetlift_agent.services import run_command

log = logging.getLogger(__name__)


def run_hooks(kind: str, commands: Sequence[str], timeout: float) -> None:
    """Run each command in /bin/sh, in this order, for at most `timeout` seconds each.

    kind: "pre_freeze" or "post_thaw". Raises AgentError HOOK_FAILED at the first that fails.
    """
    for command in commands:
        log.info("%s hook: %s", kind, command)
        outcome = run_command(["/bin/sh", "-c", command], timeout)
        if outcome.status == 0:
            continue
        reason = (
            f"it took longer than {timeout:g} seconds" if outcome.status is None else f"exit status {outcome.status}"
        )
        raise AgentError(
            "HOOK_FAILED",
            f"The {kind} hook {command!r} failed: {reason}",
            "Run the command by hand on the source to see why, correct it or allow it more time, and cut over again",
            {"status": outcome.status, "output": outcome.output},
            subject="cutover",
        )
