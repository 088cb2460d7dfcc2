# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.transfer: start or re-attach, watch, tune, stop."""

from __future__ import annotations

import time
from typing import Any

from ..module_utils.progress import duration, progress_line
from ..plugin_utils.agent_action import AgentAction
from ..plugin_utils.bandwidth_share import NoShare, Share, share_for
from ..plugin_utils.remote_agent import AgentRefusal, RemoteAgent, RemoteError

RUNNING = ("initial_sync", "delta_sync", "in_sync", "cutover")
REPORTED = (
    "phase",
    "totals",
    "passes",
    "features",
    "disks",
    "stalled",
    "bandwidth_limit",
    "sync",
    "used_blocks",
    "unplanned",
    "read_back",
)


def report(state: dict[str, Any]) -> dict[str, Any]:
    """What of the agent's state belongs into the task's result."""
    return {key: state.get(key) for key in REPORTED}


def warnings_of(state: dict[str, Any]) -> list[str]:
    """What whoever watches should know before the cutover refuses."""
    return [
        f"{disk['device']} came into use on the source (mounted at {', '.join(disk['mounts'])}) and is not copied: the "
        "cutover will refuse until a preflight has mapped it or left it behind, or it is unmounted."
        for disk in state.get("unplanned") or ()
    ]


def limit_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The agent's spelling of ``bandwidth_limit``: null is no limit, absent is 'as it is'."""
    wanted = arguments["bandwidth_limit"]
    return {} if wanted is None else {"bandwidth_limit": wanted or None}


class ActionModule(AgentAction):
    MODULE = "transfer"

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        agent = self.agent(arguments)
        grace = arguments["connection_grace"]
        before = self.patiently(agent.status, grace, "asking for the state")
        share = share_for(arguments, arguments["bandwidth_limit"] or 0)
        if arguments["state"] == "stopped":
            return self.stop(agent, before, share)
        handed_over = (before.get("cutover") or {}).get("phase")
        # After a handover that let the source run on, the copy is behind it until it is told to follow again.
        running = before["phase"] in RUNNING and handed_over != "released"
        limit = limit_of(arguments) if isinstance(share, NoShare) else {}
        retune = bool(limit) and before.get("bandwidth_limit") != limit["bandwidth_limit"]
        if self.check_mode:
            return {"changed": retune or not running}
        admitted = self.admitted(share, running, arguments["poll_interval"])
        if not running:
            orders = {
                **limit,
                **admitted,
                "max_passes": arguments["max_passes"],
                "max_downtime": arguments["max_downtime"],
            }
            if handed_over == "released":
                orders["refresh"] = True
            self.patiently(lambda: agent.control("replicate", orders), grace, "starting the replication")
        elif admitted:
            self.patiently(lambda: agent.control("set", admitted), grace, "setting its part of the bandwidth")
        elif retune:
            self.patiently(lambda: agent.control("set", limit), grace, "changing the bandwidth limit")
        if arguments["state"] == "started":
            state = self.patiently(agent.status, grace, "asking for the state")
        else:
            if running:
                self.tell(f"re-attached to the running transfer: {progress_line(before)}")
            state = self.watch(agent, arguments, share)
        result = {"changed": retune or not running, "reattached": running, "transfer": report(state)}
        warnings = warnings_of(state)
        return {**result, "warnings": warnings} if warnings else result

    def admitted(self, share: Share, running: bool, pause: float) -> dict[str, Any]:
        """What the order to begin says about bandwidth, once the transfers that run have made room."""
        told = False
        while (orders := share.begin(sends_already=running)) is None:
            if not told:
                self.tell("waiting for its part of the bandwidth budget")
                told = True
            time.sleep(pause)
        return orders

    def stop(self, agent: RemoteAgent, before: dict[str, Any], share: Share) -> dict[str, Any]:
        changed = before["phase"] in RUNNING
        if changed and not self.check_mode:
            agent.control("stop", timeout=60)
            share.leave()
        return {"changed": changed, "transfer": report(before if self.check_mode else agent.status())}

    def watch(self, agent: RemoteAgent, arguments: dict[str, Any], share: Share) -> dict[str, Any]:
        """Show progress until in sync. Raises RemoteError on failure, stall or timeout; the agent works on."""
        grace = arguments["connection_grace"]

        def tune(orders: dict[str, Any]) -> None:
            self.patiently(lambda: agent.control("set", orders), grace, "setting its part of the bandwidth")

        started = time.monotonic()
        last_line = ""
        while True:
            state = self.patiently(agent.status, grace, "watching the transfer")
            line = progress_line(state)
            if line != last_line:
                self.tell(line)
                last_line = line
            if state["phase"] in ("in_sync", "cutover"):
                share.rest(tune)
                return dict(state)
            share.keep(tune)
            self.check(state, time.monotonic() - started, arguments)
            time.sleep(arguments["poll_interval"])

    def check(self, state: dict[str, Any], waited: float, arguments: dict[str, Any]) -> None:
        """Raise RemoteError when waiting on makes no sense."""
        if state["phase"] == "failed":
            raise AgentRefusal(state.get("error") or {})
        if state["phase"] in ("stopped", "idle"):
            raise RemoteError(
                "TRANSFER_STOPPED",
                "the replication was stopped by somebody else.",
                "run the play again to continue; nothing that reached the target is sent again.",
                subject=self.host,
            )
        stalled = state.get("stalled")
        if stalled and state.get("updated", 0) - stalled["since"] > arguments["stall_timeout"]:
            raise RemoteError(
                "TRANSFER_STALLED",
                f"nothing reached the target for {duration(arguments['stall_timeout'])}: {stalled['reason']}.",
                "check that the landing is up and that its security groups and the path from the source let the port "
                "through, then run the play again: the transfer continues where it was.",
                subject=self.host,
            )
        if arguments["wait_timeout"] and waited > arguments["wait_timeout"]:
            raise RemoteError(
                "TRANSFER_TIMEOUT",
                f"not in sync after {duration(waited)}; the agent works on.",
                "run the play again to re-attach, or raise fleetlift_transfer_timeout.",
                subject=self.host,
                evidence=progress_line(state),
            )
