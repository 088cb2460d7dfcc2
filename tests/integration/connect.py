# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""connect.py ADDRESS PORT...: say for each port whether it is open, or which exception there is instead."""

from __future__ import annotations

import socket
import sys

for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=3).close()
        print(port, "open")
    except OSError as error:
        print(port, type(error).__name__)
