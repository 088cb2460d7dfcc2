# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at the ledger of the bandwidth until told to stop, and note the most that its claims stood for together.

bandwidth_watch.py LEDGER OUT
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, os.environ["ANSIBLE_COLLECTIONS_PATH"])
from ansible_collections.fleetlift.cvm.plugins.module_utils.bandwidth import claims_from

ledger, out = map(Path, sys.argv[1:])
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
most, together, looks = 0, 0, 0
while not stop.wait(0.1):
    if ledger.exists():
        now = time.time()
        claims = claims_from(json.loads(ledger.read_text()), now)
        most = max(most, sum(claim.stands_for(now) for claim in claims.values()))
        together = max(together, sum(claim.runs(now) for claim in claims.values()))
        looks += 1
out.write_text(json.dumps({"most": most, "together": together, "looks": looks}))
