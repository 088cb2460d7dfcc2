# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.cutover: order it, watch it, and release the source."""

from __future__ import annotations

import time
from typing import Any

from ..module_utils.progress import progress_line
from ..plugin_utils import agent_bundle, agent_deployment
from ..plugin_utils.agent_action import AgentAction
from ..plugin_utils.bandwidth_share import Share, share_for
from ..plugin_utils.remote_agent import AgentRefusal, AnsibleConnectionFailure, RemoteAgent, RemoteError

RELEASE = {"frozen_off": "power_off", "fenced": "fence", "running": "thaw"}
LEFT = {"frozen_off": "off", "fenced": "fenced", "running": "running"}
DONE = ("prepared", "committed", "fenced", "released")
# A server that got the order to power off is gone within a second or two; a slow one gets this long.
POWER_OFF_SECONDS = 60


ORDERED = (
    "services",
    "service_timeout",
    "freeze_timeout",
    "hold_timeout",
    "verify_age",
    "pre_freeze",
    "post_thaw",
    "hook_timeout",
)


def quiesced(state: dict[str, Any], now: float) -> float:
    """When the source's services were told to stop, by the controller's clock, given the agent's state at `now`."""
    since = (state.get("cutover") or {}).get("quiesced_at")
    # Only a difference of the source's own times: its clock may be wrong.
    return now - max(0.0, state["updated"] - since) if since else now


