# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cloud behind the API: its state and its machines together."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

from lab.cloud.hypervisor import DiskSpec, Hypervisor, InstanceSpec
from lab.cloud.instances import STATES, TRANSITIONAL, Transitions, mark_done
from lab.cloud.policies import effective_egress, effective_ingress
from lab.cloud.store import Disk, Instance, Notice, SecurityGroup, Store

log = logging.getLogger(__name__)

INTERRUPTED = "the operation was interrupted by a restart of the lab"


class Cloud:
    """What the actions work on, and what the lab uses to bring instances up and to make faults."""

    def __init__(self, store: Store, hypervisor: Hypervisor, minimum_delay: float = 0.3) -> None:
        self.store = store
        self.hypervisor = hypervisor
        self.transitions = Transitions(store, hypervisor, minimum_delay)

    def provision(self, instance_id: str) -> None:
        """Build the machine of an instance that the lab defined, and start it if its state is RUNNING. Blocks."""
        with self.store.reading():
            start = self.store.instances[instance_id].state in ("RUNNING", "PENDING")
        self.build(instance_id, None, start=start)
        with self.store.changing():
            instance = self.store.instances[instance_id]
            instance.state = "RUNNING" if start else "STOPPED"
            instance.latest_operation = instance.latest_operation or "RunInstances"
            mark_done(instance, None)

    def build(self, instance_id: str, password: str | None, *, start: bool) -> None:
        """Make an instance's disks and machine, connect it, and start it. Blocks; raises HypervisorError."""
        with self.store.reading():
            spec = self.spec(self.store.instances[instance_id], password)
            origins = {disk.disk_id: self.store.disks[disk.disk_id].origin for disk in spec.disks}
        for disk in spec.disks:
            self.hypervisor.create_disk(disk.disk_id, disk.size_gb)
            if origins[disk.disk_id]:
                self.hypervisor.fill_disk(disk.disk_id, disk.size_gb, *origins[disk.disk_id])
        self.hypervisor.create(spec)
        self.apply_network(instance_id)
        if start:
            self.hypervisor.start(instance_id)

    def apply_network(self, instance_id: str) -> None:
        """Put the instance's bandwidth and effective security group rules in force. Blocks."""
        with self.store.reading():
            instance = self.store.instances.get(instance_id)
            if instance is None:
                return
            members = self._group_members()
            groups = [self.store.groups[name] for name in instance.security_group_ids]
            ingress, egress = effective_ingress(groups, members), effective_egress(groups, members)
            bandwidth = instance.bandwidth_out
        self.hypervisor.set_bandwidth(instance_id, bandwidth)
        self.hypervisor.set_policies(instance_id, ingress, egress)

    def refresh_network(self, instance_ids: Iterable[str]) -> None:
        """Have worker threads put the network settings of these instances in force again."""
        for instance_id in instance_ids:
            self.transitions.submit(instance_id, self.apply_network, instance_id)

    def instances_affected_by(self, group_id: str) -> list[str]:
        """Instances whose rules come from a group, or name it as a peer (the caller holds the store)."""
        naming = {group.group_id for group in self.groups_naming(group_id)}
        return [
            instance.instance_id
            for instance in self.store.instances.values()
            if instance.state != "PENDING" and not naming.union({group_id}).isdisjoint(instance.security_group_ids)
        ]

    def groups_naming(self, group_id: str) -> list[SecurityGroup]:
        """Groups with a rule whose peer is that group (the caller holds the store)."""
        return [
            group
            for group in self.store.groups.values()
            if any(policy.group_id == group_id for policy in [*group.ingress, *group.egress])
        ]

    def set_instance(self, instance_id: str, **fields: Any) -> None:
        """Change an instance from outside, by API field names, e.g. RestrictState="EXPIRED".

        Values may be text (from a command line): lists are comma-separated, "" is null. Changes of bandwidth and
        security groups are in force on return. KeyError for an unknown instance, ValueError for a bad field.
        """
        with self.store.changing():
            instance = self.store.instances[instance_id]
            changes = [_instance_change(name, value) for name, value in fields.items()]
            if unknown := [
                group
                for _, value in changes
                if isinstance(value, list)
                for group in value
                if group not in self.store.groups
            ]:
                raise ValueError(f"there is no security group {unknown[0]}")
            for attribute, value in changes:
                setattr(instance, attribute, value)
        if {"InternetMaxBandwidthOut", "SecurityGroupIds"} & set(fields):
            self.transitions.submit(instance_id, self.apply_network, instance_id).result()

    def set_disk(self, disk_id: str, **fields: Any) -> None:
        """Change a disk from outside, by API field names, e.g. DiskState="DUMPING"."""
        with self.store.changing():
            disk = self.store.disks[disk_id]
            changes = [_change(_DISK_FIELDS, name, value) for name, value in fields.items()]
            for attribute, value in changes:
                setattr(disk, attribute, value)

    def powered_off(self, instance_id: str) -> None:
        """The guest turned its machine off by itself."""
        with self.store.changing():
            instance = self.store.instances.get(instance_id)
            if instance is not None and instance.state == "RUNNING":
                instance.state = "STOPPED"

    def recover(self) -> None:
        """After a restart: end what was interrupted, and note machines that are off."""
        with self.store.changing():
            for disk in self.store.disks.values():
                _recover_disk(disk)
            for snapshot in [item for item in self.store.snapshots.values() if item.state != "NORMAL"]:
                if snapshot.state == "CREATING":
                    self.hypervisor.delete_snapshot(snapshot.snapshot_id)
                    del self.store.snapshots[snapshot.snapshot_id]
                else:
                    snapshot.state = "NORMAL"
            for instance in self.store.instances.values():
                self._recover_instance(instance)
            for image in self.store.images.values():
                if image.state == "IMPORTING":
                    image.state = "IMPORTFAILED"
                    self.store.notices.append(Notice(image.image_id, image.name, "InternalError", INTERRUPTED))

    def close(self) -> None:
        """Wait for the work under way."""
        self.transitions.close()

    def _recover_instance(self, instance: Instance) -> None:
        interrupted = instance.latest_operation_state == "OPERATING"
        if instance.state == "PENDING" and interrupted:
            instance.state = "LAUNCH_FAILED"
        elif instance.state in TRANSITIONAL and interrupted:
            running = "RESCUE_MODE" if instance.state == "EXIT_RESCUE_MODE" else "RUNNING"
            instance.state = self.transitions.power_state(instance.instance_id, running)
        elif instance.state == "RUNNING":
            instance.state = self.transitions.power_state(instance.instance_id, "RUNNING")
        if interrupted:
            mark_done(instance, INTERRUPTED)

    def spec(self, instance: Instance, password: str | None) -> InstanceSpec:
        """The machine of an instance as the hypervisor is to build it (the caller holds the store)."""
        return InstanceSpec(
            instance_id=instance.instance_id,
            name=instance.name,
            host_name=instance.host_name,
            zone=instance.zone,
            private_addresses=tuple(instance.private_addresses),
            public_addresses=tuple(instance.public_addresses),
            cpu=instance.cpu,
            memory_gb=instance.memory_gb,
            image_id=instance.image_id,
            disks=tuple(disk_spec(self.store.disks[disk_id]) for disk_id in instance.disk_ids),
            password=password,
        )

    def _group_members(self) -> dict[str, list[str]]:
        members: dict[str, list[str]] = {}
        for instance in self.store.instances.values():
            for group_id in instance.security_group_ids:
                members.setdefault(group_id, []).extend(instance.private_addresses)
        return members


