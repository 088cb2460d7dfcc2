# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: version, start, clean, give-back, ctl, adapt, write.

Every answer is one JSON object on its output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleetlift_agent import __version__, features
from fleetlift_agent.errors import AgentError
from fleetlift_agent.wire import PROTOCOL


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 with {"error": record}."""
    options = _parser().parse_args(arguments)
    try:
        reply = _run(options)
    except AgentError as error:
        reply = {"ok": False, "error": error.record()}
    print(json.dumps(reply), flush=True)
    return 1 if "error" in reply and reply.get("ok") is not True else 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    if options.action == "version":
        return {
            "version": __version__,
            "protocol": PROTOCOL,
            "python": platform.python_version(),
            "features": features.offered(),
        }
    if options.action == "adapt":
        from fleetlift_agent.adapt.process import run

        return run(_arguments())
    if options.action == "write":
        from fleetlift_agent.object_writer import run as write

        return write(_arguments())
    directory = Path(options.dir).absolute()
    if options.action == "start":
        # Imported only now: `version` must answer on a host where the daemon could not run.
        from fleetlift_agent.daemon import start

        return start(directory)
    if options.action == "clean":
        from fleetlift_agent.daemon import clean

        return clean(directory)
    if options.action == "give-back":
        from fleetlift_agent.quiesce import Quiesce
        from fleetlift_agent.replication import give_back_arguments

        given = Quiesce([], directory).give_back(*give_back_arguments(_arguments()))
        return {"ok": True, "aborted": False, "unfenced": given.unfenced, "started": list(given.started)}
    from fleetlift_agent.control import ask

    return ask(directory, options.command, _arguments(), options.timeout)


def _arguments() -> dict[str, Any]:
    """The JSON object on standard input; nothing there means an empty one."""
    text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise _bad_input(str(error)) from error
    if not isinstance(value, dict):
        raise _bad_input("not an object")
    return value


def _bad_input(why: str) -> AgentError:
    return AgentError(
        "ARGUMENT_INVALID", f"Standard input is not one JSON object: {why}", "Pass the arguments as a JSON object"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent", description="Replicates disks of a running server.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("version", help="what this agent is and can do")
    start = actions.add_parser("start", help="start the daemon of a directory")
    start.add_argument("--dir", required=True)
    clean = actions.add_parser("clean", help="remove what a daemon that was killed left in the kernel")
    clean.add_argument("--dir", required=True)
    back = actions.add_parser("give-back", help="without a daemon: take a fence down and start services")
    back.add_argument("--dir", required=True)
    actions.add_parser("adapt", help="make a copy bootable on its target; the request is JSON on standard input")
    actions.add_parser("write", help="make a disk of an object in COS; the order is JSON on standard input")
    control = actions.add_parser("ctl", help="send a command to the daemon; arguments are JSON on standard input")
    control.add_argument("--dir", required=True)
    control.add_argument("--timeout", type=float, default=60.0)
    control.add_argument("command")
    return parser
