# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A test launch that was interrupted is ended once, by the next play; against the lab's cloud by the vendor's SDK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.fleetlift.cvm.plugins.module_utils import journal
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.isolation import Isolation
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.landing import Credentials, Goal, Landing
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import Waiter
from lab_fleet import DATABASE, REGION, SECRET_ID, SECRET_KEY, Fleet
from play_here import play

GROUPS = ["sg-fleetlift", "sg-second"]
INTERRUPTED = (
    ("preflight", "ok"),
    ("landing", "ok"),
    ("agent", "ok"),
    ("transfer", "ok"),
    ("test_launch", "started"),
)


def note(directory: Path, *words: tuple[str, str]) -> None:
    """Write into the journal of the source what its plays would have."""
    path = journal.journal_path(str(directory / "state/journal"), "here")
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, (phase, status) in enumerate(words):
        known = journal.with_phase(
            journal.read_journal(path), source="here", target=DATABASE, phase=phase, status=status, data={}, now=number
        )
        journal.write_journal(path, known)


def statuses(directory: Path) -> dict[str, str]:
    known = journal.read_journal(journal.journal_path(str(directory / "state/journal"), "here"))
    assert known is not None
    return {item["phase"]: item["status"] for item in known["phases"]}


def begin(fleet: Fleet, directory: Path) -> tuple[int, str]:
    """What every playbook does first for a source."""
    given: dict[str, Any] = {
        "fleetlift_target": DATABASE,
        "fleetlift_region": REGION,
        "fleetlift_cloud_endpoint": fleet.endpoint,
        "fleetlift_secret_id": SECRET_ID,
        "fleetlift_secret_key": SECRET_KEY,
        "fleetlift_state_dir": str(directory / "state"),
    }
    role = {"name": "fleetlift.cvm.settings", "tasks_from": "skip_finished"}
    return play(directory, [{"ansible.builtin.import_role": role, "vars": given}])


def leave_isolated(fleet: Fleet) -> None:
    """What an interrupted test launch leaves: the copy runs, and nobody but the controller reaches it."""
    waiter = Waiter(20.0, spread=lambda low, high: 0.02)
    credentials = Credentials("root", None, "SOFT_FIRST")
    Landing(fleet.instances(), DATABASE, waiter, credentials=credentials).reach(Goal.STOPPED)
    Isolation(CloudClient(fleet.access()), fleet.instances(), DATABASE, waiter).isolate(["10.98.0.2"])
    fleet.cloud.set_instance(DATABASE, InstanceState="RUNNING")


def test_the_next_play_stops_the_copy_and_gives_the_target_its_groups_back(fleet: Fleet, tmp_path: Path) -> None:
    note(tmp_path, *INTERRUPTED)
    leave_isolated(fleet)

    status, said = begin(fleet, tmp_path)

    assert status == 0, said
    target = fleet.cloud.store.instances[DATABASE]
    assert (target.state, list(target.security_group_ids)) == ("STOPPED", GROUPS)
    assert statuses(tmp_path)["test_launch"] == "failed"


def test_a_target_that_became_the_server_since_is_not_stopped(fleet: Fleet, tmp_path: Path) -> None:
    note(tmp_path, *INTERRUPTED)
    leave_isolated(fleet)
    begin(fleet, tmp_path)
    note(tmp_path, ("quiesce", "ok"), ("handover", "ok"), ("adapt", "ok"), ("cutover", "ok"))
    fleet.cloud.set_instance(DATABASE, InstanceState="RUNNING")
    before = fleet.changes()

    status, said = begin(fleet, tmp_path)

    assert status == 0, said
    assert (fleet.cloud.store.instances[DATABASE].state, fleet.changes()) == ("RUNNING", before)


def test_nor_one_whose_journal_still_calls_the_test_unfinished(fleet: Fleet, tmp_path: Path) -> None:
    note(tmp_path, *INTERRUPTED, ("quiesce", "ok"), ("handover", "ok"), ("adapt", "ok"), ("cutover", "ok"))

    status, said = begin(fleet, tmp_path)

    assert status == 0, said
    assert (fleet.cloud.store.instances[DATABASE].state, fleet.changes()) == ("RUNNING", [])