def disk_spec(disk: Disk) -> DiskSpec:
    """A disk as the hypervisor sees it: the guest reads the disk id as its serial."""
    usage: Literal["SYSTEM_DISK", "DATA_DISK"] = "SYSTEM_DISK" if disk.usage == "SYSTEM_DISK" else "DATA_DISK"
    return DiskSpec(disk.disk_id, disk.disk_id, disk.size_gb, usage)


def _recover_disk(disk: Disk) -> None:
    if disk.state == "ATTACHING":
        disk.state, disk.instance_id, disk.error_prompt = "UNATTACHED", None, INTERRUPTED
    elif disk.state == "DETACHING":
        disk.state, disk.error_prompt = "ATTACHED", INTERRUPTED
    elif disk.state == "ROLLBACKING":
        disk.state, disk.error_prompt = "ATTACHED" if disk.instance_id else "UNATTACHED", INTERRUPTED


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is none of {', '.join(sorted(allowed))}")
        return str(value)

    return convert


def _text_or_null(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return _one_of("true", "false")(str(value).lower()) == "true"


def _list(value: Any) -> list[str]:
    return [item for item in value.split(",") if item] if isinstance(value, str) else [str(item) for item in value]


Converters = dict[str, tuple[str, Callable[[Any], Any]]]

_INSTANCE_FIELDS: Converters = {
    "DisableApiTermination": ("disable_api_termination", _boolean),
    "ExpiredTime": ("expired", _text_or_null),
    "ImageId": ("image_id", str),
    "InstanceChargeType": ("charge_type", _one_of("PREPAID", "POSTPAID_BY_HOUR", "SPOTPAID", "CDHPAID", "CDCPAID")),
    "InstanceName": ("name", str),
    "InstanceState": ("state", _one_of(*STATES)),
    "InstanceType": ("instance_type", str),
    "InternetMaxBandwidthOut": ("bandwidth_out", int),
    "IsolatedSource": ("isolated_source", _one_of("ARREAR", "EXPIRE", "MANMADE", "NOTISOLATED")),
    "LatestOperation": ("latest_operation", _text_or_null),
    "LatestOperationErrorMsg": ("latest_operation_error", _text_or_null),
    "LatestOperationState": ("latest_operation_state", _one_of("SUCCESS", "OPERATING", "FAILED")),
    "OsName": ("os_name", str),
    "RestrictState": ("restrict_state", _one_of("NORMAL", "EXPIRED", "PROTECTIVELY_ISOLATED")),
    "SecurityGroupIds": ("security_group_ids", _list),
    "StopChargingMode": ("stop_charging_mode", _one_of("KEEP_CHARGING", "STOP_CHARGING", "NOT_APPLICABLE")),
}
_DISK_FIELDS: Converters = {
    "DeadlineTime": ("deadline", _text_or_null),
    "DiskName": ("name", str),
    "DiskState": (
        "state",
        _one_of("UNATTACHED", "ATTACHING", "ATTACHED", "DETACHING", "EXPANDING", "ROLLBACKING", "TORECYCLE", "DUMPING"),
    ),
    "Portable": ("portable", _boolean),
}


def _instance_change(name: str, value: Any) -> tuple[str, Any]:
    return _change(_INSTANCE_FIELDS, name, value)


def _change(table: Converters, name: str, value: Any) -> tuple[str, Any]:
    if name not in table:
        raise ValueError(f"{name} cannot be set; what can: {', '.join(sorted(table))}")
    attribute, convert = table[name]
    try:
        return attribute, convert(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def free_address(network: str, used: Iterable[str]) -> str | None:
    """An address of a network that nobody has, from the hundredth on (the first ones are named by descriptions)."""
    taken = set(used)
    hosts = list(ipaddress.ip_network(network).hosts())
    return next((str(host) for host in hosts[99:] if str(host) not in taken), None)
