# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write the description of a lab with many light servers, and the plan that moves them.

``python tests/fleet_lab.py --hosts 12 --waves 3 DIRECTORY`` writes lab.yml and fleet.fleetlift.yml there. With
``--sabotage NAME`` the target of that source lets nobody in on port 80, which its health check asks for. With
``--targets name`` the plan names the targets by their names instead of their ids.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
# The last number of the first address, in each of the lab's networks.
FIRST = 20
MOST = 200


def rule(ports: str) -> dict[str, str]:
    return {"protocol": "TCP", "port": ports, "cidr": "0.0.0.0/0", "action": "ACCEPT"}


def lab(names: list[str], workload: str, sabotaged: str) -> dict[str, Any]:
    """The lab's description."""
    return {
        "sources": [
            {
                "name": name,
                "address": f"10.96.0.{FIRST + number}",
                "light": True,
                "workload": workload,
                "disks": [
                    {
                        "device": "sda",
                        "serial": f"LAB-{name.upper()}-0",
                        "size_mib": 512,
                        "filesystem": "ext4",
                        "mount": "/",
                    }
                ],
            }
            for number, name in enumerate(names)
        ],
        "security_groups": [
            {"id": "sg-fleetlift", "ingress": [rule("22,80,443")]},
            {"id": "sg-sabotaged", "ingress": [rule("22,443")]},
        ],
        "instances": [
            {
                "id": f"ins-fleet{number:03}",
                "name": f"{name}-target",
                "private_address": f"10.97.0.{FIRST + number}",
                "public_address": f"203.0.113.{FIRST + number}",
                "bandwidth": 200,
                "image": "none",
                "state": "STOPPED",
                "system_disk": {"id": f"disk-fleet{number:03}", "size_gb": 1},
                "security_groups": ["sg-sabotaged" if name == sabotaged else "sg-fleetlift"],
            }
            for number, name in enumerate(names)
        ],
    }


def plan(names: list[str], waves: int, workload: str, targets: str) -> dict[str, Any]:
    """The plan, as a source of the inventory plugin; *targets* are named by ``id`` or by ``name``."""
    per_wave = -(-len(names) // waves)
    return {
        "plugin": "fleetlift.cvm.plan",
        "sources": [
            {
                "name": name,
                "address": f"10.96.0.{FIRST + number}",
                "target": f"ins-fleet{number:03}" if targets == "id" else {"name": f"{name}-target"},
                "disks": [{"source": "/dev/sda", "target": "system"}],
                "wave": number // per_wave + 1,
                "services": ["nginx"] if workload == "web" else [],
                "health_checks": [{"port": 22}, *([{"port": 80}] if workload == "web" else [])],
            }
            for number, name in enumerate(names)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--waves", type=int, default=3)
    parser.add_argument("--workload", choices=("none", "web"), default="web")
    parser.add_argument("--sabotage", default="")
    parser.add_argument("--targets", choices=("id", "name"), default="id")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    if not 1 <= options.hosts <= MOST:
        parser.error(f"--hosts: expected 1 to {MOST}, the addresses of the lab's networks")
    names = [f"srv{number:03}" for number in range(options.hosts)]
    options.directory.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("lab.yml", lab(names, options.workload, options.sabotage)),
        ("fleet.fleetlift.yml", plan(names, options.waves, options.workload, options.targets)),
    ):
        (options.directory / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
