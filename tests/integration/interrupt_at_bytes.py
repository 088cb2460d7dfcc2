# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a command and kill it with all its children once the lab's COS has received so much: BYTES COMMAND...

Counted from the start of the lab, uploads under way included only when their request has ended. Exit status 0 when the
command was killed, 1 when it ended before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from lab.control import call
from lab.place import Place
from lab.processes import kill_and_wait, stop_tree

limit, *command = sys.argv[1:]
place = Place.of(os.environ["FLEETLIFT_LAB_NAME"])
with subprocess.Popen(command) as process:
    while process.poll() is None:
        if call(place.socket, "cos-status")["bytes_received"] >= int(limit):
            # Ansible's workers are sessions of their own, and would go on without it.
            kill_and_wait(stop_tree(process.pid))
            sys.exit(0)
        time.sleep(0.05)
sys.exit(1)
