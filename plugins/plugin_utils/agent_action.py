# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugins that drive an agent have in common: arguments, check mode, errors and patience."""

from __future__ import annotations

import hashlib
import importlib
import re
import time
from collections.abc import Callable
from typing import Any

import yaml
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.findings import Refusal
from .remote_agent import AnsibleConnectionFailure, RemoteAgent, RemoteError, RemoteShell

MODULES = "ansible_collections.fleetlift.cvm.plugins.modules"
FRAGMENTS = "ansible_collections.fleetlift.cvm.plugins.doc_fragments"
KEEPALIVE = re.compile(r"-o ServerAlive\w+=\d+ ?")
SPEC_KEYS = ("type", "required", "default", "choices", "elements")


def argument_spec(documentation: str) -> dict[str, Any]:
    """The argument spec that a module's DOCUMENTATION and its fragments describe: one truth for docs and check."""
    described = parse(documentation)
    options = dict(described.get("options") or {})
    for name in described.get("extends_documentation_fragment", []):
        options = {**fragment_options(name), **options}
    return options_spec(options)


def fragment_options(name: str) -> dict[str, Any]:
    """The options of one of this collection's documentation fragments, named as modules do."""
    module, _dot, part = name.removeprefix("fleetlift.cvm.").partition(".")
    fragment = importlib.import_module(f"{FRAGMENTS}.{module}").ModuleDocFragment
    return dict(parse(getattr(fragment, part.upper() or "DOCUMENTATION")).get("options") or {})


def parse(documentation: str) -> dict[str, Any]:
    """The mapping in *documentation*. By libyaml where it is there: each task of each host does this anew."""
    found: dict[str, Any] = yaml.load(documentation, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def options_spec(options: dict[str, Any]) -> dict[str, Any]:
    """Convert a documented ``options`` (or ``suboptions``) mapping to an argument spec."""
    spec: dict[str, Any] = {}
    for name, documented in options.items():
        spec[name] = {key: documented[key] for key in SPEC_KEYS if key in documented}
        if "suboptions" in documented:
            spec[name]["options"] = options_spec(documented["suboptions"])
    return spec


class AgentAction(ActionBase):
    """An action on the agent of one migration. Subclasses set ``MODULE`` and implement ``act``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    MODULE = ""

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do the work; returns the task's result. Raises RemoteError for what the user can act on."""
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        self.task_vars = task_vars or {}
        documentation = importlib.import_module(f"{MODULES}.{self.MODULE}").DOCUMENTATION
        _validated, arguments = self.validate_argument_spec(argument_spec(documentation))
        arguments["migration"] = arguments["migration"] or self.task_vars["inventory_hostname"]
        self.expect_lost_connections()
        try:
            result.update(self.act(arguments))
        except RemoteError as error:
            result.update(failed=True, msg=str(error), finding=error.record)
        except Refusal as refusal:
            result.update(failed=True, msg=str(refusal), finding=refusal.finding.record())
        return result

    def expect_lost_connections(self, interval: int = 5, count: int = 6) -> None:
        """Make SSH notice a dead path within ``interval`` times ``count`` seconds instead of hanging as TCP may.

        A server that loses its power says no farewell: nothing but an unanswered question tells that it is gone. The
        questions are asked by the process that holds the connection, so it may not be one that another module opened.
        """
        if not self.over_ssh:
            return
        extra = KEEPALIVE.sub("", self._connection.get_option("ssh_extra_args") or "").strip()
        keepalive = f"-o ServerAliveInterval={interval} -o ServerAliveCountMax={count}"
        self._connection.set_option("ssh_extra_args", f"{extra} {keepalive}".strip())
        whom = "-".join(str(self._connection.get_option(name)) for name in ("host", "port", "remote_user"))
        own = hashlib.sha256(f"{whom}-{interval}-{count}".encode()).hexdigest()[:10]
        self._connection.set_option("control_path", f"%(directory)s/fl-{own}")

    @property
    def over_ssh(self) -> bool:
        """Whether the task's host is reached by OpenSSH."""
        return bool(self._connection.transport.rpartition(".")[2] == "ssh")

    @property
    def check_mode(self) -> bool:
        """Whether nothing may be changed."""
        return bool(self._task.check_mode)

    @property
    def host(self) -> str:
        """The name under which the user knows the source."""
        return str(self.task_vars["inventory_hostname"])

    def shell(self) -> RemoteShell:
        """A shell on the task's host."""
        return RemoteShell(self._low_level_execute_command)

    def agent(self, arguments: dict[str, Any]) -> RemoteAgent:
        """The agent of this migration on the task's host."""
        return RemoteAgent(self.shell(), arguments["migration"], arguments.get("python"))

    def tell(self, line: str) -> None:
        """Print a line at once, while the task runs."""
        Display().display(f"[{self.host}] {line}")

    def patiently(self, ask: Callable[[], Any], grace: float, purpose: str) -> Any:
        """Call ``ask`` until it is not cut off by a lost connection, for at most ``grace`` seconds.

        The agent works on without us, so a connection lost while we look is nothing but a gap in the view.
        """
        lost: float | None = None
        while True:
            try:
                return ask()
            except AnsibleConnectionFailure as error:
                now = time.monotonic()
                if lost is None:
                    lost = now
                    self.tell(f"connection lost while {purpose}; the agent works on, trying again for {grace:.0f} s")
                if now - lost > grace:
                    raise RemoteError(
                        "CONNECTION_LOST",
                        f"the server could not be reached for {grace:.0f} s while {purpose}.",
                        "restore the connection and run the play again: it re-attaches to the running agent.",
                        evidence=str(error)[-300:],
                    ) from error
                self._connection.close()
                time.sleep(2)
