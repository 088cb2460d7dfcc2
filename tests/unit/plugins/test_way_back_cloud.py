# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots and isolation of a target, against the lab's cloud by the vendor's SDK."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.isolation import (
    Isolation,
    describe,
    group_name,
    kept,
    networks,
    own_address,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.landing import Credentials, Goal, Landing
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.snapshots import Snapshots, snapshot_name
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.modules import target_isolation, target_snapshot
from lab_fleet import DATABASE, Fleet

DISKS = ["disk-dbsys001", "disk-dbdata01", "disk-dbdata02"]
BEFORE = ["sg-fleetlift", "sg-second"]
CONTROLLER = "10.98.0.2"


def quick(timeout: float = 20.0) -> Waiter:
    """Looks again soon, because the lab's cloud is quick."""
    return Waiter(timeout, spread=lambda low, high: 0.02)


def services(fleet: Fleet) -> tuple[CloudClient, Instances]:
    access = fleet.access()
    client = CloudClient(access)
    return client, Instances(client, access.region)


def snapshots(fleet: Fleet, waiter: Any = None, migration: str = "db1") -> Snapshots:
    return Snapshots(*services(fleet), DATABASE, snapshot_name(migration), waiter or quick())


def isolation(fleet: Fleet) -> Isolation:
    return Isolation(*services(fleet), DATABASE, quick())


def stop(fleet: Fleet) -> None:
    landing = Landing(fleet.instances(), DATABASE, quick(), credentials=Credentials("root", None, "SOFT_FIRST"))
    assert landing.reach(Goal.STOPPED).target.state == "STOPPED"


def order(**given: Any) -> dict[str, Any]:
    return {"disk_ids": [], "controllers": [CONTROLLER], "security_groups": [], "state": "present", **given}


def refusal(call: Any) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.finding.code


def groups_of(fleet: Fleet) -> list[str]:
    return list(fleet.cloud.store.instances[DATABASE].security_group_ids)


# Snapshots


def test_every_disk_is_kept_once(fleet: Fleet) -> None:
    first = target_snapshot.run(snapshots(fleet), order(), check_mode=False)
    assert (first["changed"], sorted(first["disk_ids"])) == (True, sorted(DISKS))
    assert {item["state"] for item in first["snapshots"]} == {"NORMAL"}
    assert {item["percent"] for item in first["snapshots"]} == {100}
    again = target_snapshot.run(snapshots(fleet), order(), check_mode=False)
    assert (again["changed"], len(again["snapshots"])) == (False, 3)


def test_check_mode_keeps_nothing(fleet: Fleet) -> None:
    result = target_snapshot.run(snapshots(fleet), order(), check_mode=True)
    assert (result["changed"], result["snapshots"]) == (True, [])
    assert fleet.changes() == []


def test_snapshots_of_another_migration_are_none_of_this_one(fleet: Fleet) -> None:
    snapshots(fleet, migration="other").take(["disk-dbsys001"])
    assert snapshots(fleet).found() == []
    assert target_snapshot.run(snapshots(fleet), order(state="absent"), check_mode=False)["changed"] is False
    assert len(snapshots(fleet, migration="other").found()) == 1


def test_long_names_of_migrations_stay_apart_within_the_limit() -> None:
    names = {snapshot_name("x" * 62 + last) for last in "ab"}
    assert len(names) == 2 and max(map(len, names)) <= 60


def test_disk_of_another_instance_is_refused(fleet: Fleet) -> None:
    assert refusal(lambda: snapshots(fleet).disk_ids(["disk-websys01"])) == "SNAPSHOT_DISK_FOREIGN"


def test_without_waiting_the_progress_is_told(fleet: Fleet) -> None:
    fleet.hypervisor.gate.clear()
    (taken,) = snapshots(fleet, DummyWaiter()).take(["disk-dbsys001"])
    assert (taken.state, taken.percent) == ("CREATING", 0)


def test_snapshot_that_takes_too_long_is_waited_for_again(fleet: Fleet) -> None:
    fleet.hypervisor.gate.clear()
    assert refusal(lambda: snapshots(fleet, quick(0.2)).take(["disk-dbsys001"])) == "SNAPSHOT_TIMEOUT"
    fleet.hypervisor.gate.set()
    assert len(snapshots(fleet).take(["disk-dbsys001"])) == 1
    assert fleet.changes().count("CreateSnapshot") == 1


