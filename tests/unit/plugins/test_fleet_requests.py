# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often the API is asked about a whole fleet, counted by the lab's cloud in plays that really run."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_fleet import REGION, SECRET_ID, SECRET_KEY, Fleet, instance, small_store
from play_here import run

from lab.cloud.store import Disk, Store

MANY = 250
# Limits of the API: ids in one request.
BATCH = 100


@pytest.fixture
def store() -> Store:
    """A cloud with many instances, which share two security groups."""
    store = small_store()
    for number in range(MANY):
        store.add_disk(Disk(f"disk-many{number:04}", 50, "ap-guangzhou-3"))
        made = instance(f"ins-many{number:04}", f"many{number}", 0, f"disk-many{number:04}")
        made.state, made.private_addresses, made.public_addresses = "STOPPED", ["127.0.0.1"], []
        store.add_instance(made)
    return store


def inventory(directory: Path, fleet: Fleet, count: int, *, named: bool = False, **variables: Any) -> Path:
    """An inventory of *count* sources, all of which are this machine, with targets by their ids or *named*."""
    hosts = {
        f"srv{number:03}": {
            **({"fleetlift_target_name": f"many{number}"} if named else {"fleetlift_target": f"ins-many{number:04}"}),
            "access": {"instance_id": f"ins-many{number:04}", "region": REGION, "endpoint": fleet.endpoint,
                       "secret_id": SECRET_ID, "secret_key": SECRET_KEY},
        }
        for number in range(count)
    }  # fmt: skip
    common = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "fleetlift_region": REGION,
        "fleetlift_cloud_endpoint": fleet.endpoint,
        "fleetlift_secret_id": SECRET_ID,
        "fleetlift_secret_key": SECRET_KEY,
        "fleetlift_state_dir": str(directory / "state"),
        "fleetlift_disks": [{"source": "/dev/none-such", "target": "system"}],
        **variables,
    }
    path = directory / "hosts.yml"
    path.write_text(yaml.safe_dump({"sources": {"hosts": hosts, "vars": common}}))
    return path


def asked(fleet: Fleet) -> Counter[str]:
    return Counter(entry["action"] for entry in fleet.requests())


def test_targets_of_a_whole_fleet_are_asked_for_by_the_hundred(fleet: Fleet, tmp_path: Path) -> None:
    look = {
        "name": "Look",
        "fleetlift.cvm.fleet_info": {"sources": "{{ ansible_play_hosts }}", "access": "access"},
        "delegate_to": "localhost",
        "run_once": True,
        "register": "looked",
    }
    check = {"ansible.builtin.assert": {"that": f"looked.targets | length == {MANY}"}, "run_once": True}
    book = tmp_path / "look.yml"
    book.write_text(yaml.safe_dump([{"hosts": "sources", "gather_facts": False, "tasks": [look, check]}]))
    code, said = run(tmp_path, "-i", str(inventory(tmp_path, fleet, MANY)), str(book))
    assert code == 0, said
    batches = -(-MANY // BATCH)
    assert asked(fleet) == {
        "DescribeInstances": batches, "DescribeDisks": batches, "DescribeSecurityGroupPolicies": 2,
    }  # fmt: skip


def test_preflight_asks_once_for_all_also_where_the_first_needs_none(fleet: Fleet, tmp_path: Path) -> None:
    """The first source has been handed over: what is done once for all is done all the same."""
    hosts = inventory(tmp_path, fleet, 4)
    journals = tmp_path / "state" / "journal"
    journals.mkdir(parents=True)
    over = {"phase": "handover", "status": "ok", "started": 1.0, "finished": 2.0, "data": {}}
    known = {"schema": 1, "source": "srv000", "target": "ins-many0000", "phases": [over], "phase": "handover"}
    (journals / "srv000.json").write_text(json.dumps(known))
    code, said = run(tmp_path, "-i", str(hosts), "fleetlift.cvm.preflight")
    report = json.loads((tmp_path / "state" / "preflight" / "preflight.json").read_text())
    assert asked(fleet) == {"DescribeInstances": 1, "DescribeDisks": 1, "DescribeSecurityGroupPolicies": 2}, said
    states = {source["source"]: source["state"] for source in report["sources"]}
    assert states == {"srv000": "done", "srv001": "blocked", "srv002": "blocked", "srv003": "blocked"}
    # Each was brought together with its own target.
    for source in report["sources"][1:]:
        assert "DISK_UNKNOWN" in {finding["code"] for finding in source["findings"]}, said
        assert "TARGET_NOT_FOUND" not in {finding["code"] for finding in source["findings"]}
    # A pipeline stops, and sees for whom.
    assert code == 2
    failed = {name for name in states if re.search(rf"(?m)^{name} .* failed=1 ", said)}
    assert failed == {"srv001", "srv002", "srv003"}, said


def test_targets_that_are_named_are_looked_for_one_by_one_and_read_together(fleet: Fleet, tmp_path: Path) -> None:
    hosts = inventory(tmp_path, fleet, 2, named=True, fleetlift_report_dir=str(tmp_path / "report"))
    for _first_and_again in range(2):
        before = asked(fleet)
        _code, said = run(tmp_path, "-i", str(hosts), "fleetlift.cvm.preflight")
        report = json.loads((tmp_path / "report" / "preflight.json").read_text())
        assert {source["source"]: source["target"] for source in report["sources"]} == {
            "srv000": "ins-many0000", "srv001": "ins-many0001",
        }, said  # fmt: skip
        for source in report["sources"]:
            codes = {finding["code"] for finding in source["findings"]}
            assert "DISK_UNKNOWN" in codes and "TARGET_NOT_FOUND" not in codes, said
        assert asked(fleet) - before == {
            "DescribeInstances": 2 + 1, "DescribeDisks": 1, "DescribeSecurityGroupPolicies": 2,
        }  # fmt: skip
