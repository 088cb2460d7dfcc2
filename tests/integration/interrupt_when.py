# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a command and kill it with all its children at the moment it prints a text: interrupt_when.py TEXT COMMAND...

Exit status 0 when the text was seen and the command killed, 1 when it ended without.
"""

from __future__ import annotations

import subprocess
import sys

from lab.processes import kill_and_wait, stop_tree

text, *command = sys.argv[1:]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if text in line:
            # Ansible's workers are sessions of their own, and would go on without it.
            kill_and_wait(stop_tree(process.pid))
            sys.exit(0)
sys.exit(1)
