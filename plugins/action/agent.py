# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.agent."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..module_utils.reach import proxy_address
from ..plugin_utils import agent_bundle, agent_deployment, pair_certificates
from ..plugin_utils.agent_action import AgentAction
from ..plugin_utils.remote_agent import AgentRefusal, RemoteAgent, RemoteError

SCHEMA = 1
TLS = {"certificate": "tls/cert.pem", "key": "tls/key.pem", "peer_certificate": "tls/peer.pem"}


def configuration(arguments: dict[str, Any]) -> dict[str, Any]:
    """The agent's ``config.json`` for these module arguments."""
    common = {"schema": SCHEMA, "migration": arguments["migration"], "role": arguments["role"], "tls": TLS}
    if arguments["role"] == "sender":
        return {
            **common,
            "peer": {"host": arguments["peer_host"], "port": arguments["port"], **through(arguments["proxy"])},
            "connections": arguments["connections"],
            "change_tracking": arguments["change_tracking"],
            "audit": arguments["audit"],
            "skip_free": arguments["skip_free"],
            "left_behind": arguments["left_behind"],
            "compression": arguments["compression"],
            "disks": [
                {
                    "id": disk["id"],
                    "device": disk["device"],
                    "size": disk["size"],
                    "target_serial": disk["target_serial"],
                }
                for disk in arguments["disks"]
            ],
        }
    return {
        **common,
        "listen": {"host": "0.0.0.0", "port": arguments["port"]},
        "disks": [
            {"id": disk["id"], "serial": disk["target_serial"], "size": disk["size"]} for disk in arguments["disks"]
        ],
    }


def through(proxy: str | None) -> dict[str, Any]:
    """The part of the configuration that names the proxy. Raises RemoteError (PROXY_INVALID) for what is none."""
    if not proxy:
        return {}
    try:
        host, port = proxy_address(proxy)
    except ValueError as error:
        raise RemoteError(
            "PROXY_INVALID", f"{error}.", "give the proxy as http://ADDRESS:PORT, without user and password."
        ) from error
    return {"proxy": {"host": host, "port": port}}


def require(arguments: dict[str, Any]) -> None:
    """Raise RemoteError (ARGUMENT_MISSING) when an option that ``state: present`` needs was not given."""
    needed = ["role", "disks", "pki_directory"] + (["peer_host"] if arguments["role"] == "sender" else [])
    missing = [name for name in needed if not arguments.get(name)]
    if missing:
        raise RemoteError(
            "ARGUMENT_MISSING", f"state 'present' needs {', '.join(missing)}.", "add them to the task's options."
        )


def pair_files(directory: Path, migration: str, role: str, make: bool) -> dict[str, bytes] | None:
    """The TLS files of ``role`` by their path below the agent's directory; None when they don't exist (check mode)."""
    now = datetime.datetime.now(datetime.timezone.utc)
    if make:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(directory / ".lock", "w") as lock:
            os.chmod(lock.name, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            pair_certificates.ensure_pair(directory, migration, now)
    elif not all(pair_certificates.is_valid(directory, each, now) for each in pair_certificates.ROLES):
        return None
    return {
        TLS["certificate"]: (directory / f"{role}.crt").read_bytes(),
        TLS["key"]: (directory / f"{role}.key").read_bytes(),
        TLS["peer_certificate"]: (directory / f"{pair_certificates.other(role)}.crt").read_bytes(),
    }


class ActionModule(AgentAction):
    MODULE = "agent"

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        agent = self.agent(arguments)
        return self.present(agent, arguments) if arguments["state"] == "present" else self.absent(agent)

    def present(self, agent: RemoteAgent, arguments: dict[str, Any]) -> dict[str, Any]:
        require(arguments)
        if pair_certificates.CRYPTOGRAPHY_ERROR:
            raise RemoteError(
                "LIBRARY_MISSING",
                "the controller has no 'cryptography' library.",
                "pip install cryptography, in the environment that runs ansible-playbook.",
                evidence=pair_certificates.CRYPTOGRAPHY_ERROR,
            )
        bundle = agent_bundle.build(agent_bundle.source_directory())
        python = agent_deployment.find_interpreter(
            agent, arguments["python"], arguments["runtime"], check_mode=self.check_mode
        )
        tls = pair_files(
            Path(arguments["pki_directory"]), arguments["migration"], arguments["role"], make=not self.check_mode
        )
        files = {
            "agent.pyz": bundle.data,
            "config.json": json.dumps(configuration(arguments), indent=1, sort_keys=True).encode() + b"\n",
            "python": python.encode() + b"\n",
            **(tls or {}),
        }
        there = agent.shell.sha256([f"{agent.directory}/{name}" for name in files])
        outdated = [
            name
            for name, data in files.items()
            if there.get(f"{agent.directory}/{name}") != hashlib.sha256(data).hexdigest()
        ]
        running = agent.status_or_none() if there else None
        changed = bool(outdated) or running is None or tls is None
        result = {
            "changed": changed,
            "directory": agent.directory,
            "sha256": bundle.sha256,
            "python": python,
            "restarted": bool(outdated) and running is not None,
        }
        if self.check_mode or not changed:
            return result if running is None else {**result, "pid": running["pid"]}
        if outdated and running is not None:
            self.stop(agent, running)
        agent_deployment.prepare_directory(agent.shell, agent.directory)
        for name in outdated:
            agent.shell.write(f"{agent.directory}/{name}", files[name])
        agent_deployment.check_digest(agent, bundle.sha256)
        started = RemoteAgent(agent.shell, arguments["migration"], python).call(f"start --dir {agent.directory}")
        return {**result, "pid": started["pid"]}

    def stop(self, agent: RemoteAgent, state: dict[str, Any]) -> None:
        """Stop a daemon that is to be replaced, unless a cutover is under way: its source may be frozen."""
        cutover = state.get("cutover") or {}
        if cutover.get("phase") not in (None, "aborted", "released"):
            raise RemoteError(
                "AGENT_IN_CUTOVER",
                "the agent's configuration changed while a cutover is under way.",
                "let the cutover finish or abort it, then run again.",
                subject=self.host,
                evidence=f"cutover phase {cutover.get('phase')}",
            )
        try:
            agent.control("shutdown", timeout=60)
        except AgentRefusal as error:
            # It may have ended between the two calls, which is what we want.
            if error.record["code"] != "AGENT_NOT_RUNNING":
                raise

    def clean(self, agent: RemoteAgent) -> None:
        """What a sender that was killed left in the kernel. A directory that was never complete has left nothing."""
        if agent.shell.run(f"test -s {agent.directory}/config.json && test -s {agent.directory}/agent.pyz").rc == 0:
            agent.call(f"clean --dir {agent.directory}")

    def absent(self, agent: RemoteAgent) -> dict[str, Any]:
        result = {"directory": agent.directory}
        exists = agent.shell.run(f"test -e {agent.directory}").rc == 0
        if self.check_mode or not exists:
            return {**result, "changed": exists}
        running = agent.status_or_none()
        if running is not None:
            self.stop(agent, running)
        else:
            self.clean(agent)
        answer = agent.shell.run(f"rm -rf {agent.directory} && {{ rmdir /run/fleetlift 2>/dev/null || true; }}")
        if answer.rc != 0:
            raise RemoteError(
                "AGENT_NOT_REMOVED",
                f"{agent.directory} could not be removed.",
                "remove it by hand; it is in RAM and gone after a reboot anyway.",
                evidence=answer.stderr.strip()[-300:],
            )
        return {**result, "changed": True}
