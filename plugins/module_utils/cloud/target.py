# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A target instance, in the words of this collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..findings import Finding
from ..security_groups import Rule, rule_from_record

GIB = 1 << 30

# Values of InstanceState: tencentcloud.com/document/api/213/15753#InstanceStatus.
LIVE_MIGRATION_STATES = ("ENTER_SERVICE_LIVE_MIGRATE", "SERVICE_LIVE_MIGRATE", "EXIT_SERVICE_LIVE_MIGRATE")
GONE_STATES = ("LAUNCH_FAILED", "SHUTDOWN", "TERMINATING", "TERMINATED")
FROZEN_STATES = ("FREEZING", "BANNING", "ISOLATING")
SETTLED_STATES = ("RUNNING", "STOPPED", "RESCUE_MODE")
CHANGING_STATES = ("PENDING", "STARTING", "STOPPING", "REBOOTING", "ENTER_RESCUE_MODE", "EXIT_RESCUE_MODE")


@dataclass(frozen=True)
class Operation:
    """The latest operation on an instance; ``state`` is SUCCESS, OPERATING, FAILED or None."""

    name: str | None = None
    state: str | None = None
    error: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Disk:
    """``usage`` is system or data; ``order`` is 0 for the system disk, then 1.. as attached; ``state`` is CBS's own."""

    disk_id: str
    usage: str
    size_gb: int
    order: int
    state: str | None = None
    type: str | None = None

    @property
    def size_bytes(self) -> int:
        return self.size_gb * GIB

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class Target:
    """One instance. ``ingress`` is in effective order; ``bandwidth_out_mbps`` is in Mbit/s, 0 without internet."""

    instance_id: str
    state: str
    name: str = ""
    restrict_state: str | None = None
    isolated_source: str | None = None
    stop_charging_mode: str | None = None
    latest_operation: Operation = field(default_factory=Operation)
    expired_time: str | None = None
    charge_type: str | None = None
    instance_type: str | None = None
    zone: str | None = None
    region: str | None = None
    private_addresses: tuple[str, ...] = ()
    public_addresses: tuple[str, ...] = ()
    architecture: str = "x86_64"
    cpu: int | None = None
    memory_gb: int | None = None
    image_id: str | None = None
    os_name: str | None = None
    disks: tuple[Disk, ...] = ()
    security_groups: tuple[str, ...] = ()
    ingress: tuple[Rule, ...] = ()
    bandwidth_out_mbps: int | None = None

    def record(self) -> dict[str, Any]:
        """The JSON form that ``target_info`` returns."""
        record = asdict(self)
        record["disks"] = [disk.record() for disk in self.disks]
        record["ingress"] = [rule.record() for rule in self.ingress]
        for name in ("private_addresses", "public_addresses", "security_groups"):
            record[name] = list(record[name])
        return record


def disk_ids_of(instance: Mapping[str, Any]) -> list[str]:
    """The ids of an instance's disks, the system disk first; *instance* is an entry of InstanceSet."""
    return [str(disk["DiskId"]) for disk in _disks(instance) if disk.get("DiskId")]


def target_from_api(
    instance: Mapping[str, Any],
    *,
    region: str | None = None,
    disks: Mapping[str, Mapping[str, Any]] | None = None,
    ingress: Sequence[Rule] = (),
) -> Target:
    """The target in *instance*, an entry of InstanceSet of DescribeInstances.

    *disks* are entries of DiskSet of DescribeDisks by disk id: they say the state, and a size that is newer after an
    expansion. Local disks are not among them.
    """
    return Target(
        instance_id=str(instance["InstanceId"]),
        name=str(instance.get("InstanceName") or ""),
        state=str(instance.get("InstanceState") or "UNKNOWN"),
        restrict_state=instance.get("RestrictState"),
        isolated_source=instance.get("IsolatedSource"),
        stop_charging_mode=instance.get("StopChargingMode"),
        latest_operation=Operation(
            name=instance.get("LatestOperation"),
            state=instance.get("LatestOperationState"),
            error=instance.get("LatestOperationErrorMsg"),
            request_id=instance.get("LatestOperationRequestId"),
        ),
        expired_time=instance.get("ExpiredTime"),
        charge_type=instance.get("InstanceChargeType"),
        instance_type=instance.get("InstanceType"),
        zone=(instance.get("Placement") or {}).get("Zone"),
        region=region,
        private_addresses=tuple(instance.get("PrivateIpAddresses") or ()),
        public_addresses=tuple(instance.get("PublicIpAddresses") or ()),
        architecture=_architecture(instance),
        cpu=instance.get("CPU"),
        memory_gb=instance.get("Memory"),
        image_id=instance.get("ImageId"),
        os_name=instance.get("OsName"),
        disks=tuple(
            _disk(order, disk, (disks or {}).get(str(disk.get("DiskId")), {}))
            for order, disk in enumerate(_disks(instance), start=0 if instance.get("SystemDisk") else 1)
        ),
        security_groups=tuple(instance.get("SecurityGroupIds") or ()),
        ingress=tuple(ingress),
        bandwidth_out_mbps=(instance.get("InternetAccessible") or {}).get("InternetMaxBandwidthOut"),
    )