def test_snapshot_that_fails_is_said_with_the_disk_s_reason(fleet: Fleet) -> None:
    fleet.hypervisor.fail.add("snapshot_disk")
    with pytest.raises(Refusal) as caught:
        snapshots(fleet).take(["disk-dbsys001"])
    assert caught.value.finding.code == "SNAPSHOT_FAILED"
    assert "failed as asked" in caught.value.finding.cause


def test_disks_go_back_and_elastic_ones_are_attached_again(fleet: Fleet) -> None:
    snapshots(fleet).take(DISKS)
    stop(fleet)
    fleet.cloud.store.disks["disk-dbdata01"].delete_with_instance = True
    result = target_snapshot.run(snapshots(fleet), order(state="restored"), check_mode=False)
    assert sorted(result["disk_ids"]) == sorted(DISKS)
    attached = [item["parameters"]["DiskIds"] for item in fleet.requests("AttachDisks")]
    assert sorted(attached) == [["disk-dbdata01"], ["disk-dbdata02"]]
    assert fleet.changes().count("ApplySnapshot") == 3
    disks = fleet.cloud.store.disks
    assert {disks[name].instance_id for name in DISKS} == {DATABASE}
    assert [disks[name].delete_with_instance for name in DISKS[1:]] == [True, False]


def test_restore_that_was_interrupted_continues_with_a_detached_disk(fleet: Fleet) -> None:
    snapshots(fleet).take(DISKS)
    stop(fleet)
    fleet.hypervisor.fail.add("apply_snapshot")
    code = refusal(lambda: target_snapshot.run(snapshots(fleet), order(state="restored"), check_mode=False))
    assert code == "SNAPSHOT_RESTORE_FAILED"
    fleet.hypervisor.fail.clear()
    target_snapshot.run(snapshots(fleet), order(state="restored"), check_mode=False)
    assert {fleet.cloud.store.disks[name].state for name in DISKS} == {"ATTACHED"}


def test_running_instance_is_not_put_back(fleet: Fleet) -> None:
    snapshots(fleet).take(DISKS)
    assert refusal(lambda: snapshots(fleet).restorable()) == "SNAPSHOT_INSTANCE_NOT_STOPPED"
    assert "ApplySnapshot" not in fleet.changes()


def test_nothing_kept_is_nothing_to_put_back(fleet: Fleet) -> None:
    assert refusal(lambda: snapshots(fleet).restorable()) == "SNAPSHOT_MISSING"


def test_snapshots_are_deleted_once(fleet: Fleet) -> None:
    snapshots(fleet).take(DISKS)
    assert target_snapshot.run(snapshots(fleet), order(state="absent"), check_mode=False)["changed"] is True
    assert target_snapshot.run(snapshots(fleet), order(state="absent"), check_mode=False)["changed"] is False
    assert fleet.cloud.store.snapshots == {}


# Isolation


def test_isolated_instance_has_one_group_that_lets_the_controller_in_and_nothing_out(fleet: Fleet) -> None:
    stop(fleet)
    result = target_isolation.run(isolation(fleet), order(), check_mode=False)
    assert (result["changed"], result["before"]) == (True, BEFORE)
    (group_id,) = groups_of(fleet)
    group = fleet.cloud.store.groups[group_id]
    assert group.name == group_name(DATABASE)
    assert [(rule.action, rule.protocol, rule.cidr) for rule in group.ingress] == [("ACCEPT", "ALL", "10.98.0.2/32")]
    assert group.egress == []
    assert target_isolation.run(isolation(fleet), order(), check_mode=False)["changed"] is False


def test_isolated_instance_gets_its_own_groups_back_and_no_group_is_left(fleet: Fleet) -> None:
    stop(fleet)
    isolation(fleet).isolate([CONTROLLER])
    result = target_isolation.run(isolation(fleet), order(state="absent"), check_mode=False)
    assert (result["changed"], groups_of(fleet)) == (True, BEFORE)
    assert sorted(fleet.cloud.store.groups) == sorted(BEFORE)
    assert target_isolation.run(isolation(fleet), order(state="absent"), check_mode=False)["changed"] is False


