# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.wave: the ledger is here, so nothing is run anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.utils.display import Display

from ..module_utils import waves
from ..module_utils.kept_file import shared_json
from ..modules.wave import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction

YES = ("y", "yes")


class Turn:
    """One source's turn. *now* gives aware times, *ask* puts a question to somebody, None when nobody can be asked."""

    def __init__(
        self,
        arguments: dict[str, Any],
        *,
        tell: Callable[[str], None],
        ask: Callable[[str], str | None],
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._arguments = arguments
        self._source = arguments["source"]
        self._wave = arguments["wave"]
        self._path = Path(arguments["ledger"]).expanduser()
        self._rules = waves.Rules(
            concurrency=arguments["concurrency"],
            failure_budget=arguments["failure_budget"],
            approval=arguments["approval"],
            timeout=arguments["timeout"],
        )
        self._tell = tell
        self._ask = ask
        self._now = now
        self._sleep = sleep

    def open(self) -> None:
        """Begin a run. What an earlier one has left is forgotten."""
        with shared_json(self._path) as record:
            record.clear()
            record.update(waves.opened(self._arguments["waves"] or {}).record())

    def end(self) -> None:
        """Note how the cutover has ended."""
        with shared_json(self._path) as record:
            ledger = waves.ledger_from(record)
            record.update(self._moved(ledger, self._arguments["result"]).record())

    def begin(self) -> waves.Verdict:
        """Wait for the turn; returns a verdict of go or held."""
        told = ""
        while True:
            verdict, ledger = self._look()
            if verdict.kind in ("go", "held"):
                return verdict
            if verdict.kind == "ask":
                self._answer(ledger)
                continue
            if verdict.reason != told:
                self._tell(verdict.reason)
                told = verdict.reason
            self._sleep(self._arguments["poll_interval"])

    def look(self) -> waves.Verdict:
        """What the verdict would be now; nothing is noted."""
        with shared_json(self._path) as record:
            return self._verdict(waves.ledger_from(record))

    def _look(self) -> tuple[waves.Verdict, waves.Ledger]:
        with shared_json(self._path) as record:
            ledger = waves.ledger_from(record)
            verdict = self._verdict(ledger)
            if verdict.kind == "go":
                ledger = self._moved(ledger, waves.RUNNING)
            elif verdict.kind == "held":
                ledger = self._moved(ledger, waves.HELD)
            elif verdict.kind == "ask":
                ledger = waves.asked(ledger, self._wave)
            record.update(ledger.record())
        return verdict, ledger

    def _verdict(self, ledger: waves.Ledger) -> waves.Verdict:
        window = self._arguments["window"] or ""
        return waves.verdict(ledger, self._source, self._wave, self._rules, window, self._now())

    def _moved(self, ledger: waves.Ledger, state: str) -> waves.Ledger:
        return waves.moved(ledger, self._source, self._wave, state, self._now().timestamp())

    def _answer(self, ledger: waves.Ledger) -> None:
        answer = self._ask(waves.question(ledger, self._wave, self._rules, self._now().timestamp()))
        if answer is None:
            self._tell("nobody can be asked here; set fleetlift_wave_approval to false to go on without")
        with shared_json(self._path) as record:
            yes = answer is not None and answer.strip().lower() in YES
            record.update(waves.answered(waves.ledger_from(record), self._wave, yes).record())


def ask_at_terminal(text: str) -> str | None:
    """What somebody types; None where there is no terminal, or where they leave it at that."""
    try:
        return Display().prompt_until(text).decode("utf-8", "replace")
    except AnsibleError:
        return None


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        host = variables["inventory_hostname"]
        arguments["source"] = arguments["source"] or host
        turn = Turn(arguments, tell=lambda line: Display().display(f"[{host}] {line}"), ask=ask_at_terminal)
        result: dict[str, Any] = {"changed": False}
        if arguments["state"] == "begun":
            started = time.monotonic()
            try:
                verdict = turn.look() if self._task.check_mode else turn.begin()
            except ValueError as error:
                return {
                    **result,
                    "failed": True,
                    "msg": f"WINDOW_INVALID: {error}. Next: correct fleetlift_window of {host}.",
                }
            result.update(begun=verdict.kind == "go", waited_seconds=round(time.monotonic() - started, 1))
            if verdict.finding:
                result["finding"] = verdict.finding.record()
        elif not self._task.check_mode:
            (turn.open if arguments["state"] == "opened" else turn.end)()
        return result
