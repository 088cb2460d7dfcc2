# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One instance for one source, created at most once.

Two things keep an interrupted run from creating a second one: the tags, by which an instance is found again, and the
client token, by which the cloud itself answers a repeated request with the instance that the first one made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..findings import Refusal, refuse
from ..security_groups import Rule
from .client import CloudClient
from .errors import CloudError
from .instances import Instances
from .target import GONE_STATES, Disk, Target
from .waiter import DummyWaiter, Waiter

GIB = 1 << 30
# The natural key of an instance that this collection has made.
SOURCE_TAG = "fleetlift-source"
MIGRATION_TAG = "fleetlift-migration"
# GiB. Data disks grow in steps of 10 (DataDisk.DiskSize of the SDK's models). The smallest size depends on the disk's
# type and is not documented in one place: this one is sold everywhere, and what is refused is explained.
SIZE_STEP = 10
LEAST_SIZE = 20
# In place of an address that an instance gets when it is created.
LATER = "given by the cloud"
# What the cloud says to a dry run that would have succeeded, where it does not simply answer.
DRY_RUN_PASSED = "DryRunOperation"


@dataclass(frozen=True)
class Shape:
    """What to create. ``bandwidth_out`` in Mbit/s, 0 is no public address; ``period`` in months, for PREPAID only.

    ``data_snapshots`` are what the data disks are made of, in their order, None for a blank one.
    """

    zone: str
    instance_type: str
    image_id: str
    vpc_id: str | None = None
    subnet_id: str | None = None
    security_groups: tuple[str, ...] = ()
    charge_type: str = "POSTPAID_BY_HOUR"
    period: int | None = None
    system_disk_type: str | None = None
    data_disk_type: str | None = None
    bandwidth_out: int = 0
    instance_name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    keep_image_login: bool = False
    data_snapshots: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Provisioned:
    """The instance, or in a dry run what it would be; ``changed`` when it was, or would be, created by this run."""

    target: Target
    changed: bool


def disk_sizes(sizes: Mapping[str, int]) -> list[int]:
    """The sizes in GiB of the disks to create, the system disk's first.

    *sizes* are the bytes that ``system``, ``data1``, ``data2``... have to hold. Raises ``Refusal`` for a gap.
    """
    wanted = ["system", *(f"data{number}" for number in range(1, len(sizes)))]
    if sorted(sizes) != sorted(wanted):
        raise refuse(
            "TARGET_DISKS_INCOMPLETE",
            "target",
            f"The disk mapping names {', '.join(sorted(sizes)) or 'no disk'} of a target that is to be created.",
            "Map the source's system disk to system, and its other disks to data1, data2 and so on without a gap.",
            disks=sorted(sizes),
        )
    return [max(LEAST_SIZE, -(-sizes[name] // (GIB * SIZE_STEP)) * SIZE_STEP) for name in wanted]


def client_token(migration: str, source: str, gone: Sequence[str], attempt: int) -> str:
    """The token of the request for *source*: the same for every run, until its instance is among those *gone*."""
    key = "\0".join((migration, source, str(attempt), *sorted(gone)))
    return f"fleetlift-{hashlib.sha256(key.encode()).hexdigest()[:48]}"


def run_instances_request(
    shape: Shape, *, migration: str, source: str, sizes: Sequence[int], token: str
) -> dict[str, Any]:
    """The parameters of RunInstances; *sizes* in GiB, the system disk's first."""
    tags = {**shape.tags, SOURCE_TAG: source, MIGRATION_TAG: migration}
    request: dict[str, Any] = {
        "Placement": {"Zone": shape.zone},
        "InstanceType": shape.instance_type,
        "ImageId": shape.image_id,
        "InstanceChargeType": shape.charge_type,
        "SystemDisk": _disk(sizes[0], shape.system_disk_type),
        "InstanceCount": 1,
        "InstanceName": shape.instance_name or source,
        "ClientToken": token,
        "TagSpecification": [
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())]}
        ],
    }
    if len(sizes) > 1:
        request["DataDisks"] = [_disk(size, shape.data_disk_type) for size in sizes[1:]]
        for disk, snapshot in zip(request["DataDisks"], shape.data_snapshots):
            if snapshot:
                disk["SnapshotId"] = snapshot
    if shape.keep_image_login:
        # The API's model has text here, not a truth value.
        request["LoginSettings"] = {"KeepImageLogin": "TRUE"}
    if shape.charge_type == "PREPAID":
        request["InstanceChargePrepaid"] = {"Period": shape.period}
    if shape.vpc_id and shape.subnet_id:
        request["VirtualPrivateCloud"] = {"VpcId": shape.vpc_id, "SubnetId": shape.subnet_id}
    if shape.bandwidth_out:
        request["InternetAccessible"] = {"InternetMaxBandwidthOut": shape.bandwidth_out, "PublicIpAssigned": True}
    if shape.security_groups:
        request["SecurityGroupIds"] = list(shape.security_groups)
    return request


def _disk(size: int, disk_type: str | None) -> dict[str, Any]:
    return {"DiskSize": size, **({"DiskType": disk_type} if disk_type else {})}


