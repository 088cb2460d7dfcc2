# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process that owns a lab: started by ``up``, ended by ``down``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import description
from lab.cloud.hypervisor import HypervisorError
from lab.control import ControlServer
from lab.datacentre import DataCentre
from lab.errors import LabError
from lab.ledger import Ledger
from lab.machines.protocol import MachineError
from lab.place import Place
from lab.processes import identify

log = logging.getLogger(__name__)


class Daemon:
    """Serves one lab. Standard output takes its progress as JSON lines until it is ready or has failed."""

    def __init__(self, place: Place, file: Path) -> None:
        self._place = place
        self._centre = DataCentre(place, description.load(file))
        self._stop = threading.Event()

    def run(self) -> None:
        """Start the lab, serve until told to stop, take the lab down."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        try:
            self._centre.start(lambda text: say({"progress": text}))
            control = ControlServer(self._place.socket, self._commands())
            control.start()
        except (LabError, MachineError, HypervisorError) as error:
            log.exception("start")
            action = error.action if isinstance(error, LabError) else "See the console logs in the lab's directory"
            say({"failed": {"cause": getattr(error, "cause", str(error)), "action": action}})
        except Exception as error:
            log.exception("start")
            say({"failed": {"cause": f"{type(error).__name__}: {error}", "action": f"See {self._place.log}"}})
        else:
            say({"ready": True})
            # Whoever waited has read that; from now on nobody reads this end.
            os.dup2(2, 1)
            self._stop.wait()
        self._centre.stop()

    def _commands(self) -> dict[str, Any]:
        centre = self._centre
        return {
            "status": centre.status,
            "stop": self._stop.set,
            "machine": self._machine,
            "link": lambda name, up: centre.network.set_link(centre.resolve(name), up=up),
            "instance": lambda name, fields: centre.set_instance(centre.resolve(name), fields),
            "resolve": centre.resolve,
            "cos-status": centre.cos_status,
            "notices": centre.notices,
            "cos-fault": centre.cos_fault,
        }

    def _machine(self, name: str, action: str) -> None:
        machine = self._centre.source(name)
        if action in ("stop", "restart"):
            machine.stop(hard=False)
        if action in ("start", "restart"):
            machine.start()


def say(message: dict[str, Any]) -> None:
    """Tell whoever started the daemon, if it still listens: the lab does not depend on it."""
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def serve(place: Place, file: Path) -> None:
    """Be the daemon of the lab at ``place``."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    # What the machines' files may be does not depend on who starts the lab; its own directory is root's alone.
    os.umask(0o022)
    myself = identify(os.getpid())
    assert myself is not None
    Ledger(place.ledger).process(myself)
    try:
        daemon = Daemon(place, file)
    except LabError as error:
        say({"failed": {"cause": error.cause, "action": error.action}})
        return
    daemon.run()
