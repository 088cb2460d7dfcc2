# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a command and kill it with all its children at the moment it prints a text: interrupt_when.py TEXT COMMAND...

Exit status 0 when the text was seen and the command killed, 1 when it ended without.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

text, *command = sys.argv[1:]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if text in line:
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(0)
sys.exit(1)
