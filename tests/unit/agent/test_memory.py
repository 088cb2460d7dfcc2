# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AGENT = Path(__file__).resolve().parents[3] / "agent"


def in_a_new_process(program: str, *prefix: str) -> Any:
    """What *program* prints as JSON; a new process, because locking memory cannot be taken back."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program],
        env={"PYTHONPATH": str(AGENT), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    )
    return json.loads(done.stdout)


@pytest.mark.root
def test_present_and_future_memory_is_locked() -> None:
    program = """
import json, mmap
from fleetlift_agent.memory import locked_bytes, preload_and_lock
before = locked_bytes(); notes = preload_and_lock(); after = locked_bytes()
area = mmap.mmap(-1, 1 << 20)
print(json.dumps({"notes": notes, "before": before, "after": after, "more": locked_bytes() - after}))
"""
    result = in_a_new_process(program)
    assert result["notes"] == []
    assert result["before"] == 0
    assert result["after"] > 1 << 20
    assert result["more"] >= 1 << 20


@pytest.mark.root
def test_what_cannot_be_locked_is_said() -> None:
    program = "import json; from fleetlift_agent.memory import preload_and_lock; print(json.dumps(preload_and_lock()))"
    # Without the capability the limit applies, and it is far below what Python needs.
    notes = in_a_new_process(program, "setpriv", "--bounding-set", "-ipc_lock", "prlimit", "--memlock=65536:65536")
    assert len(notes) == 1
    assert "cannot be locked" in notes[0]


def test_nothing_is_imported_after_preloading() -> None:
    """Parsing dates, TLS errors, JSON errors and tracebacks import modules on first use."""
    program = """
import json, sys
from fleetlift_agent.memory import preload_and_lock
import fleetlift_agent.freeze, fleetlift_agent.services, fleetlift_agent.power
preload_and_lock()
before = set(sys.modules)
import socket, ssl, time, traceback, subprocess, datetime
time.strptime("2026-01-01", "%Y-%m-%d"); datetime.datetime.strptime("2026-01-01", "%Y-%m-%d")
"name".encode("idna"); b"x".decode("latin-1"); "x".encode("ascii"); "x".encode("unicode_escape")
try: json.loads("{")
except ValueError: traceback.format_exc()
try: ssl.create_default_context().load_cert_chain("/nonexistent")
except OSError: traceback.format_exc()
try: socket.create_connection(("127.0.0.1", 1), 1)
except OSError: traceback.format_exc()
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    assert in_a_new_process(program) == []
