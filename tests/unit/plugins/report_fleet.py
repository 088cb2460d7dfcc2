# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two dozen servers as the preflight leaves them, some of them in trouble, made by the collection's own code."""

from __future__ import annotations

from typing import Any

from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Disk, Operation, Target
from ansible_collections.fleetlift.cvm.plugins.module_utils.estimate import Circumstances, estimate
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Finding
from ansible_collections.fleetlift.cvm.plugins.module_utils.fleet_report import Source, document, source_from
from ansible_collections.fleetlift.cvm.plugins.module_utils.kernel_support import kernel_findings, tracing
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import assessment_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.security_groups import Rule
from ansible_collections.fleetlift.cvm.plugins.module_utils.source_facts import parse_mountinfo
from ansible_collections.fleetlift.cvm.plugins.module_utils.storage_layers import layer_findings
from ansible_collections.fleetlift.cvm.plugins.module_utils.vendor_systems import distribution_finding
from ansible_collections.fleetlift.cvm.plugins.module_utils.workloads import process_from, workload_findings

GIB = 1 << 30
GENERATED = 1795644000.0
SYSTEMS = (
    {"id": "debian", "version": "12", "pretty": "Debian GNU/Linux 12 (bookworm)"},
    {"id": "centos", "version": "7", "pretty": "CentOS Linux 7 (Core)"},
    {"id": "ubuntu", "version": "20.04", "pretty": "Ubuntu 20.04.6 LTS"},
    {"id": "rocky", "version": "9.4", "pretty": "Rocky Linux 9.4 (Blue Onyx)"},
)
OPEN = (Rule("sg-fleet", 0, "ACCEPT", "TCP", "22,80,443", "0.0.0.0/0"),)


def disk(name: str, gib: int, used: int, mount: str, **fields: Any) -> dict[str, Any]:
    device = f"/dev/{name}1"
    return {
        "path": f"/dev/{name}", "name": name, "size": gib * GIB, "serial": f"S4EV-{name}", "logical_block_size": 512,
        "mounted": True, "system": mount == "/", "holders": [], "swap": [], "transport": "scsi",
        "partitions": [{"path": device, "size": gib * GIB}], "used_bytes": used * GIB,
        "write_bytes_per_second": 180_000.0 * used, "write_bytes_per_second_since_boot": 120_000.0 * used,
        "filesystems": [{"device": device, "type": "ext4", "mountpoints": [mount], "free_bytes": (gib - used) * GIB}],
        **fields,
    }  # fmt: skip


def target(number: int, **fields: Any) -> Target:
    return Target(
        **{
            "instance_id": f"ins-{number:02}tgt4k9",
            "state": "RUNNING",
            "latest_operation": Operation("RunInstances", "SUCCESS"),
            "public_addresses": (f"203.0.113.{number + 10}",),
            "disks": (
                Disk(f"disk-{number:02}sys1", "system", 50, 0, "ATTACHED"),
                Disk(f"disk-{number:02}dat1", "data", 200, 1, "ATTACHED"),
            ),
            "security_groups": ("sg-fleet",),
            "ingress": OPEN,
            **fields,
        }
    )


