# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the vendor's FAQ warns of, each twice: what happens to who does not look first, and the check that catches it.

The cloud is the lab's, asked through the vendor's SDK; disks and filesystems are real. What needs servers (ports,
routes, a target that expires in the middle, an address that does not move) is in the Molecule scenarios ``preflight``
and ``migrate``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.errors import CloudError
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.landing import Goal, Step, next_step
from ansible_collections.fleetlift.cvm.plugins.module_utils.finding_codes import CODES
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import Assessment, assess_source
from lab_fleet import DATABASE, WEB, Fleet

GIB = 1 << 30
PASSWORD = "Landing-2026"


def disk(name: str, gib: int, mountpoint: str) -> dict[str, Any]:
    return {
        "path": f"/dev/{name}", "name": name, "size": gib * GIB, "serial": None, "mounted": True,
        "system": mountpoint == "/", "logical_block_size": 512,
        "filesystems": [{"type": "ext4", "mountpoints": [mountpoint]}],
    }  # fmt: skip


SYSTEM = disk("sda", 20, "/")
ONE = [{"source": "/dev/sda", "target": "system"}]


def assess(fleet: Fleet, *disks: dict[str, Any], **options: Any) -> Assessment:
    """What the preflight says about a source with *disks*, and about the target as the cloud shows it now."""
    given: dict[str, Any] = {
        "source": "web1",
        "facts": {"architecture": "x86_64", "disks": list(disks or (SYSTEM,))},
        "target": fleet.instances().by_ids([options.pop("on", WEB)])[0],
        "mapping": ONE,
        "targets_of_all": {"web1": WEB},
        **options,
    }
    return assess_source(**given)


def severity(assessment: Assessment, code: str) -> str:
    [found] = [finding for finding in assessment.findings if finding.code == code]
    return found.severity


def enter(fleet: Fleet, instance_id: str = WEB) -> str:
    """What the cloud answers to who goes on without looking; "OK" when it begins."""
    call = {"InstanceId": instance_id, "Username": "root", "Password": PASSWORD}
    try:
        CloudClient(fleet.access()).call("cvm", "EnterRescueMode", call, idempotent=False)
    except CloudError as error:
        return error.code
    return "OK"


def settled(fleet: Fleet, state: str, instance_id: str = WEB) -> None:
    for _unused in range(1000):
        if fleet.instances().observe(instance_id).state == state:
            return
    raise AssertionError(f"{instance_id} did not become {state}")


UNUSABLE = [
    ({"RestrictState": "EXPIRED"}, "UnsupportedOperation.InstanceStateShutdown", "TARGET_EXPIRED"),
    (
        {"RestrictState": "PROTECTIVELY_ISOLATED", "IsolatedSource": "MANMADE"},
        "UnsupportedOperation.InstanceStateFreezing",
        "TARGET_ISOLATED",
    ),
    (
        {"RestrictState": "PROTECTIVELY_ISOLATED", "IsolatedSource": "ARREAR"},
        "UnsupportedOperation.InstanceStateFreezing",
        "TARGET_ISOLATED",
    ),
    (
        {"InstanceState": "SERVICE_LIVE_MIGRATE"},
        "UnsupportedOperation.InstanceStateServiceLiveMigrate",
        "TARGET_IN_LIVE_MIGRATION",
    ),
]


@pytest.mark.parametrize(("fields", "answer", "code"), UNUSABLE, ids=["expired", "isolated", "arrears", "vendors own"])
def test_unusable_target_is_refused_by_the_cloud_and_by_the_preflight_before(
    fleet: Fleet, fields: dict[str, str], answer: str, code: str
) -> None:
    fleet.cloud.set_instance(WEB, **fields)
    # Without the check: the agent is on the source by now, and there is no landing.
    assert enter(fleet) == answer
    # With it.
    asked = len(fleet.changes())
    assert severity(assess(fleet), code) == "blocker"
    assert CODES[code].guards and len(fleet.changes()) == asked


def test_target_in_another_operation(fleet: Fleet) -> None:
    fleet.hypervisor.gate.clear()
    client = CloudClient(fleet.access())
    client.call("cvm", "RebootInstances", {"InstanceIds": [WEB]}, idempotent=False)
    # Without the check: refused, for as long as the operation takes.
    assert enter(fleet) == "UnsupportedOperation.InstanceStateRebooting"
    # With it.
    assert severity(assess(fleet), "TARGET_BUSY") == "blocker"
    fleet.hypervisor.gate.set()
    settled(fleet, "RUNNING")
    assert "TARGET_BUSY" not in {finding.code for finding in assess(fleet).findings}


