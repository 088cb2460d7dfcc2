# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cloud remembers: instances, disks and their snapshots, images, security groups, used client tokens.

State lives in memory behind one lock; after each change its JSON file is replaced, so that a
restarted lab continues where it was. Passwords are never part of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import string
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SCHEMA = 2

INSTANCE_ID = re.compile(r"ins-[a-z0-9]{8}")
DISK_ID = re.compile(r"disk-[a-z0-9]{8}")
SNAPSHOT_ID = re.compile(r"snap-[a-z0-9]{8}")
IMAGE_ID = re.compile(r"img-[a-z0-9]{8}")
GROUP_ID = re.compile(r"sg-[a-z0-9]+")

_ID_ALPHABET = string.ascii_lowercase + string.digits


def now_text() -> str:
    """The current time as CVM writes it, e.g. 2026-01-31T12:00:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Disk:
    """A cloud disk (CBS). Sizes in GiB; deadline is None for disks paid by the hour."""

    disk_id: str
    size_gb: int
    zone: str
    usage: str = "DATA_DISK"
    name: str = ""
    disk_type: str = "CLOUD_BSSD"
    charge_type: str = "POSTPAID_BY_HOUR"
    state: str = "UNATTACHED"
    instance_id: str | None = None
    last_instance_id: str | None = None
    portable: bool = True
    delete_with_instance: bool = False
    deadline: str | None = None
    created: str = field(default_factory=now_text)
    tags: dict[str, str] = field(default_factory=dict)
    error_prompt: str = ""
    # The image and the number of the disk in it that this one was made of; empty for a blank one.
    origin: list[Any] = field(default_factory=list)


@dataclass
class Snapshot:
    """What a cloud disk held. size_gb and usage are the disk's; percent says how much of it has been kept."""

    snapshot_id: str
    disk_id: str
    size_gb: int
    zone: str
    usage: str
    name: str
    state: str = "CREATING"
    percent: int = 0
    deadline: str | None = None
    created: str = field(default_factory=now_text)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Instance:
    """A cloud virtual machine (CVM). Memory in GiB, bandwidth in Mbit/s; disks in the order of attachment."""

    instance_id: str
    name: str
    zone: str
    instance_type: str
    image_id: str
    system_disk_id: str
    private_addresses: list[str]
    data_disk_ids: list[str] = field(default_factory=list)
    public_addresses: list[str] = field(default_factory=list)
    security_group_ids: list[str] = field(default_factory=list)
    bandwidth_out: int = 0
    cpu: int = 2
    memory_gb: int = 4
    os_name: str = ""
    host_name: str = ""
    charge_type: str = "POSTPAID_BY_HOUR"
    renew_flag: str | None = None
    created: str = field(default_factory=now_text)
    expired: str | None = None
    state: str = "PENDING"
    restrict_state: str = "NORMAL"
    isolated_source: str = "NOTISOLATED"
    stop_charging_mode: str = "NOT_APPLICABLE"
    disable_api_termination: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    latest_operation: str | None = None
    latest_operation_state: str | None = None
    latest_operation_request_id: str | None = None
    latest_operation_error: str | None = None

    @property
    def disk_ids(self) -> list[str]:
        """Every disk, the system disk first."""
        return [self.system_disk_id, *self.data_disk_ids]


@dataclass
class Image:
    """An image; sizes in GiB. data_disks has a snapshot id and a size for each data disk that belongs to it."""

    image_id: str
    name: str
    os_type: str
    os_name: str
    kind: str = "PRIVATE_IMAGE"
    architecture: str = "x86_64"
    description: str = ""
    size_gb: int = 0
    state: str = "NORMAL"
    boot_mode: str = "Legacy BIOS"
    license_type: str = "TencentCloud"
    family: str = ""
    request_id: str = ""
    created: str = field(default_factory=now_text)
    data_disks: list[dict[str, Any]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Notice:
    """What the account's Message Center says about an import; code is empty for one that succeeded."""

    image_id: str
    image_name: str
    code: str
    text: str
    time: str = field(default_factory=now_text)


@dataclass
class Policy:
    """One security group rule as it was given; cidr, ipv6_cidr and group_id exclude each other."""

    action: str
    protocol: str = "ALL"
    port: str = "all"
    cidr: str = ""
    ipv6_cidr: str = ""
    group_id: str = ""
    description: str = ""
    modified: str = field(default_factory=now_text)


@dataclass
class SecurityGroup:
    """A security group; policies take effect from the first to the last."""

    group_id: str
    name: str
    description: str = ""
    version: int = 0
    ingress: list[Policy] = field(default_factory=list)
    egress: list[Policy] = field(default_factory=lambda: [Policy(action="ACCEPT", cidr="0.0.0.0/0")])
    created: str = field(default_factory=now_text)
    updated: str = field(default_factory=now_text)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """The fixed part of the cloud: where it is and what can be bought there. instance_types: name -> (cpu, GiB).

    sold_out names the types of which there is no stock; solvent says whether the account can pay for anything.
    international says which of the vendor's two sites this is: their API models differ.
    """

    region: str = "ap-guangzhou"
    international: bool = False
    region_name: str = "South China (Guangzhou)"
    zones: tuple[str, ...] = ("ap-guangzhou-3",)
    vpc_id: str = "vpc-fleetlab"
    subnet_id: str = "subnet-fleetlab"
    private_network: str = "10.97.0.0/24"
    public_network: str = "203.0.113.0/24"
    images: dict[str, str] = field(default_factory=lambda: {"img-debian12": "Debian 12 64-bit"})
    image_quota: int = 100
    instance_types: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {
            "S5.SMALL1": (1, 1),
            "S5.SMALL2": (1, 2),
            "S5.MEDIUM2": (2, 2),
            "S5.MEDIUM4": (2, 4),
            "S5.LARGE8": (4, 8),
            "SR1.MEDIUM4": (2, 4),
        }
    )
    sold_out: tuple[str, ...] = ()
    solvent: bool = True


