# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's cloud on loopback, with machines that exist only in its books."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import Access, CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances

from lab.cloud.hypervisor import HypervisorError, ImageOrder, ImageRejected
from lab.cloud.server import CloudServer
from lab.cloud.store import Disk, Instance, Policy, SecurityGroup, Store

SECRET_ID = "AKIDfleetliftunit000"
SECRET_KEY = "unit-secret-key-0123456789"
REGION = "ap-guangzhou"
WEB = "ins-webtgt01"
DATABASE = "ins-dbtgt001"


class Bookkeeper:
    """A hypervisor that only notes what it is asked; calls named in ``fail`` raise, ``gate`` holds work back."""

    def __init__(self) -> None:
        self.on: set[str] = set()
        self.fail: set[str] = set()
        self.rescued: dict[str, tuple[str, str]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.rejected: ImageRejected | None = None

    def import_image(self, order: ImageOrder) -> tuple[int, ...]:
        assert self.gate.wait(20)
        if self.rejected is not None:
            raise self.rejected
        return tuple(2 << 30 for _ in order.urls)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            assert self.gate.wait(20)
            if name in self.fail:
                raise HypervisorError(f"{name} failed as asked")
            if name in ("start", "rescue"):
                self.on.add(arguments[0])
            if name == "rescue":
                self.rescued[arguments[0]] = arguments[1:]
            if name == "stop":
                self.on.discard(arguments[0])

        return call

    def is_running(self, instance_id: str) -> bool:
        return instance_id in self.on


class Fleet:
    """A running cloud, and what a test needs to talk to it and to look behind it."""

    def __init__(self, directory: Path, store: Store) -> None:
        self.log = directory / "requests.jsonl"
        self.hypervisor = Bookkeeper()
        self.now = time.time
        listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.server = CloudServer(
            listening,
            store,
            self.hypervisor,
            {SECRET_ID: SECRET_KEY},
            clock=lambda: self.now(),
            minimum_delay=0.05,
            request_log=self.log,
        )
        self.cloud = self.server.cloud
        for name in (WEB, DATABASE):
            self.cloud.provision(name)
        self.server.start()

    def close(self) -> None:
        self.hypervisor.gate.set()
        self.server.close()

    def access(self, **changes: Any) -> Access:
        given = {"secret_id": SECRET_ID, "secret_key": SECRET_KEY, "region": REGION, "endpoint": self.endpoint}
        return Access(**{**given, **changes})

    def instances(self, **changes: Any) -> Instances:
        access = self.access(**changes)
        return Instances(CloudClient(access), access.region)

    def requests(self, *actions: str) -> list[dict[str, Any]]:
        """The requests of *actions* that have arrived, all without *actions*."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [entry for entry in map(json.loads, lines) if not actions or entry["action"] in actions]

    def changes(self) -> list[str]:
        """The actions that have arrived and were to change something."""
        return [entry["action"] for entry in self.requests() if not entry["action"].startswith("Describe")]


def seen_by(fleet: Fleet, action: str) -> None:
    """Return once a request of ``action`` has arrived."""
    deadline = time.monotonic() + 20
    while not fleet.requests(action):
        assert time.monotonic() < deadline, f"no {action} within 20 s"
        time.sleep(0.01)


def instance(name: str, label: str, host: int, system: str, data: tuple[str, ...] = ()) -> Instance:
    return Instance(
        instance_id=name,
        name=label,
        zone="ap-guangzhou-3",
        instance_type="S5.MEDIUM4",
        image_id="img-debian12",
        os_name="Debian 12 64-bit",
        system_disk_id=system,
        data_disk_ids=list(data),
        private_addresses=[f"10.97.0.{host}"],
        public_addresses=[f"203.0.113.{host}"],
        security_group_ids=["sg-fleetlift", "sg-second"],
        bandwidth_out=100,
        state="RUNNING",
    )


def small_store() -> Store:
    store = Store()
    store.add_group(
        SecurityGroup(
            "sg-fleetlift",
            "first",
            ingress=[Policy("ACCEPT", "TCP", "22", "10.98.0.0/24"), Policy("DROP", "TCP", "8000-9000", "0.0.0.0/0")],
        )
    )
    store.add_group(SecurityGroup("sg-second", "second", ingress=[Policy("ACCEPT", "TCP", "443,8443", "0.0.0.0/0")]))
    for disk_id, size in (("disk-websys01", 50), ("disk-dbsys001", 50), ("disk-dbdata01", 100), ("disk-dbdata02", 20)):
        store.add_disk(Disk(disk_id, size, "ap-guangzhou-3"))
    store.add_instance(instance(WEB, "web", 11, "disk-websys01"))
    store.add_instance(instance(DATABASE, "db", 12, "disk-dbsys001", ("disk-dbdata01", "disk-dbdata02")))
    return store
