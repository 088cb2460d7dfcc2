# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every code of the preflight can be produced, each by the smallest thing that is wrong, and a sound plan has none."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.acceptance import accept
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Disk, Operation, Target
from ansible_collections.fleetlift.cvm.plugins.module_utils.finding_codes import CODES
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Finding
from ansible_collections.fleetlift.cvm.plugins.module_utils.fleet_report import source_from
from ansible_collections.fleetlift.cvm.plugins.module_utils.kernel_support import (
    boot_space_finding,
    driver_states,
    kernel_findings,
    tracing,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import assessment_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.security_groups import Rule
from ansible_collections.fleetlift.cvm.plugins.module_utils.source_facts import (
    host_findings,
    parse_mountinfo,
    unreadable,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.storage_layers import layer_findings
from ansible_collections.fleetlift.cvm.plugins.module_utils.vendor_systems import distribution_finding
from ansible_collections.fleetlift.cvm.plugins.module_utils.workloads import process_from, workload_findings

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
catalogue = importlib.import_module("error_catalogue")

GIB = 1 << 30


def disk(name: str, **fields: Any) -> dict[str, Any]:
    """A disk of 2 GiB in the form of the preflight's facts."""
    return {
        "path": f"/dev/{name}",
        "name": name,
        "size": 2 * GIB,
        "serial": f"SER-{name}",
        "logical_block_size": 512,
        "mounted": True,
        "system": name == "sda",
        "partitions": [],
        "holders": [],
        "swap": [],
        "transport": "scsi",
        "used_bytes": GIB,
        "filesystems": [
            {
                "device": f"/dev/{name}",
                "type": "ext4",
                "mountpoints": ["/" if name == "sda" else "/srv"],
                "free_bytes": GIB,
                "used_bytes": GIB,
            }
        ],
        **fields,
    }


TARGET = Target(
    instance_id="ins-dbtgt001",
    state="RUNNING",
    latest_operation=Operation("RunInstances", "SUCCESS"),
    private_addresses=("10.97.0.12",),
    disks=(
        Disk("disk-dbsys001", "system", 20, 0, "ATTACHED"),
        Disk("disk-dbdata01", "data", 10, 1, "ATTACHED"),
    ),
    security_groups=("sg-1",),
    ingress=(Rule("sg-1", 0, "ACCEPT", "TCP", "22,80,443", "0.0.0.0/0"),),
)
FACTS = {"architecture": "x86_64", "disks": [disk("sda"), disk("sdb")]}
MAPPING = [{"source": "/dev/sda", "target": "system"}, {"source": "/dev/sdb", "target": "data1"}]


def planned(facts: dict[str, Any] | None = None, target: Target | None = TARGET, **options: Any) -> list[Finding]:
    """The findings about a plan of which only this is not sound."""
    params: dict[str, Any] = {
        "source": "db1",
        "source_facts": {**FACTS, **(facts or {})},
        "source_findings": [],
        "source_error": None,
        "source_unreachable": False,
        "target": target.record() if target else {},
        "target_error": {},
        "target_id": TARGET.instance_id,
        "disks": MAPPING,
        "targets_of_all": {},
        "port": 443,
        "ssh_port": 22,
        "source_address": None,
        "source_addresses": [],
        "controller_address": None,
        "target_host_keys": [],
        "landed_before": False,
        "bandwidth_limit": 0,
        "accept": {},
        **options,
    }
    return list(assessment_of(params).findings)


def on(**fields: Any) -> list[Finding]:
    """The findings about a sound plan with a target of which only this is not sound."""
    return planned(target=replace(TARGET, **fields))


def on_disk(**fields: Any) -> list[Finding]:
    """The findings about a source whose one disk is like this."""
    return layer_findings([disk("sda", **fields)], [])


def on_host(**changes: Any) -> list[Finding]:
    healthy: dict[str, Any] = {
        "root": True,
        "python": (3, 11, 2),
        "memory": {"available": 1 << 30},
        "epoch": 0.0,
        "controller_time": 0.0,
        "disks": [disk("sda")],
    }
    return host_findings(**{**healthy, **changes})


def holder(kind: str) -> dict[str, Any]:
    return {"holders": [{"type": kind, "name": "dm-0", "volume": "data"}]}


VIRTIO = {"virtio_pci": "builtin", "virtio_blk": "builtin", "virtio_net": "builtin"}


def kernel(**changes: Any) -> list[Finding]:
    sound: dict[str, Any] = {
        "release": "6.1.0",
        "drivers": VIRTIO,
        "initramfs": None,
        "traced": tracing("6.1.0", "none", None, "nodev\ttracefs\n"),
        "disks": [disk("sda")],
        "selinux": "disabled",
    }
    return kernel_findings(**{**sound, **changes})


def running(*names: str) -> list[Finding]:
    return workload_findings([process_from(name, None) for name in names], [])


def reached(outcome: str, port: int = 443) -> dict[str, Any]:
    return {"reach": [{"address": "10.97.0.12", "port": port, "outcome": outcome, "detail": "as the system said"}]}


def mounted(line: str) -> list[Finding]:
    return layer_findings([], parse_mountinfo(line))


def some(finding: Finding | None) -> list[Finding]:
    return [finding] if finding else []


PRODUCERS: dict[str, Callable[[], list[Finding]]] = {
    "SOURCE_UNREACHABLE": lambda: planned(source_unreachable=True, source_error="No route to host"),
    "SOURCE_NOT_READ": lambda: planned(source_error="python3: not found"),
    "NOT_ASSESSED": lambda: list(source_from("db1", {}).findings),
    "NOT_ROOT": lambda: on_host(root=False),
    "PYTHON_TOO_OLD": lambda: on_host(python=(3, 6, 8)),
    "MEMORY_LOW": lambda: on_host(memory={"available": 1 << 20}),
    "CLOCK_SKEW": lambda: on_host(epoch=1000.0),
    "SERVICE_UNKNOWN": lambda: on_host(unknown_services=["nope"]),
    "SYSTEM_DISK_NOT_FOUND": lambda: on_host(disks=[disk("sda", system=False)]),
    "DISK_UNREADABLE": lambda: [unreadable("/dev/sda", OSError(5, "Input/output error"), mounted=True)],
    "LVM_USED": lambda: on_disk(**holder("lvm")),
    "RAID_USED": lambda: on_disk(**holder("md")),
    "ENCRYPTION_USED": lambda: on_disk(**holder("crypt")),
    "MULTIPATH_USED": lambda: on_disk(**holder("multipath")),
    "ZFS_USED": lambda: mounted("40 1 0:50 / /tank rw - zfs tank rw"),
    "READ_IN_FULL": lambda: on_disk(filesystems=[{"device": "/dev/sda", "type": "reiserfs", "mountpoints": ["/"]}]),
    "SWAP_NOT_COPIED": lambda: on_disk(swap=["/dev/sda2"]),
    "REMOTE_DISK": lambda: on_disk(transport="iscsi"),
    "NETWORK_MOUNT": lambda: mounted("41 1 0:51 / /srv/share rw - nfs4 nas:/share rw"),
    "KERNEL_WITHOUT_VIRTIO": lambda: kernel(drivers={**VIRTIO, "virtio_blk": "absent"}),
    "KERNEL_WITHOUT_VIRTIO_NET": lambda: kernel(drivers={**VIRTIO, "virtio_net": "absent"}),
    "INITRAMFS_WITHOUT_VIRTIO": lambda: kernel(
        drivers=driver_states("kernel/drivers/block/virtio_blk.ko.xz:\nkernel/virtio_pci.ko.xz:\n", "x.ko", None),
        initramfs={"virtio_pci": True, "virtio_blk": False},
    ),
    "CHANGES_NOT_TRACKED": lambda: kernel(traced=tracing("6.1.0", "confidentiality", True, None)),
    "SELINUX_ACTIVE": lambda: kernel(selinux="enforcing"),
    "BOOT_SPACE_LOW": lambda: some(
        boot_space_finding([disk("sda", filesystems=[{"mountpoints": ["/boot"], "free_bytes": 1 << 20}])])
    ),
    "DISTRIBUTION_UNLISTED": lambda: some(distribution_finding({"id": "debian", "version": "12"})),
    "DATABASE_NOT_STOPPED": lambda: running("mysqld"),
    "CONTAINERS_RUN": lambda: running("dockerd"),
    "KUBERNETES_NODE": lambda: running("kubelet"),
    "GUEST_TOOLS": lambda: running("vmtoolsd"),
    "TARGET_NOT_FOUND": lambda: planned(target=None),
    "TARGET_SHARED": lambda: planned(targets_of_all={"db1": "ins-dbtgt001", "web1": "ins-dbtgt001"}),
    "TARGET_IS_THE_SOURCE": lambda: planned({"ssh_host_keys": ["ssh-ed25519 A"]}, target_host_keys=["ssh-ed25519 A"]),
    "TARGET_EXPIRED": lambda: on(restrict_state="EXPIRED"),
    "TARGET_ISOLATED": lambda: on(isolated_source="ARREAR"),
    "TARGET_IN_LIVE_MIGRATION": lambda: on(state="SERVICE_LIVE_MIGRATE"),
    "TARGET_IN_RESCUE_MODE": lambda: on(state="RESCUE_MODE"),
    "TARGET_STATE": lambda: on(state="TERMINATING"),
    "TARGET_STATE_UNKNOWN": lambda: on(state="SOMETHING_NEW"),
    "TARGET_BUSY": lambda: on(latest_operation=Operation("ResetInstance", "OPERATING")),
    "TARGET_DISK_BUSY": lambda: on(disks=(Disk("disk-a", "system", 20, 0, "ROLLBACKING"), TARGET.disks[1])),
    "TARGET_ARM": lambda: on(architecture="aarch64"),
    "TARGET_STOPPED_NO_CHARGE": lambda: on(state="STOPPED", stop_charging_mode="STOP_CHARGING"),
    "TARGET_NO_ADDRESS": lambda: on(private_addresses=()),
    "TARGET_SYSTEM_DIFFERS": lambda: planned(
        {"distribution": {"id": "debian"}}, replace(TARGET, os_name="CentOS 7.9 64bit")
    ),
    "ARCHITECTURE_MISMATCH": lambda: planned({"architecture": "aarch64"}),
    "FIRMWARE_UEFI": lambda: planned({"firmware": "uefi"}),
    "SECTOR_SIZE_MISMATCH": lambda: planned({"disks": [disk("sda", logical_block_size=4096), disk("sdb")]}),
    "DISK_UNKNOWN": lambda: planned(disks=[*MAPPING, {"source": "/dev/sdz", "target": "data1"}]),
    "DISK_AMBIGUOUS": lambda: planned(
        {"disks": [disk("sda", serial="ONE"), disk("sdb", serial="ONE")]}, disks=[{"source": "ONE", "target": "system"}]
    ),
    "DISK_MAPPED_TWICE": lambda: planned(disks=[*MAPPING, MAPPING[1]]),
    "DISK_UNMAPPED": lambda: planned(disks=MAPPING[:1]),
    "DISK_UNMAPPED_UNUSED": lambda: planned({"disks": [*FACTS["disks"], disk("sdc", mounted=False, filesystems=[])]}),
    "TARGET_DISK_UNKNOWN": lambda: planned(disks=[MAPPING[0], {"source": "/dev/sdb", "target": "data7"}]),
    "TARGET_DISK_SMALLER": lambda: planned({"disks": [disk("sda", size=21 * GIB), disk("sdb")]}),
    "SYSTEM_DISK_NOT_ON_SYSTEM_DISK": lambda: planned(
        disks=[{"source": "/dev/sda", "target": "data1"}, {"source": "/dev/sdb", "target": "system"}]
    ),
    "ACCEPT_UNKNOWN": lambda: planned(accept={"NO_SUCH_CODE": "because"}),
    "ACCEPT_REFUSED": lambda: planned(accept={"TARGET_DISK_SMALLER": "it will fit"}),
    "ACCEPT_WITHOUT_REASON": lambda: planned(accept={"LVM_USED": " "}),
    "PORT_CLOSED": lambda: on(ingress=()),
    "PORT_UNKNOWN": lambda: on(security_groups=(), ingress=()),
    "VENDOR_PORT_CLOSED": lambda: on(ingress=(Rule("sg-1", 0, "ACCEPT", "TCP", "22,443", "0.0.0.0/0"),)),
    "PORT_FILTERED": lambda: planned(reached("timeout")),
    "PORT_NOT_PROBED": lambda: planned(reached("timeout"), replace(TARGET, state="STOPPED")),
    "PROXY_UNUSABLE": lambda: planned(reached("proxy_refuses")),
    "NO_ROUTE_TO_TARGET": lambda: planned(reached("no_route")),
    "WRITES_EXCEED_PATH": lambda: planned(
        {"disks": [disk("sda", write_bytes_per_second=9e6), disk("sdb")]}, bandwidth_limit=1_000_000
    ),
    "PUBLIC_IP_STAYS": lambda: planned(),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_can_be_produced_and_says_why_and_what_next(code: str) -> None:
    found = [finding for finding in PRODUCERS[code]() if finding.code == code]
    assert found, f"{code} was not produced"
    for finding in found:
        assert finding.cause and finding.action and finding.subject
        assert "‹" not in finding.cause


def test_every_code_that_the_preflight_makes_is_in_the_table_and_the_other_way_round() -> None:
    made = {entry.code for entry in catalogue.collect() if catalogue.chapter_of(entry) in catalogue.PREFLIGHT}
    assert made == set(CODES)
    assert set(PRODUCERS) == set(CODES)


def test_a_sound_plan_has_nothing_but_the_address_that_stays() -> None:
    assert [finding.code for finding in planned()] == ["PUBLIC_IP_STAYS"]
    assert on_host() == on_disk() == kernel() == []


def test_what_guards_data_cannot_be_accepted() -> None:
    guarded = {code for code, entry in CODES.items() if entry.guards}
    assert guarded >= {
        "TARGET_SHARED", "TARGET_IS_THE_SOURCE", "TARGET_IN_LIVE_MIGRATION", "TARGET_DISK_SMALLER",
        "TARGET_DISK_UNKNOWN", "DISK_UNKNOWN", "DISK_AMBIGUOUS", "DISK_MAPPED_TWICE", "DISK_UNREADABLE",
        "SYSTEM_DISK_NOT_ON_SYSTEM_DISK",
        "SECTOR_SIZE_MISMATCH",
    }  # fmt: skip
    for code in guarded:
        severities = {finding.severity for finding in PRODUCERS[code]() if finding.code == code}
        accepted = accept(PRODUCERS[code](), {code: "I insist"})
        assert "ACCEPT_REFUSED" in [finding.code for finding in accepted]
        assert {finding.severity for finding in accepted if finding.code == code} == severities


@pytest.mark.parametrize("code", [code for code, entry in CODES.items() if not entry.guards])
def test_what_is_accepted_is_one_step_less_severe_and_keeps_the_reason(code: str) -> None:
    less = {"blocker": "warning", "warning": "note", "note": "note"}
    before = [finding for finding in PRODUCERS[code]() if finding.code == code]
    after = [finding for finding in accept(PRODUCERS[code](), {code: " as agreed "}) if finding.code == code]
    assert [finding.severity for finding in after] == [less[finding.severity] for finding in before]
    assert [finding.record()["accepted"] for finding in after] == [
        {"reason": "as agreed", "severity": finding.severity} for finding in before
    ]


def test_accepting_is_for_one_code_and_no_other() -> None:
    findings = planned(
        disks=MAPPING[:1], accept={"DISK_UNMAPPED": "scratch space"}, targets_of_all={"a": "ins-dbtgt001"}
    )
    assert [finding.code for finding in findings if finding.blocks] == ["TARGET_SHARED"]


def test_unknown_code_is_refused_with_those_that_are_like_it() -> None:
    [refusal] = [finding for finding in planned(accept={"PORT_SHUT": "x"}) if finding.blocks]
    assert refusal.code == "ACCEPT_UNKNOWN"
    assert "PORT_CLOSED" in refusal.action