class Store:
    """All of the cloud's state. path names the snapshot; None keeps it in memory only.

    restored says that the state came from a snapshot of an earlier run. The snapshot is atomic but not synced:
    it has to outlive the lab's daemon, not the machine, which takes the lab's namespaces with it.
    """

    def __init__(self, path: Path | None = None, site: Site | None = None) -> None:
        self.site = site or Site()
        self.instances: dict[str, Instance] = {}
        self.disks: dict[str, Disk] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.groups: dict[str, SecurityGroup] = {}
        self.client_tokens: dict[str, list[str]] = {}
        self.images: dict[str, Image] = {}
        self.notices: list[Notice] = []
        self.used_urls: list[str] = []
        self._path = path
        self._lock = threading.RLock()
        self._depth = 0
        self.restored = path is not None and path.exists()
        if path is not None and self.restored:
            self._load(json.loads(path.read_text(encoding="utf-8")))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the state still."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the state to change it; the snapshot is written when the outermost change ends well."""
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            if self._depth == 0:
                self._save()

    def add_instance(self, instance: Instance) -> None:
        """Define an instance whose disks and security groups are defined already; its disks become attached."""
        with self.changing():
            _check_new(self.instances, instance.instance_id, INSTANCE_ID)
            for disk_id in instance.disk_ids:
                if self.disks[disk_id].instance_id is not None:
                    raise ValueError(f"{disk_id} is attached to {self.disks[disk_id].instance_id} already")
            for group_id in instance.security_group_ids:
                if group_id not in self.groups:
                    raise ValueError(f"{instance.instance_id}: security group {group_id} is not defined")
            for disk_id in instance.disk_ids:
                disk = self.disks[disk_id]
                disk.usage = "SYSTEM_DISK" if disk_id == instance.system_disk_id else "DATA_DISK"
                disk.portable = disk.usage == "DATA_DISK"
                disk.state, disk.instance_id = "ATTACHED", instance.instance_id
            self.instances[instance.instance_id] = instance

    def add_disk(self, disk: Disk) -> None:
        """Define a disk."""
        with self.changing():
            _check_new(self.disks, disk.disk_id, DISK_ID)
            self.disks[disk.disk_id] = disk

    def add_group(self, group: SecurityGroup) -> None:
        """Define a security group."""
        with self.changing():
            _check_new(self.groups, group.group_id, GROUP_ID)
            self.groups[group.group_id] = group

    def snapshots_of(self, disk_id: str) -> list[Snapshot]:
        """The snapshots of a disk."""
        return [item for item in self.snapshots.values() if item.disk_id == disk_id]

    def new_id(self, prefix: str) -> str:
        """A fresh id such as ins-1a2b3c4d."""
        return f"{prefix}-{''.join(secrets.choice(_ID_ALPHABET) for _ in range(8))}"

    def _load(self, data: dict[str, Any]) -> None:
        if data["schema"] != SCHEMA:
            raise ValueError(
                f"{self._path} has schema {data['schema']}, this lab writes {SCHEMA}: take the lab down first"
            )
        self.instances = {item["instance_id"]: Instance(**item) for item in data["instances"]}
        self.disks = {item["disk_id"]: Disk(**item) for item in data["disks"]}
        self.snapshots = {item["snapshot_id"]: Snapshot(**item) for item in data["snapshots"]}
        self.groups = {item["group_id"]: _group(item) for item in data["groups"]}
        self.client_tokens = data["client_tokens"]
        self.images = {item["image_id"]: Image(**item) for item in data["images"]}
        self.notices = [Notice(**item) for item in data["notices"]]
        self.used_urls = data["used_urls"]

    def _save(self) -> None:
        if self._path is None:
            return
        data = {
            "schema": SCHEMA,
            "instances": [asdict(item) for item in self.instances.values()],
            "disks": [asdict(item) for item in self.disks.values()],
            "snapshots": [asdict(item) for item in self.snapshots.values()],
            "groups": [asdict(item) for item in self.groups.values()],
            "client_tokens": self.client_tokens,
            "images": [asdict(item) for item in self.images.values()],
            "notices": [asdict(item) for item in self.notices],
            "used_urls": self.used_urls,
        }
        temporary = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(data, stream, indent=1)
        temporary.replace(self._path)


def _group(item: dict[str, Any]) -> SecurityGroup:
    policies = {side: [Policy(**policy) for policy in item[side]] for side in ("ingress", "egress")}
    return SecurityGroup(**{**item, **policies})


def _check_new(table: dict[str, Any], key: str, form: re.Pattern[str]) -> None:
    if not form.fullmatch(key):
        raise ValueError(f"{key} is not an id that the API accepts: it must match {form.pattern}")
    if key in table:
        raise ValueError(f"{key} is defined twice")