def target_from_record(record: Mapping[str, Any]) -> Target:
    """The target in *record*, the JSON form that ``target_info`` returns. Raises ``KeyError`` for what it must have."""
    names = Target.__dataclass_fields__
    fields = {name: value for name, value in record.items() if name in names}
    fields["latest_operation"] = Operation(
        **{key: (record.get("latest_operation") or {}).get(key) for key in ("name", "state", "error", "request_id")}
    )
    fields["disks"] = tuple(
        Disk(
            disk_id=str(disk["disk_id"]),
            usage=str(disk["usage"]),
            size_gb=int(disk["size_gb"]),
            order=int(disk["order"]),
            state=disk.get("state"),
            type=disk.get("type"),
        )
        for disk in record.get("disks") or ()
    )
    fields["ingress"] = tuple(rule_from_record(rule) for rule in record.get("ingress") or ())
    for name in ("private_addresses", "public_addresses", "security_groups"):
        fields[name] = tuple(record.get(name) or ())
    return Target(**{**fields, "instance_id": str(record["instance_id"]), "state": str(record["state"])})


def standing_refusals(target: Target) -> Iterator[Finding]:
    """Why no operation may be tried on *target*: what neither waiting nor this collection can mend."""

    def blocker(code: str, cause: str, action: str) -> Finding:
        evidence = {
            "state": target.state,
            "restrict_state": target.restrict_state,
            "isolated_source": target.isolated_source,
            "expired_time": target.expired_time,
        }
        return Finding(code, "blocker", target.instance_id, cause, action, evidence)

    if target.restrict_state == "EXPIRED" or target.isolated_source == "EXPIRE":
        yield blocker(
            "TARGET_EXPIRED",
            f"The instance {target.instance_id} has expired ({target.expired_time or 'no date given'}).",
            "Renew it in the console, or choose another target.",
        )
    elif target.restrict_state == "PROTECTIVELY_ISOLATED" or target.isolated_source in ("ARREAR", "MANMADE"):
        yield blocker(
            "TARGET_ISOLATED",
            f"The instance {target.instance_id} is isolated (RestrictState {target.restrict_state},"
            f" IsolatedSource {target.isolated_source}).",
            "Clear the reason in the console (arrears, a return, a security lock), or choose another target.",
        )
    if target.state in LIVE_MIGRATION_STATES:
        yield blocker(
            "TARGET_IN_LIVE_MIGRATION",
            f"The instance {target.instance_id} is in the vendor's own online migration (state {target.state}).",
            "Finish or clean up that migration first (the vendor's tool has --clean), then run again.",
        )
    elif target.state in GONE_STATES:
        yield blocker(
            "TARGET_STATE",
            f"The instance {target.instance_id} is in state {target.state} and cannot come back from it by itself.",
            "Choose another target, or restore this one in the console.",
        )
    elif target.state in FROZEN_STATES:
        yield blocker(
            "TARGET_ISOLATED",
            f"The instance {target.instance_id} is in state {target.state}: the vendor has locked it.",
            "Clear the reason in the console, or choose another target.",
        )
    elif target.state not in SETTLED_STATES + CHANGING_STATES:
        yield blocker(
            "TARGET_STATE_UNKNOWN",
            f"The instance {target.instance_id} is in state {target.state}, which this version does not know.",
            "Look at it in the console; when it is RUNNING or STOPPED, run again.",
        )


def _disks(instance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    system = instance.get("SystemDisk")
    return ([system] if system else []) + list(instance.get("DataDisks") or ())


def _disk(order: int, disk: Mapping[str, Any], block_storage: Mapping[str, Any]) -> Disk:
    return Disk(
        disk_id=str(disk.get("DiskId") or ""),
        usage="data" if order else "system",
        size_gb=int(block_storage.get("DiskSize") or disk.get("DiskSize") or 0),
        order=order,
        state=block_storage.get("DiskState"),
        type=block_storage.get("DiskType") or disk.get("DiskType"),
    )


def _architecture(instance: Mapping[str, Any]) -> str:
    """DescribeInstances does not return it: ARM is the SR families' (SR1.MEDIUM2), and OsName says 32bit or ARM."""
    os_name = str(instance.get("OsName") or "").lower()
    if str(instance.get("InstanceType") or "").upper().startswith("SR") or "arm" in os_name or "aarch64" in os_name:
        return "aarch64"
    return "i386" if "32bit" in os_name.replace(" ", "").replace("-", "") else "x86_64"
