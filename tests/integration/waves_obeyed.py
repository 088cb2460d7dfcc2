# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read from the journals whether a run in waves has obeyed its rules.

waves_obeyed.py STATE_DIR FLEET_DIR --concurrency N --budget BYTES --failed NAME
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

parser = argparse.ArgumentParser()
parser.add_argument("state", type=Path)
parser.add_argument("fleet", type=Path)
parser.add_argument("--concurrency", type=int, required=True)
parser.add_argument("--budget", type=int, required=True)
parser.add_argument("--failed", required=True)
options = parser.parse_args()

plan = yaml.safe_load((options.fleet / "fleet.fleetlift.yml").read_text())["sources"]
waves = {source["name"]: source["wave"] for source in plan}
journals = {name: json.loads((options.state / "journal" / f"{name}.json").read_text()) for name in waves}


def phase(name: str, wanted: str) -> dict[str, Any]:
    return next(each for each in journals[name]["phases"] if each["phase"] == wanted)


failed = sorted(name for name, journal in journals.items() if journal["status"] == "failed")
assert failed == [options.failed], failed
done = sorted(name for name, journal in journals.items() if journal["phase"] == "cutover")
assert sorted([*done, *failed]) == sorted(waves), done

# From the order to quiesce to the last word about the target, which for the failed one is the failure.
spans = {name: (phase(name, "quiesce")["finished"], journals[name]["phases"][-1]["finished"]) for name in waves}
for name, (begun, ended) in spans.items():
    print(f"wave {waves[name]} {name}: {begun:.1f} to {ended:.1f}")
    earlier = [other for other in waves if waves[other] < waves[name]]
    assert all(spans[other][1] <= begun for other in earlier), f"{name} was begun before an earlier wave had ended"
    at_once = [other for other in waves if spans[other][0] <= begun < spans[other][1]]
    assert len(at_once) <= options.concurrency, f"{at_once} were cut over at once"

seen = json.loads((options.fleet / "bandwidth-seen.json").read_text())
print(seen)
assert seen["looks"] > 20 and seen["together"] > 1, seen
assert 0 < seen["most"] <= options.budget, seen