def test_target_left_in_rescue_mode_by_an_earlier_attempt(fleet: Fleet) -> None:
    assert enter(fleet) == "OK"
    settled(fleet, "RESCUE_MODE")
    # Without the check: it cannot be entered again, and whoever logs in needs a password that only that attempt knew.
    assert enter(fleet) == "UnsupportedOperation.InstanceStateRescueMode"
    assert fleet.hypervisor.rescued[WEB] == ("root", PASSWORD)
    # With it; the run that has entered it itself goes on.
    assert severity(assess(fleet), "TARGET_IN_RESCUE_MODE") == "warning"
    own = assess(fleet, landed_before=True)
    assert "TARGET_IN_RESCUE_MODE" not in {finding.code for finding in own.findings}


def test_several_sources_on_one_target(fleet: Fleet) -> None:
    # Without the check: the first source lands, and the second finds a landing that seems to be its own, with the same
    # disks to write to.
    assert enter(fleet) == "OK"
    settled(fleet, "RESCUE_MODE")
    [seen_by_the_second] = fleet.instances().by_ids([WEB])
    assert next_step(Goal.PRESENT, seen_by_the_second) is Step.DONE
    pairs = [assess(fleet, source=name, targets_of_all={name: WEB}).pairs for name in ("web1", "web2")]
    assert pairs[0][0].target == pairs[1][0].target
    # With it.
    shared = assess(fleet, targets_of_all={"web1": WEB, "web2": WEB, "db1": DATABASE})
    assert severity(shared, "TARGET_SHARED") == "blocker" and CODES["TARGET_SHARED"].guards


def test_target_that_is_too_small(fleet: Fleet, tmp_path: Path) -> None:
    # Without the check: what fits is copied, and what is there cannot be mounted.
    source, copy, there = tmp_path / "source", tmp_path / "copy", tmp_path / "there"
    there.mkdir()
    with source.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(source)], check=True)
    with copy.open("wb") as file:
        file.write(source.read_bytes()[: 12 << 20])
    mount = ["unshare", "-m", "--propagation", "private", "mount", "-o", "loop,ro", "-t", "ext4"]
    subprocess.run([*mount, str(source), str(there)], check=True)
    assert subprocess.run([*mount, str(copy), str(there)], capture_output=True, check=False).returncode == 32
    # With it.
    target = fleet.instances().by_ids([WEB])[0]
    larger = disk("sda", target.disks[0].size_gb + 1, "/")
    assert severity(assess(fleet, larger), "TARGET_DISK_SMALLER") == "blocker"
    assert severity(assess(fleet, larger, accepted={"TARGET_DISK_SMALLER": "it fits"}), "ACCEPT_REFUSED") == "blocker"
    same = disk("sda", target.disks[0].size_gb, "/")
    assert "TARGET_DISK_SMALLER" not in {finding.code for finding in assess(fleet, same).findings}


OVERFLOWING = """
set -e
mkdir system target && mount -t tmpfs -o size=4m none system && mkdir system/data
mount -t tmpfs -o size=16m none system/data && mount -t tmpfs -o size=4m none target
head -c 1000000 /dev/urandom > system/os && head -c 8000000 /dev/urandom > system/data/rows
! cp -a system/. target 2> said
cat said; cmp system/os target/os || cmp system/data/rows target/data/rows || echo incomplete
stat -c %d target target/data | uniq | wc -l
"""


def test_data_disk_without_a_place(fleet: Fleet, tmp_path: Path) -> None:
    # Without the check, file by file as the vendor's tool copies: the data lands on the system disk until that is full.
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", OVERFLOWING]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "No space left on device" in done.stdout and "incomplete" in done.stdout
    assert done.stdout.splitlines()[-1] == "1", "the data is on the target's system disk"
    # Without the check, block by block as it is done here: the disk is not among those that are copied.
    data = disk("sdb", 10, "/data")
    accepted = assess(fleet, SYSTEM, data, accepted={"DISK_UNMAPPED": "to see what happens"})
    assert [pair.source.path for pair in accepted.pairs] == ["/dev/sda"]
    assert severity(accepted, "DISK_UNMAPPED") == "warning"
    # With it.
    unmapped = assess(fleet, SYSTEM, data)
    assert severity(unmapped, "DISK_UNMAPPED") == "blocker"
    assert any("/data" in blocker.cause for blocker in unmapped.blockers)
