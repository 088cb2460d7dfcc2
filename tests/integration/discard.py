# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A discard service (RFC 863) on port 5201 that notes in /run/preflight-received how many bytes it was sent."""

from __future__ import annotations

import socket
import threading

RECEIVED = "/run/preflight-received"
total = 0
lock = threading.Lock()


def discard(connection: socket.socket) -> None:
    global total
    with connection:
        while piece := connection.recv(65536):
            with lock:
                total += len(piece)
                with open(RECEIVED, "w", encoding="ascii") as file:
                    file.write(str(total))


with socket.create_server(("", 5201), backlog=64) as server:
    while True:
        threading.Thread(target=discard, args=(server.accept()[0],), daemon=True).start()