class ActionModule(AgentAction):
    MODULE = "cutover"

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        agent = self.agent(arguments)
        if arguments["state"] == "given_back":
            return self.give_back(agent, arguments)
        before = self.patiently(agent.status, arguments["connection_grace"], "asking for the state")
        phase = (before.get("cutover") or {}).get("phase")
        if before["phase"] not in ("in_sync", "cutover"):
            raise RemoteError(
                "NOT_IN_SYNC",
                f"the source is in phase '{before['phase']}', and only one that is in sync can be cut over.",
                "run the transfer role first.",
                subject=self.host,
            )
        if self.check_mode:
            return {"changed": phase != "released"}
        share = share_for(arguments, None)
        if phase != "released":
            # It is in sync and sends already: what it has is enough to begin with, and grows while it is watched.
            self.keep(share, agent, arguments)
        if phase in (None, "aborted"):
            orders = {key: arguments[key] for key in ORDERED}
            if arguments["source_after"] == "fenced":
                orders["fence"] = self.passages(arguments["fence_allow"])
            # The agent ignores an order that it carries out already, so asking twice after a lost connection is safe.
            self.patiently(
                lambda: agent.control("cutover", orders), arguments["connection_grace"], "ordering the cutover"
            )
        state = self.watch(agent, arguments, share)
        quiesced_at = quiesced(state, time.time())
        final = self.release(agent, state, arguments)
        share.leave()
        return {
            "changed": True,
            "cutover": final["cutover"],
            "passes": final.get("passes"),
            "totals": final.get("totals"),
            "quiesced_at": quiesced_at,
            "source": LEFT[arguments["source_after"]],
        }

    def watch(self, agent: RemoteAgent, arguments: dict[str, Any], share: Share) -> dict[str, Any]:
        """Wait until the copy is verified and the source is held. Raises RemoteError when the agent gave up."""
        last_line = ""
        while True:
            state = dict(self.patiently(agent.status, arguments["connection_grace"], "watching the cutover"))
            line = progress_line(state)
            if line != last_line:
                self.tell(line)
                last_line = line
            cutover = state.get("cutover") or {}
            if cutover.get("phase") in DONE:
                return state
            if cutover.get("phase") == "aborted" or state["phase"] == "failed":
                raise AgentRefusal(cutover.get("error") or state.get("error") or {})
            self.keep(share, agent, arguments)
            time.sleep(arguments["poll_interval"])

    def keep(self, share: Share, agent: RemoteAgent, arguments: dict[str, Any]) -> None:
        """Keep up the part of the bandwidth that the last pass is sent with."""

        def tune(limits: dict[str, Any]) -> None:
            grace = arguments["connection_grace"]
            self.patiently(lambda: agent.control("set", limits), grace, "setting its part of the bandwidth")

        share.keep(tune)

    def release(self, agent: RemoteAgent, state: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """Let the source go as asked. Returns the last state that was seen."""
        action = RELEASE[arguments["source_after"]]
        if state["cutover"]["phase"] != "released":
            try:
                agent.control("release", {"action": action})
            except AnsibleConnectionFailure:
                # A source that powers off may take the connection with it before the answer is out.
                if action != "power_off":
                    raise
        if action == "fence":
            self.tell("source fenced")
        if action != "power_off":
            return dict(self.patiently(agent.status, arguments["connection_grace"], "asking for the state"))
        self.wait_until_off(agent)
        return state

    def passages(self, allowed: list[str]) -> list[dict[str, Any]]:
        """Whom a fence has to let through. Raises RemoteError (FENCE_CONTROLLER_UNKNOWN) when nobody can tell."""
        # Of the login itself: what becomes another user loses its environment.
        answer = self._low_level_execute_command("echo $SSH_CONNECTION", sudoable=False)
        words = str(answer["stdout"]).split()
        own, port = (words[-4:-3], int(words[-1])) if len(words) >= 4 and words[-1].isdigit() else ([], 22)
        if not own and not allowed:
            raise RemoteError(
                "FENCE_CONTROLLER_UNKNOWN",
                "the source does not say from which address its controller comes, and a fence would shut it out.",
                "name it with fleetlift_fence_allow.",
                subject=self.host,
            )
        return [{"address": address, "port": port} for address in dict.fromkeys([*own, *allowed])]

    def give_back(self, agent: RemoteAgent, arguments: dict[str, Any]) -> dict[str, Any]:
        """The source works again as it did before the cutover. Raises AgentRefusal when something does not start."""
        order = {"services": arguments["services"], "service_timeout": arguments["service_timeout"]}
        state = self.patiently(agent.status_or_none, arguments["connection_grace"], "asking for the state")
        if self.check_mode:
            phase = ((state or {}).get("cutover") or {}).get("phase")
            return {"changed": phase not in (None, "aborted", "released")}
        if state is not None:
            given = agent.control("give_back", order, timeout=600)
        else:
            python = agent_deployment.find_interpreter(
                agent, arguments["python"], arguments["runtime"], check_mode=False
            )
            agent = RemoteAgent(agent.shell, arguments["migration"], python)
            agent_deployment.deploy_program(agent, agent_bundle.build(agent_bundle.source_directory()))
            given = agent.call(f"give-back --dir {agent.directory}", order)
        result = {key: given[key] for key in ("aborted", "unfenced", "started")}
        return {"changed": any(result.values()), **result}

    def wait_until_off(self, agent: RemoteAgent) -> None:
        """Raise RemoteError when the source still answers: two servers with one identity must never run together."""
        deadline = time.monotonic() + POWER_OFF_SECONDS
        # This is downtime: a machine that is off does not close its connections, and is to be missed soon.
        self.expect_lost_connections(interval=2, count=3)
        while time.monotonic() < deadline:
            if self.over_ssh:
                # An open connection to a machine that is off would be used again, and wait.
                self._connection.reset()
            else:
                self._connection.close()
            try:
                answer = agent.shell.run("echo here")
            except AnsibleConnectionFailure:
                self.tell("source powered off")
                return
            if answer.rc != 0:
                continue
            time.sleep(0.5)
        raise RemoteError(
            "SOURCE_STILL_RUNNING",
            f"the source still answers {POWER_OFF_SECONDS} s after the order to power off.",
            "power it off by hand, then run the play again: the target is complete and verified.",
            subject=self.host,
        )