class Provision:
    """Finds or creates the instance of one source."""

    def __init__(
        self, client: CloudClient, instances: Instances, *, migration: str, source: str, waiter: Waiter | DummyWaiter
    ) -> None:
        self._client = client
        self._instances = instances
        self._migration = migration
        self._source = source
        self._waiter = waiter

    def find(self) -> Target | None:
        """The instance of the source, None when there is none. Raises ``Refusal`` when there are several."""
        alive, _gone = self._tagged()
        if len(alive) > 1:
            names = ", ".join(target.instance_id for target in alive)
            raise refuse(
                "TARGET_AMBIGUOUS",
                self._source,
                f"{len(alive)} instances carry the tags of {self._source}: {names}.",
                f"Remove the tag {SOURCE_TAG} from all but the one that is to be the target.",
                instance_ids=[target.instance_id for target in alive],
            )
        return alive[0] if alive else None

    def ensure(self, shape: Shape, sizes: Sequence[int], *, attempt: int = 1, dry_run: bool = False) -> Provisioned:
        """The instance, created when there is none, and waited for. Raises ``Refusal``."""
        found = self.find()
        if found:
            return Provisioned(found if dry_run else self._running(found), changed=False)
        gone = [target.instance_id for target in self._tagged()[1]]
        token = client_token(self._migration, self._source, gone, attempt)
        request = run_instances_request(shape, migration=self._migration, source=self._source, sizes=sizes, token=token)
        if dry_run:
            self._try(request)
            ingress = self._instances.ingress_of(shape.security_groups)
            return Provisioned(planned_target(shape, self._source, sizes, ingress), changed=True)
        # Asking again after a lost answer is safe: that is what the token is for.
        (instance_id,) = self._client.call("cvm", "RunInstances", request, expect=("InstanceIdSet",))["InstanceIdSet"]
        return Provisioned(self._running(self._seen(instance_id, attempt)), changed=True)

    def _try(self, request: Mapping[str, Any]) -> None:
        """Raises :class:`CloudError` for what RunInstances would refuse.

        The SDK's documentation says that a dry run that would succeed is answered with a request id alone, the list of
        common error codes that it is answered with an error of its own: both are taken for a yes.
        """
        try:
            self._client.call("cvm", "RunInstances", {**request, "DryRun": True})
        except CloudError as error:
            if error.code != DRY_RUN_PASSED:
                raise

    def _tagged(self) -> tuple[list[Target], list[Target]]:
        filters = {f"tag:{SOURCE_TAG}": [self._source], f"tag:{MIGRATION_TAG}": [self._migration]}
        targets = self._instances.by_filters(filters)
        return (
            [target for target in targets if target.state not in GONE_STATES],
            [target for target in targets if target.state in GONE_STATES],
        )

    def _seen(self, instance_id: str, attempt: int) -> Target:
        """The instance that was just created, once DescribeInstances knows it.

        One that stays unknown is never taken for gone: it may only be late, and a second one would be paid for.
        """
        while True:
            try:
                return self._instances.by_ids([instance_id])[0]
            except Refusal as refusal:
                if refusal.finding.code != "TARGET_NOT_FOUND":
                    raise
            if not self._waiter.pause():
                raise refuse(
                    "TARGET_NOT_VISIBLE",
                    instance_id,
                    f"The cloud answered the request for the target of {self._source} with {instance_id}, which it does"
                    " not show.",
                    "Run again in a while. If that instance was made by an earlier run and terminated since, run again"
                    f" with attempt={attempt + 1}.",
                    instance_id=instance_id,
                )

    def _running(self, target: Target) -> Target:
        """*target* once it is settled. Raises ``Refusal`` when its launch fails or takes too long."""
        while True:
            if target.state == "LAUNCH_FAILED":
                raise refuse(
                    "TARGET_LAUNCH_FAILED",
                    target.instance_id,
                    f"The cloud could not launch the instance {target.instance_id}: {target.latest_operation.error}.",
                    "Correct the shape if the message asks for it, and run again: another one is created.",
                    instance_id=target.instance_id,
                )
            if target.state != "PENDING" or not self._waiter.patient:
                return target
            if not self._waiter.pause():
                raise refuse(
                    "TARGET_LAUNCH_TIMEOUT",
                    target.instance_id,
                    f"The instance {target.instance_id} is still {target.state} after {self._waiter.waited:.0f} s.",
                    "Run again: it is found by its tags and waited for.",
                    instance_id=target.instance_id,
                )
            target = self._instances.by_ids([target.instance_id])[0]


def planned_target(shape: Shape, source: str, sizes: Sequence[int], ingress: Sequence[Rule]) -> Target:
    """What RunInstances would make, once it runs; it has no ids yet."""
    return Target(
        instance_id="(to be created)",
        name=shape.instance_name or source,
        state="RUNNING",
        ingress=tuple(ingress),
        private_addresses=(LATER,),
        public_addresses=(LATER,) if shape.bandwidth_out else (),
        instance_type=shape.instance_type,
        zone=shape.zone,
        image_id=shape.image_id,
        charge_type=shape.charge_type,
        security_groups=shape.security_groups,
        bandwidth_out_mbps=shape.bandwidth_out,
        disks=tuple(
            Disk(disk_id="", usage="data" if order else "system", size_gb=size, order=order)
            for order, size in enumerate(sizes)
        ),
    )
