# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU's machine protocol (docs/interop/qmp-spec.txt of QEMU): one JSON object per line, over a Unix socket."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.machines.protocol import MachineError


class Monitor:
    """A connection to a running QEMU; each call raises MachineError when QEMU refuses or is gone."""

    def __init__(self, path: Path, alive: Callable[[], bool], timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._connect(path, alive, timeout)
            self._lines = self._socket.makefile("rb")
            self._read()
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, path: Path, alive: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._socket.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if not alive() or time.monotonic() > deadline:
                    raise MachineError("QEMU did not open its monitor") from error
                time.sleep(0.02)
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The connection ends with the last of the two.
        self._lines.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise MachineError(f"QEMU's monitor does not answer: {error}") from error
        if not line:
            raise MachineError("QEMU closed its monitor")
        found: dict[str, Any] = json.loads(line)
        return found

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it answers."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"QEMU's monitor is gone: {error}") from error
        while True:
            answer = self._read()
            if "error" in answer:
                raise MachineError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def human(self, line: str) -> None:
        """Run a command of the human monitor; what it prints is a complaint."""
        said = str(self.execute("human-monitor-command", **{"command-line": line})).strip()
        if said:
            raise MachineError(f"QEMU refuses {line}: {said}")
