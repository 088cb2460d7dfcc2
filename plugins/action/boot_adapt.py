# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.boot_adapt: end the receiver, run the adaptation, show what it changed."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ..module_utils.boot_adaptation import agent_options, listed, shown
from ..plugin_utils import agent_bundle, agent_deployment
from ..plugin_utils.agent_action import AgentAction
from ..plugin_utils.remote_agent import AgentRefusal, RemoteAgent, RemoteError, parse_reply

# What of a receiver's directory says nothing about the disks' content; the rest would be wrong afterwards.
KEPT = ("agent.pyz", "config.json", "tls", "python", "runtime", "agent.log", "agent.log.1")


def request(arguments: dict[str, Any], disks: list[dict[str, Any]], *, check: bool, diff: bool) -> dict[str, Any]:
    """The agent's request for these module arguments."""
    return {
        "disks": disks,
        "check": check,
        "diff": diff,
        "undo": arguments["state"] == "absent",
        "options": agent_options(arguments),
    }


class ActionModule(AgentAction):
    MODULE = "boot_adapt"

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        agent = self.agent(arguments)
        disks = self.disks(agent, arguments)
        # Also in check mode: it is in RAM, and nothing can be looked into without it.
        python = agent_deployment.find_interpreter(agent, arguments["python"], arguments["runtime"], check_mode=False)
        agent = RemoteAgent(agent.shell, arguments["migration"], python)
        running = agent.status_or_none()
        if running is not None and self.check_mode:
            return {
                "changed": True,
                "changes": [],
                "findings": [],
                "msg": "the receiver holds the disks, so that nothing can be looked into before it is stopped",
            }
        if running is not None:
            self.end_receiver(agent, running)
        if not self.check_mode:
            self.forget_manifests(agent)
        agent_deployment.deploy_program(agent, agent_bundle.build(agent_bundle.source_directory()))
        reply = self.run_adaptation(agent, request(arguments, disks, check=self.check_mode, diff=self.diff_mode))
        changes = reply["changes"]
        result = {key: reply[key] for key in ("changed", "findings", "root", "seconds")}
        if self.diff_mode:
            result["diff"] = shown(changes)
        result["changes"] = listed(changes)
        return result

    @property
    def diff_mode(self) -> bool:
        """Whether the user asked to see the texts."""
        return bool(self._task.diff)

    def disks(self, agent: RemoteAgent, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """The disks as the agent takes them. Raises RemoteError (ARGUMENT_MISSING) when nobody knows them."""
        given = arguments["disks"]
        if given:
            return [
                {
                    "id": disk["id"],
                    "serial": disk["target_serial"],
                    "size": disk["size"] or 0,
                    "device": disk["device"] or "",
                    "aliases": disk["aliases"],
                    "source_serial": disk["source_serial"] or "",
                }
                for disk in given
            ]
        answer = agent.shell.run(f"cat {agent.directory}/config.json 2>/dev/null; true")
        try:
            configured = json.loads(answer.stdout)["disks"]
        except (ValueError, KeyError) as error:
            raise RemoteError(
                "ARGUMENT_MISSING",
                "no disks were given, and there is no receiver whose configuration names them.",
                "give the option disks.",
                subject=self.host,
            ) from error
        return [{"id": disk["id"], "serial": disk["serial"], "size": disk["size"]} for disk in configured]

    def end_receiver(self, agent: RemoteAgent, running: dict[str, Any]) -> None:
        """Raise RemoteError (COPY_NOT_SEALED) for a copy that is not complete; else stop the receiver."""
        if running.get("sealed") is None:
            raise RemoteError(
                "COPY_NOT_SEALED",
                f"the receiver is in phase '{running.get('phase')}': the copy is not complete and verified.",
                "finish the cutover first, or remove the receiver if the copy is to be adapted as it is.",
                subject=self.host,
            )
        try:
            agent.control("shutdown", timeout=60)
        except AgentRefusal as error:
            # It may have ended between the two calls, which is what we want.
            if error.record["code"] != "AGENT_NOT_RUNNING":
                raise

    def forget_manifests(self, agent: RemoteAgent) -> None:
        """Remove what a receiver would take for the content of the disks when it is started here again."""
        kept = " ".join(f"! -name {shlex.quote(name)}" for name in KEPT)
        where = agent.directory
        agent.shell.run(f"test ! -d {where} || find {where} -mindepth 1 -maxdepth 1 {kept} -exec rm -rf {{}} +")

    def run_adaptation(self, agent: RemoteAgent, order: dict[str, Any]) -> dict[str, Any]:
        """The agent's result. Raises AgentRefusal for the first blocker, naming all of them in its evidence."""
        command = f"{shlex.quote(agent.python)} {agent.directory}/agent.pyz adapt"
        answer = agent.shell.run(command, stdin=json.dumps(order).encode())
        reply = parse_reply(answer)
        if reply is None:
            raise RemoteError(
                "AGENT_UNREADABLE",
                "the adaptation ended without a result.",
                "run the play again: it continues.",
                subject=self.host,
                evidence=(answer.stderr.strip() or answer.stdout.strip())[-1000:],
            )
        if not reply.get("ok"):
            raise AgentRefusal(reply["error"])
        return reply