def known(
    name: str,
    number: int,
    *,
    wave: object,
    on: Target | None = None,
    processes: tuple[str, ...] = (),
    mounts: str = "",
    mapping: list[dict[str, str]] | None = None,
    findings: list[Finding] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The variables that the roles leave with one source."""
    system = SYSTEMS[number % len(SYSTEMS)]
    disks = [disk("sda", 40, 9 + number % 5, "/")]
    if name.startswith("db"):
        disks.append(disk("sdb", 160, 70, "/var/lib/data"))
    unlisted = distribution_finding(system)
    found = [
        *layer_findings(disks, parse_mountinfo(mounts)),
        *workload_findings([process_from(each, None) for each in processes], ["nginx"]),
        *([unlisted] if unlisted else []),
        *(findings or []),
    ]
    facts = {
        "architecture": "x86_64", "kernel": "5.14.0-427.el9.x86_64", "firmware": "bios", "distribution": system,
        "memory": {"total": 8 * GIB}, "disks": disks,
        "probe": {"bytes_per_second": 11.2e6, "reason": None}
        if number % 3 else {"bytes_per_second": None, "reason": "nothing was named that would read what is sent"},
    }  # fmt: skip
    params: dict[str, Any] = {
        "source": name, "source_facts": facts, "source_findings": [each.record() for each in found],
        "source_error": None, "source_unreachable": False, "target": (on or target(number)).record(),
        "target_error": {}, "target_id": (on or target(number)).instance_id, "port": 443, "ssh_port": 22,
        "source_address": None, "source_addresses": [], "controller_address": None, "target_host_keys": [],
        "landed_before": False,
        "bandwidth_limit": 0, "accept": {},
        "targets_of_all": {},
        "disks": mapping
        or [{"source": each["path"], "target": place} for each, place in zip(disks, ("system", "data1"))],
        **options,
    }  # fmt: skip
    assessment = assessment_of(params)
    pairs = [pair.record() for pair in assessment.pairs]
    mapped = [
        each for each in params["source_facts"].get("disks", []) if each["path"] in {one["device"] for one in pairs}
    ]
    around = Circumstances(bandwidth_limit=12.5e6, services=len(processes))
    return {
        "fleetlift_target": params["target_id"],
        "fleetlift_wave": wave,
        "fleetlift_source": {"facts": params["source_facts"]},
        "fleetlift_assessment": {
            "findings": [each.record() for each in assessment.findings],
            "pairs": pairs,
            "estimate": estimate(mapped, facts["probe"]["bytes_per_second"], around) if mapped else {},
        },
    }


def fleet() -> list[Source]:
    """Two dozen servers in three waves."""
    sources: dict[str, dict[str, Any]] = {}
    for number in range(1, 13):
        sources[f"web{number}"] = known(f"web{number}", number, wave=1, processes=("vmtoolsd",) * (number % 2))
    for number in range(13, 19):
        sources[f"app{number - 12}"] = known(
            f"app{number - 12}", number, wave=2,
            mounts="41 1 0:51 / /srv/share rw - nfs4 nas.example.com:/share rw\n" if number % 2 else "",
            processes=("dockerd",) if number == 16 else (),
        )  # fmt: skip
    for number in range(19, 25):
        sources[f"db{number - 18}"] = known(
            f"db{number - 18}", number, wave=3, processes=("postgres",) if number % 2 else ("mysqld",),
            accept={"DATABASE_NOT_STOPPED": "a replica takes over before the cutover"} if number == 24 else {},
        )  # fmt: skip
    expired = target(3, restrict_state="EXPIRED", expired_time="2026-11-01T00:00:00Z")
    closed = target(7, ingress=(Rule("sg-fleet", 0, "DROP", "TCP", "443", "0.0.0.0/0"), *OPEN))
    small = target(21, disks=(Disk("disk-21sys1", "system", 50, 0, "ATTACHED"), Disk("disk-21dat1", "data", 100, 1)))
    locked = kernel_findings(
        release="5.14.0-427.el9.x86_64", drivers={}, initramfs=None,
        traced=tracing("5.14.0", "confidentiality", True, None),
        disks=[disk("sda", 40, 9, "/", read_bytes_per_second=190e6)], selinux="enforcing",
    )  # fmt: skip
    sources["web3"] = known("web3", 3, wave=1, on=expired)
    sources["web7"] = known("web7", 7, wave=1, on=closed)
    sources["web11"] = known("web11", 11, wave=1, findings=locked)
    sources["db3"] = known("db3", 21, wave=3, on=small, processes=("postgres",))
    sources["db4"] = known("db4", 22, wave=3, mapping=[{"source": "/dev/sda", "target": "system"}])
    sources["app5"] = known(
        "app5", 17, wave=2, source_unreachable=True, source_facts={}, source_findings=[],
        source_error="ssh: connect to host 198.51.100.17 port 22: Connection timed out",
    )  # fmt: skip
    return [source_from(name, variables) for name, variables in sources.items()]


def report() -> dict[str, Any]:
    """The report on :func:`fleet`."""
    return document(fleet(), GENERATED, {})


def hostile() -> dict[str, Any]:
    """A report on one server whose every text tries to leave its place in the page."""
    evil = "<img src=http://192.0.2.1/x onerror=alert(1)>\"'&<script>document.title='owned'</script>\x1b\x00"
    finding = Finding("PORT_CLOSED", "blocker", evil, evil, evil, {evil: evil}, {"reason": evil, "severity": "blocker"})
    variables = known("evil", 1, wave="w")
    variables["fleetlift_assessment"]["findings"] = [finding.record()]
    variables.update(fleetlift_target=evil, fleetlift_wave=evil)
    variables["fleetlift_source"]["facts"]["distribution"] = {"pretty": evil}
    return document([source_from(evil, variables)], GENERATED, {evil: 1})
