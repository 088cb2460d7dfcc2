# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whoever is killed with its children is killed with all of them."""

from __future__ import annotations

import subprocess

from lab.processes import is_alive, kill_and_wait, stop_tree


def test_a_descendant_in_a_session_of_its_own_ends_with_the_others() -> None:
    script = "setsid sh -c 'sleep 300 & echo ready; wait' & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        assert top.stdout.readline() == "ready\n"
        processes = stop_tree(top.pid)
        assert len(processes) == 3
        assert all(is_alive(process) for process in processes)
        kill_and_wait(processes)
    assert not any(is_alive(process) for process in processes)


def test_a_process_that_has_ended_has_no_descendants() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert stop_tree(ended.pid) == []