def test_isolation_in_check_mode_changes_nothing(fleet: Fleet) -> None:
    stop(fleet)
    before = fleet.changes()
    assert target_isolation.run(isolation(fleet), order(), check_mode=True)["changed"] is True
    assert (fleet.changes(), groups_of(fleet)) == (before, BEFORE)


@pytest.mark.parametrize("state", ["present", "absent"])
def test_running_copy_changes_its_groups_in_neither_direction(fleet: Fleet, state: str) -> None:
    if state == "absent":
        stop(fleet)
        isolation(fleet).isolate([CONTROLLER])
        fleet.cloud.set_instance(DATABASE, InstanceState="RUNNING")
    groups = groups_of(fleet)
    code = refusal(lambda: target_isolation.run(isolation(fleet), order(state=state), check_mode=False))
    assert (code, groups_of(fleet)) == ("ISOLATION_INSTANCE_NOT_STOPPED", groups)


def test_rules_that_somebody_added_are_taken_away(fleet: Fleet) -> None:
    stop(fleet)
    group = isolation(fleet).isolate([CONTROLLER])
    client, _instances = services(fleet)
    for side in ("Ingress", "Egress"):
        rule = {"Action": "ACCEPT", "Protocol": "ALL", "CidrBlock": "0.0.0.0/0"}
        params = {"SecurityGroupId": group.group_id, "SecurityGroupPolicySet": {side: [rule]}}
        client.call("vpc", "CreateSecurityGroupPolicies", params)
    assert target_isolation.run(isolation(fleet), order(), check_mode=False)["changed"] is True
    left = fleet.cloud.store.groups[group.group_id]
    assert ([rule.cidr for rule in left.ingress], left.egress) == (["10.98.0.2/32"], [])


def test_group_that_an_interrupted_run_left_is_made_anew(fleet: Fleet) -> None:
    stop(fleet)
    isolation(fleet).isolate([CONTROLLER])
    fleet.cloud.set_instance(DATABASE, SecurityGroupIds="sg-second")
    isolation(fleet).isolate([CONTROLLER])
    assert target_isolation.run(isolation(fleet), order(state="absent"), check_mode=False)["changed"] is True
    assert groups_of(fleet) == ["sg-second"]


def test_group_without_a_record_needs_the_operator_s_word(fleet: Fleet) -> None:
    stop(fleet)
    group = isolation(fleet).isolate([CONTROLLER])
    fleet.cloud.store.groups[group.group_id].description = "edited"
    assert refusal(lambda: isolation(fleet).release([])) == "ISOLATION_GROUPS_UNKNOWN"
    isolation(fleet).release(["sg-second"])
    assert groups_of(fleet) == ["sg-second"]


@pytest.mark.parametrize("controller", ["0.0.0.0/0", "::/0", "controller", ""])
def test_controller_that_is_everybody_or_nobody_is_refused(controller: str) -> None:
    assert refusal(lambda: networks([controller])) == "ISOLATION_CONTROLLER_INVALID"


def test_own_address_is_the_one_that_the_target_sees() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"


def test_description_keeps_the_groups_or_refuses() -> None:
    groups = tuple(f"sg-{number:08d}" for number in range(5))
    assert kept(describe(groups)) == groups
    assert kept("somebody else's group") == ()
    assert refusal(lambda: describe([f"sg-{number:08d}" for number in range(9)])) == "ISOLATION_TOO_MANY_GROUPS"


# Stopping


def test_running_instance_and_one_in_rescue_mode_are_stopped(fleet: Fleet) -> None:
    stop(fleet)
    password = Credentials("root", "Landing-2026", "SOFT_FIRST")
    Landing(fleet.instances(), DATABASE, quick(), credentials=password).reach(Goal.PRESENT)
    stop(fleet)
    assert fleet.changes() == ["StopInstances", "EnterRescueMode", "ExitRescueMode"]
    assert fleet.cloud.store.instances[DATABASE].stop_charging_mode == "KEEP_CHARGING"
