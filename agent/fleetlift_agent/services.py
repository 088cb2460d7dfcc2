# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop and start named services, whichever service manager the server has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from .errors import AgentError

_NAME = re.compile(r"[A-Za-z0-9_.@:][A-Za-z0-9_.@:\\-]*")
COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POLL = 0.1
_EVIDENCE_BYTES = 2000


class ServiceManager(Protocol):
    """What a cutover asks of a service manager. ``timeout`` is seconds for each service."""

    def is_running(self, name: str) -> bool:
        """Whether *name* runs. Raises :class:`AgentError` SERVICE_UNKNOWN or SERVICE_STATE_UNKNOWN."""

    def stop(self, names: Sequence[str], timeout: float) -> list[str]:
        """Stop *names* in this order; return those that ran before.

        All names are checked before the first is stopped. When one does not stop, those stopped before are started
        again. Raises :class:`AgentError` SERVICE_UNKNOWN, SERVICE_STATE_UNKNOWN or SERVICE_STOP_FAILED.
        """

    def start(self, names: Sequence[str], timeout: float) -> None:
        """Start *names* in reverse order, all of them even if one fails.

        Raises :class:`AgentError` SERVICE_START_FAILED with those that did not start.
        """


@dataclass(frozen=True)
class Outcome:
    """``status`` is None when the command was ended after its time."""

    status: int | None
    output: str


class _Manager:
    """Order, checks and way back, which do not depend on the kind of service manager."""

    # Commands that end within their own time: asking for a state.
    _QUESTION_TIMEOUT = 30.0

    def _known(self, name: str) -> bool:
        raise NotImplementedError

    def _running(self, name: str) -> bool:
        raise NotImplementedError

    def _change(self, action: str, name: str, timeout: float) -> Outcome:
        """Run the manager's own ``stop`` or ``start``."""
        raise NotImplementedError

    def is_running(self, name: str) -> bool:
        self._check([name])
        return self._running(name)

    def stop(self, names: Sequence[str], timeout: float) -> list[str]:
        self._check(names)
        running = [name for name in dict.fromkeys(names) if self._running(name)]
        for position, name in enumerate(running):
            try:
                self._reach("stop", name, timeout, running=False)
            except AgentError as error:
                # The one that failed may be half stopped: starting a running service does nothing.
                self._restore(running[: position + 1], timeout, error)
                raise
        return running

    def start(self, names: Sequence[str], timeout: float) -> None:
        self._check(names)
        failures: dict[str, AgentError] = {}
        for name in reversed(list(dict.fromkeys(names))):
            try:
                if not self._running(name):
                    self._reach("start", name, timeout, running=True)
            except AgentError as error:
                failures[name] = error
        if failures:
            raise AgentError(
                "SERVICE_START_FAILED",
                f"these services did not start: {', '.join(failures)}",
                "Start them by hand on the source and read their logs",
                {name: error.record() for name, error in failures.items()},
                subject=next(iter(failures)),
            )

    def _check(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if not _NAME.fullmatch(name) or not self._known(name)]
        if unknown:
            raise AgentError(
                "SERVICE_UNKNOWN",
                f"this server has no service named {', '.join(unknown)}",
                "Correct the list of services of this source; nothing was stopped",
                {"services": list(names), "unknown": unknown},
                subject=unknown[0],
            )

    def _reach(self, action: str, name: str, timeout: float, *, running: bool) -> None:
        """Change the service and wait until it is in the wanted state, which may be later than the command's end."""
        deadline = time.monotonic() + timeout
        outcome = self._change(action, name, timeout)
        while outcome.status == 0 and self._running(name) is not running:
            if time.monotonic() >= deadline:
                outcome = Outcome(None, outcome.output)
                break
            time.sleep(_POLL)
        if outcome.status == 0:
            return
        reason = (
            f"it took longer than {timeout:g} seconds"
            if outcome.status is None
            else f"the service manager answered with exit status {outcome.status}"
        )
        raise AgentError(
            f"SERVICE_{action.upper()}_FAILED",
            f"the service {name} did not {action}: {reason}",
            f"{action.capitalize()} it by hand to see why, or allow more time, and start the cutover again",
            {"status": outcome.status, "output": outcome.output},
            subject=name,
        )

    def _restore(self, names: Sequence[str], timeout: float, error: AgentError) -> None:
        """Start *names* again after *error*; what does not start is added to its evidence."""
        try:
            self.start(names, timeout)
        except AgentError as failure:
            error.evidence["restart"] = failure.record()
        else:
            error.evidence["restarted"] = list(names)


class SystemdServices(_Manager):
    """systemd, version 219 (CentOS 7) or later."""

    def __init__(self, systemctl: str = "systemctl") -> None:
        self._systemctl = systemctl

    def _known(self, name: str) -> bool:
        # "loaded" also holds for a unit that only an /etc/init.d script defines; "masked" cannot be started again.
        return self._property(name, "LoadState") == "loaded"

    def _running(self, name: str) -> bool:
        return self._property(name, "ActiveState") in ("active", "reloading", "activating", "deactivating")

    def _change(self, action: str, name: str, timeout: float) -> Outcome:
        return run_command([self._systemctl, "--no-ask-password", action, "--", _unit(name)], timeout)

    def _property(self, name: str, key: str) -> str:
        outcome = run_command([self._systemctl, "show", f"--property={key}", "--", _unit(name)], self._QUESTION_TIMEOUT)
        if outcome.status != 0:
            raise _state_unknown(name, outcome)
        for line in outcome.output.splitlines():
            if line.startswith(f"{key}="):
                return line.partition("=")[2].strip()
        raise _state_unknown(name, outcome)


