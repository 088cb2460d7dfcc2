# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

AGENT = Path(__file__).resolve().parents[3] / "agent"

# Refuses to go on unless it is process 1 or 2 of a PID namespace other than the one named by the test: outside of one
# reboot(2) would switch off the machine that runs the test.
GUARDED = """
import os, sys
outside = sys.argv[1]
assert os.readlink("/proc/self/ns/pid") != outside and os.getpid() <= 2, "not in a PID namespace of its own"
from fleetlift_agent.power import power_off
"""


def in_a_pid_namespace(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *options, sys.executable, "-c", GUARDED + program]
        + [os.readlink("/proc/self/ns/pid")],
        env={"PYTHONPATH": str(AGENT), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )


def test_power_off_ends_every_process_of_the_server() -> None:
    """The init of the namespace waits for ever; only the power off from its child ends it."""
    program = "child = os.fork()\nif child == 0: power_off()\nimport signal\nwhile True: signal.pause()"
    done = in_a_pid_namespace(program)
    # reboot(2): init of the namespace is ended by SIGINT, which is how its parent learns of a power off.
    assert done.returncode == 128 + 2 or done.returncode == -2, done.stdout


def test_refused_power_off_is_an_error() -> None:
    program = """
from fleetlift_agent.errors import AgentError
try: power_off()
except AgentError as error: print(error.code)
"""
    done = in_a_pid_namespace(program, "setpriv", "--bounding-set", "-sys_boot")
    assert done.stdout == "POWER_OFF_FAILED\n"
