# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket: one JSON request and one JSON reply per connection, for root on this host only."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent.errors import AgentError

log = logging.getLogger(__name__)

SOCKET = "control.sock"
_LIMIT = 1 << 20
_IDLE_SECONDS = 10.0
# How long an ending daemon waits for the answers it owes: its own shutdown's at least.
_FAREWELL_SECONDS = 2.0

Command = Callable[[dict[str, Any]], dict[str, Any]]


class ControlServer:
    """Answers commands in threads. `commands` maps a command's name to its function."""

    def __init__(self, directory: Path, commands: dict[str, Command]) -> None:
        self._commands = commands
        path = directory / SOCKET
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(directory) as short:
            self._socket.bind(short)
        path.chmod(0o600)
        self._socket.listen(16)
        self._serving: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _address = self._socket.accept()
            thread = threading.Thread(target=self._serve, args=(client,), name="command", daemon=True)
            with self._lock:
                self._serving.add(thread)
            thread.start()

    def drain(self) -> None:
        """Wait, but not for long, until what was asked has been answered: the process is about to end."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        with self._lock:
            serving = list(self._serving)
        for thread in serving:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(_IDLE_SECONDS)
                request = json.loads(_read_all(client))
                client.settimeout(None)
                client.sendall(json.dumps(self._answer(request)).encode())
        except (OSError, ValueError) as error:
            log.warning("control: %s", error)
        finally:
            with self._lock:
                self._serving.discard(threading.current_thread())

    def _answer(self, request: Any) -> dict[str, Any]:
        try:
            name = request.get("command") if isinstance(request, dict) else None
            arguments = request.get("arguments") if isinstance(request, dict) else None
            command = self._commands.get(str(name))
            if command is None or not isinstance(arguments, dict):
                raise AgentError(
                    "COMMAND_UNKNOWN",
                    f"This agent has no command {str(name)[:40]!r} with such arguments",
                    f"Use one of: {', '.join(sorted(self._commands))}",
                )
            return {"ok": True, **command(arguments)}
        except AgentError as error:
            return {"ok": False, "error": error.record()}


def ask(directory: Path, command: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Send one command to the daemon in `directory`. Raises AgentError when it does not answer within `timeout` s."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout)
            with _short_path(directory) as short:
                client.connect(short)
            client.sendall(json.dumps({"command": command, "arguments": arguments}).encode())
            client.shutdown(socket.SHUT_WR)
            reply = json.loads(_read_all(client))
    except socket.timeout as error:
        raise AgentError(
            "AGENT_TIMEOUT",
            f"The agent did not answer `{command}` within {timeout:g} s",
            "Ask for its status; the command may still be at work",
            subject=str(directory),
        ) from error
    except (OSError, ValueError) as error:
        raise AgentError(
            "AGENT_NOT_RUNNING",
            f"No agent answers in {directory}: {error}",
            "Start the agent; replication continues from what the target holds already",
            subject=str(directory),
        ) from error
    if not isinstance(reply, dict):
        raise AgentError("AGENT_NOT_RUNNING", "The agent's answer is not an object", "Start the agent again")
    return reply


def _read_all(peer: socket.socket) -> bytes:
    pieces = bytearray()
    while True:
        piece = peer.recv(65536)
        if not piece:
            return bytes(pieces)
        pieces += piece
        if len(pieces) > _LIMIT:
            raise ValueError("the message is too long")


@contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """The socket's path through a descriptor: sockaddr_un has room for 107 bytes only (unix(7))."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