class SysVServices(_Manager):
    """The scripts in /etc/init.d, run with the clean environment that service(8) gives them."""

    def __init__(self, scripts: Path = Path("/etc/init.d")) -> None:
        self._scripts = scripts

    def _known(self, name: str) -> bool:
        script = self._scripts / name
        return script.is_file() and os.access(script, os.X_OK)

    def _running(self, name: str) -> bool:
        # Linux Standard Base 5.0, "Init Script Actions": 0 runs, 1 to 3 does not, everything else is no answer. A
        # script without a "status" action ends with 2 or 3 as well, but says how it wants to be used.
        outcome = self._change("status", name, self._QUESTION_TIMEOUT)
        if outcome.status is None or outcome.status > 3 or (outcome.status and "usage:" in outcome.output.lower()):
            raise _state_unknown(name, outcome)
        return outcome.status == 0

    def _change(self, action: str, name: str, timeout: float) -> Outcome:
        return run_command([str(self._scripts / name), action], timeout)


class OpenRCServices(_Manager):
    """OpenRC, as on Alpine and Gentoo."""

    def __init__(self, rc_service: str = "rc-service") -> None:
        self._rc_service = rc_service

    def _known(self, name: str) -> bool:
        return run_command([self._rc_service, "--exists", name], self._QUESTION_TIMEOUT).status == 0

    def _running(self, name: str) -> bool:
        # rc-service(8) passes on the status of the script: 0 started, 3 stopped, 4 stopping, 8 starting, 16 inactive,
        # 32 crashed.
        outcome = self._change("status", name, self._QUESTION_TIMEOUT)
        if outcome.status in (0, 4, 8):
            return True
        if outcome.status in (3, 16, 32):
            return False
        raise _state_unknown(name, outcome)

    def _change(self, action: str, name: str, timeout: float) -> Outcome:
        return run_command([self._rc_service, name, action], timeout)


class NullServiceManager:
    """A server without a service manager: nothing to stop is fine, a name is refused."""

    def is_running(self, name: str) -> bool:
        raise self._refusal([name])

    def stop(self, names: Sequence[str], timeout: float) -> list[str]:
        if names:
            raise self._refusal(names)
        return []

    def start(self, names: Sequence[str], timeout: float) -> None:
        if names:
            raise self._refusal(names)

    @staticmethod
    def _refusal(names: Sequence[str]) -> AgentError:
        return AgentError(
            "SERVICE_MANAGER_UNKNOWN",
            f"this server has neither systemd nor OpenRC nor /etc/init.d, so {', '.join(names)} cannot be stopped",
            "Leave the list of services empty and stop them yourself before the cutover; nothing was stopped",
            {"services": list(names)},
            subject=names[0],
        )


def detect(*, root: Path = Path("/"), search_path: str = COMMAND_PATH) -> ServiceManager:
    """The service manager that runs this server: systemd, OpenRC, /etc/init.d, or none."""
    if (root / "run/systemd/system").is_dir():
        return SystemdServices(shutil.which("systemctl", path=search_path) or "systemctl")
    rc_service = shutil.which("rc-service", path=search_path)
    if rc_service is not None:
        return OpenRCServices(rc_service)
    if (root / "etc/init.d").is_dir():
        return SysVServices(root / "etc/init.d")
    return NullServiceManager()


def _unit(name: str) -> str:
    suffixes = (".service", ".socket", ".timer", ".target", ".path", ".mount", ".automount", ".slice", ".scope")
    return name if name.endswith(suffixes) else f"{name}.service"


def _state_unknown(name: str, outcome: Outcome) -> AgentError:
    return AgentError(
        "SERVICE_STATE_UNKNOWN",
        f"the service manager does not tell whether {name} runs",
        "Take it off the list of services and stop it yourself before the cutover",
        {"status": outcome.status, "output": outcome.output},
        subject=name,
    )


def run_command(command: Sequence[str], timeout: float) -> Outcome:
    """Run *command* for at most ``timeout`` seconds, in a session of its own so that a daemon outlives the agent.

    The output goes to a file in memory, not through a pipe: a daemon that a script starts keeps its end open for ever.
    """
    with _memory_file() as output:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": COMMAND_PATH, "LC_ALL": "C", "TERM": "dumb"},
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(127, f"{command[0]}: {error.strerror}")
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            # The command only: daemons that it started belong to the server.
            process.kill()
            process.wait()
            status = None
        output.seek(0)
        return Outcome(status, output.read()[-_EVIDENCE_BYTES:].decode("utf-8", "replace").strip())


def _memory_file() -> IO[bytes]:
    """A file on a tmpfs: the source's disks are not written to."""
    return tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else "/run")
