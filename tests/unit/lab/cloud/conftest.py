# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloud on loopback with recorded machines, and the real SDK's clients for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tencentcloud.cbs.v20170312 import cbs_client
from tencentcloud.common.credential import Credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.cvm.v20170312 import cvm_client
from tencentcloud.vpc.v20170312 import vpc_client

from lab.cloud.hypervisor import HypervisorError, ImageOrder, ImageRejected, InstanceSpec, PacketRule
from lab.cloud.server import CloudServer
from lab.cloud.store import Disk, Instance, Policy, SecurityGroup, Store

SECRET_ID = "AKIDlabfleetlift0000"
SECRET_KEY = "lab-secret-key-0123456789"
REGION = "ap-guangzhou"
WEB = "ins-webtgt01"
DATABASE = "ins-dbtgt001"
DEADLINE = 10.0  # seconds
GIB = 1024**3


class RecordingHypervisor:
    """Machines that exist in a table only. fail holds call names that raise; gate, when set, holds work back."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.running: set[str] = set()
        self.rescued: dict[str, tuple[str, str]] = {}
        self.disks: dict[str, int] = {}
        self.policies: dict[str, tuple[PacketRule, ...]] = {}
        self.egress: dict[str, tuple[PacketRule, ...]] = {}
        self.bandwidth: dict[str, int] = {}
        self.fail: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.overlaps = 0
        self.rejected: ImageRejected | None = None
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def _do(self, name: str, machine: str, *arguments: Any) -> None:
        with self._lock:
            self.overlaps += machine in self._busy
            self._busy.add(machine)
            self.calls.append((name, machine, *arguments))
        try:
            assert self.gate.wait(DEADLINE)
            if name in self.fail:
                raise HypervisorError(f"{name} of {machine} failed as asked")
        finally:
            with self._lock:
                self._busy.discard(machine)

    def create_disk(self, disk_id: str, size_gb: int) -> None:
        self._do("create_disk", disk_id, size_gb)
        self.disks[disk_id] = size_gb

    def delete_disk(self, disk_id: str) -> None:
        self._do("delete_disk", disk_id)
        del self.disks[disk_id]

    def snapshot_disk(self, disk_id: str, snapshot_id: str, progress: Callable[[int], None]) -> None:
        progress(50)
        self._do("snapshot_disk", disk_id, snapshot_id)

    def apply_snapshot(self, snapshot_id: str, disk_id: str) -> None:
        self._do("apply_snapshot", disk_id, snapshot_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        self._do("delete_snapshot", snapshot_id)

    def reinstall(self, spec: InstanceSpec) -> None:
        self._do("reinstall", spec.instance_id, spec)

    def create(self, spec: InstanceSpec) -> None:
        self._do("create", spec.instance_id, spec)

    def start(self, instance_id: str) -> None:
        self._do("start", instance_id)
        self.running.add(instance_id)

    def stop(self, instance_id: str, hard: bool) -> None:
        self._do("stop", instance_id, hard)
        self.running.discard(instance_id)
        self.rescued.pop(instance_id, None)

    def reboot(self, instance_id: str) -> None:
        self._do("reboot", instance_id)

    def rescue(self, instance_id: str, username: str, password: str) -> None:
        if "rescue" in self.fail:
            raise HypervisorError(f"rescue of {instance_id} for {username}:{password} failed as asked")
        self._do("rescue", instance_id, username)
        self.running.add(instance_id)
        self.rescued[instance_id] = (username, password)

    def destroy(self, instance_id: str) -> None:
        self._do("destroy", instance_id)
        self.running.discard(instance_id)

    def attach_disk(self, instance_id: str, disk_id: str, serial: str, size_gb: int) -> None:
        self._do("attach_disk", instance_id, disk_id, serial, size_gb)

    def detach_disk(self, instance_id: str, disk_id: str) -> None:
        self._do("detach_disk", instance_id, disk_id)

    def import_image(self, order: ImageOrder) -> tuple[int, ...]:
        self._do("import_image", order.image_id, order)
        if self.rejected is not None:
            raise self.rejected
        return tuple(3 * GIB + 1 for _ in order.urls)

    def fill_disk(self, disk_id: str, size_gb: int, image_id: str, number: int) -> None:
        self._do("fill_disk", disk_id, size_gb, image_id, number)

    def delete_image(self, image_id: str) -> None:
        self._do("delete_image", image_id)

    def set_bandwidth(self, instance_id: str, mbps_out: int) -> None:
        self._do("set_bandwidth", instance_id, mbps_out)
        self.bandwidth[instance_id] = mbps_out

    def set_policies(self, instance_id: str, ingress: Sequence[PacketRule], egress: Sequence[PacketRule]) -> None:
        self._do("set_policies", instance_id)
        self.policies[instance_id] = tuple(ingress)
        self.egress[instance_id] = tuple(egress)

    def is_running(self, instance_id: str) -> bool:
        return instance_id in self.running


def demo_store(path: Path | None = None) -> Store:
    """Two instances, one with a data disk, and a spare disk."""
    store = Store(path)
    if store.instances:
        return store
    store.add_group(SecurityGroup("sg-fleetlift", "fleetlift", ingress=[Policy("ACCEPT", "TCP", "22", "10.98.0.0/24")]))
    for disk_id, size in (("disk-websys01", 50), ("disk-dbsys001", 50), ("disk-dbdata01", 100), ("disk-spare001", 20)):
        store.add_disk(Disk(disk_id, size, "ap-guangzhou-3"))
    store.add_instance(_instance(WEB, "web", 11, "disk-websys01", [], {"fleet": "demo", "role": "web"}))
    store.add_instance(_instance(DATABASE, "db", 12, "disk-dbsys001", ["disk-dbdata01"], {"fleet": "demo"}))
    return store


def _instance(name: str, label: str, host: int, system: str, data: list[str], tags: dict[str, str]) -> Instance:
    return Instance(
        instance_id=name,
        name=label,
        zone="ap-guangzhou-3",
        instance_type="S5.MEDIUM4",
        image_id="img-debian12",
        system_disk_id=system,
        data_disk_ids=data,
        private_addresses=[f"10.97.0.{host}"],
        public_addresses=[f"203.0.113.{host}"],
        security_group_ids=["sg-fleetlift"],
        bandwidth_out=100,
        tags=tags,
        state="RUNNING",
    )


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class CloudUnderTest:
    """A running server with everything a test needs to talk to it and to look behind it."""

    def __init__(
        self, directory: Path, store: Store, clock: Callable[[], float], minimum_delay: float, provision: bool = True
    ) -> None:
        self.log_path = directory / "requests.jsonl"
        self.hypervisor = RecordingHypervisor()
        self.store = store
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.server = CloudServer(
            self.listening,
            store,
            self.hypervisor,
            {SECRET_ID: SECRET_KEY},
            clock=clock,
            minimum_delay=minimum_delay,
            request_log=self.log_path,
        )
        self.cloud = self.server.cloud
        for instance_id in list(store.instances) if provision else []:
            self.cloud.provision(instance_id)
        self.server.start()
        self.cvm: Any = self.client(cvm_client.CvmClient)
        self.cbs: Any = self.client(cbs_client.CbsClient)
        self.vpc: Any = self.client(vpc_client.VpcClient)

    def client(
        self,
        kind: Any,
        secret_id: str = SECRET_ID,
        secret_key: str = SECRET_KEY,
        region: str = REGION,
        token: Any = None,
    ) -> Any:
        """An SDK client for this cloud."""
        http = HttpProfile(protocol="http", endpoint=f"127.0.0.1:{self.port}", reqTimeout=20)
        return kind(Credential(secret_id, secret_key, token), region, ClientProfile(httpProfile=http, language="en-US"))

    def call(self, client: Any, action: str, **parameters: Any) -> dict[str, Any]:
        """An action through the SDK's transport with raw parameters; the Response object, errors raised by the SDK."""
        answer: dict[str, Any] = client.call_json(action, parameters)["Response"]
        return answer

    def instance(self, instance_id: str = WEB) -> dict[str, Any]:
        """One instance as DescribeInstances shows it."""
        found = self.call(self.cvm, "DescribeInstances", InstanceIds=[instance_id])["InstanceSet"]
        assert len(found) == 1
        answer: dict[str, Any] = found[0]
        return answer

    def refused(self, client: Any, action: str, **parameters: Any) -> str:
        """The code of the error that an action answers."""
        with pytest.raises(TencentCloudSDKException) as caught:
            self.call(client, action, **parameters)
        assert caught.value.get_request_id()
        code: str = caught.value.get_code()
        return code

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll until the condition gives something true."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.02)
        raise AssertionError(f"{what} did not happen in {DEADLINE} s")

    def settled(self, state: str, instance_id: str = WEB, operation_state: str = "SUCCESS") -> dict[str, Any]:
        """The instance once it is in a state and no operation runs."""

        def look() -> dict[str, Any] | None:
            shown = self.instance(instance_id)
            reached = (shown["InstanceState"], shown["LatestOperationState"]) == (state, operation_state)
            return shown if reached else None

        found: dict[str, Any] = self.until(look, f"{instance_id} {state}/{operation_state}")
        return found

    def log_entries(self) -> list[dict[str, Any]]:
        """The request log."""
        return [json.loads(line) for line in self.log_path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudUnderTest]:
    """A cloud with the demo instances running and short transitions."""
    monkeypatch.setenv("NO_PROXY", "*")
    running = CloudUnderTest(tmp_path, demo_store(tmp_path / "cloud.json"), time.time, 0.05)
    try:
        yield running
    finally:
        running.hypervisor.gate.set()
        running.server.close()


@pytest.fixture
def timed_fleet(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudUnderTest]:
    """The same with a clock that stands still."""
    monkeypatch.setenv("NO_PROXY", "*")
    running = CloudUnderTest(tmp_path, demo_store(), clock, 0.0)
    try:
        yield running
    finally:
        running.hypervisor.gate.set()
        running.server.close()
