# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket owes every request an answer, also while the daemon ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fleetlift_agent.control import ControlServer, ask
from fleetlift_agent.errors import AgentError


def test_an_ending_daemon_answers_what_it_was_asked(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(_arguments: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        go_on.wait(10)
        return {"bye": True}

    server = ControlServer(tmp_path, {"shutdown": slow})
    server.start()
    replies: list[dict[str, Any]] = []
    client = threading.Thread(target=lambda: replies.append(ask(tmp_path, "shutdown", {}, 10)))
    client.start()
    assert asked.wait(10)
    ending = threading.Thread(target=server.drain)
    ending.start()
    assert ending.is_alive(), "it waits for the answer"
    go_on.set()
    ending.join(10)
    client.join(10)
    assert replies == [{"ok": True, "bye": True}]


def test_an_unknown_command_is_a_record(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, {})
    server.start()
    assert ask(tmp_path, "dance", {}, 10)["error"]["code"] == "COMMAND_UNKNOWN"


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="AGENT_NOT_RUNNING"):
        ask(tmp_path, "status", {}, 1)
