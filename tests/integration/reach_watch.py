# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Try to reach two places until a file appears: one that must never answer, one that always must. Prints what was seen.

``reach_watch.py --never ADDRESS:PORT --always ADDRESS:PORT --until FILE`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from pathlib import Path


def answers(place: str) -> bool:
    """Whether a connection to ADDRESS:PORT is accepted within two seconds."""
    address, _, port = place.partition(":")
    try:
        socket.create_connection((address, int(port)), 2).close()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--never", required=True)
    parser.add_argument("--always", required=True)
    parser.add_argument("--until", required=True, type=Path)
    options = parser.parse_args()
    seen = {"tries": 0, "reached_what_it_never_may": 0, "missed_what_it_always_must": 0}
    while not options.until.exists():
        time.sleep(0.1)
        seen["tries"] += 1
        seen["missed_what_it_always_must"] += not answers(options.always)
        seen["reached_what_it_never_may"] += answers(options.never)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
