# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the command line talks to a lab's daemon: one JSON line there and one back, on a Unix socket."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.cloud.hypervisor import HypervisorError
from lab.errors import LabError
from lab.machines.protocol import MachineError

Commands = dict[str, Callable[..., Any]]
MAXIMUM_LINE = 1024 * 1024

log = logging.getLogger(__name__)


class ControlServer:
    """Answers commands until closed."""

    def __init__(self, path: Path, commands: Commands) -> None:
        self._commands = commands
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen(16)

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._answer, args=(connection,), name="control-call", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            try:
                request = json.loads(stream.readline(MAXIMUM_LINE))
                reply = self._call(request)
                stream.write(json.dumps(reply).encode() + b"\n")
            except (ValueError, OSError) as error:
                log.warning("control connection: %s", error)

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        arguments = dict(request)
        name = arguments.pop("command", None)
        command = self._commands.get(str(name))
        if command is None:
            return {"ok": False, "cause": f"unknown command {name!r}", "action": "Use the same version on both sides"}
        try:
            return {"ok": True, "result": command(**arguments)}
        except LabError as error:
            return {"ok": False, "cause": error.cause, "action": error.action}
        except (MachineError, HypervisorError) as error:
            return {"ok": False, "cause": str(error), "action": "See: console NAME"}
        except Exception as error:
            log.exception("command %s", name)
            return {"ok": False, "cause": f"{type(error).__name__}: {error}", "action": "See daemon.log"}


def call(path: Path, command: str, *, timeout: float = 300.0, **arguments: Any) -> Any:
    """Have the daemon carry out ``command``; LabError when it cannot, is not there, or takes over ``timeout`` s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise LabError("the lab is not running", "Start it: python -m lab up") from error
        try:
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
                stream.flush()
                line = stream.readline()
        except TimeoutError as error:
            raise LabError(f"the lab's daemon did not answer within {timeout:g} s", "Take the lab down") from error
        except ConnectionError:
            line = b""
    if not line:
        raise LabError("the lab's daemon ended before it answered", "See daemon.log in the lab's directory")
    reply = json.loads(line)
    if not reply["ok"]:
        raise LabError(reply["cause"], reply["action"])
    return reply["result"]
