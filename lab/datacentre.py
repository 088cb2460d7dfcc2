# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One running lab: its network, its sources, its cloud."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from lab import baseroot, diskbuild, guestimage, network, umlkernel
from lab.bootedsource import BootedSource
from lab.cloud.server import CloudServer
from lab.cloud.store import Disk, Instance, Policy, SecurityGroup, Store
from lab.cloud.store import Site as CloudSite
from lab.command import require_programs, run
from lab.cos.faults import Fault
from lab.cos.server import APPID, CosServer
from lab.description import Description, Source
from lab.errors import LabError
from lab.hypervisor import LabHypervisor
from lab.imagelibrary import ImageLibrary
from lab.ledger import Ledger
from lab.machines import uml
from lab.machines.protocol import Machine, MachineDisk, State
from lab.machines.qemu import PROGRAMS
from lab.machines.virtual import VirtualMachine
from lab.namespaces import in_netns, in_private_mounts
from lab.network import Network
from lab.place import Place
from lab.site import MachineSite

ONPREM_GATEWAY = "10.96.0.1"
SSH_TIMEOUT = 30.0
STOCK_IMAGE = "img-debian12"

log = logging.getLogger(__name__)


class DataCentre:
    """Everything of one lab that runs."""

    def __init__(self, place: Place, description: Description) -> None:
        self._place = place
        self.description = description
        self._ledger = Ledger(place.ledger)
        self.network = Network(place.name, self._ledger)
        self._sources: dict[str, Machine] = {}
        self._images: dict[str, guestimage.GuestImage] = {}
        self._hypervisor: LabHypervisor | None = None
        self._server: CloudServer | None = None
        self._cos: CosServer | None = None

    def start(self, progress: Callable[[str], None]) -> None:
        """Build and start everything; on return every source answers SSH and the API answers."""
        base_root = baseroot.build(self._place.cache, progress)
        firmware = {item.instance_id: item.firmware for item in self.description.instances if item.firmware}
        image, kernel = None, None
        if firmware or any(source.virtual for source in self.description.sources):
            require_programs(PROGRAMS)
            image = guestimage.build(self._place.cache, progress)
            if self.description.needs_uml:
                require_programs(uml.PROGRAMS)
                kernel = umlkernel.build(self._place.cache, image, progress)
        for source in self.description.sources:
            if source.virtual:
                variety = guestimage.Variety(source.virtual.release, source.virtual.generator)
                self._images[source.name] = guestimage.build(self._place.cache, progress, variety)
        self._make_key()
        progress("starting the network")
        self.network.start()
        site = MachineSite(
            directory=self._place.directory / "machines",
            base_root=base_root,
            network=self.network,
            ledger=self._ledger,
            on_power_off=self._powered_off,
            image=image,
            uml=kernel,
        )
        images = ImageLibrary(self._place.directory / "images", self._connect_to_cos)
        self._hypervisor = LabHypervisor(site, self.network, self._place.directory / "disks", images, firmware)
        credentials = make_credentials(self._place, self.description.region)
        self._server = self._make_server(self._hypervisor, credentials)
        self._cos = self._make_cos(credentials)
        sources, instances = self.description.sources, self.description.instances
        progress(f"building {len(sources)} sources and {len(instances)} instances")
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
            work = [pool.submit(self._start_source, source, site, progress) for source in sources]
            work += [pool.submit(self._provision, instance.instance_id) for instance in instances]
            for item in work:
                item.result()
        progress("waiting for the sources to answer SSH")
        in_netns(self.network.controller, lambda: wait_for_ssh([source.address for source in sources]))
        self._server.start()
        self._cos.start()

    def _make_key(self) -> None:
        self._place.key.parent.mkdir(mode=0o700, exist_ok=True)
        if not self._place.key.exists():
            comment = f"fleetlift-lab-{self._place.name}"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(self._place.key)])

    def _start_source(self, source: Source, site: MachineSite, progress: Callable[[str], None]) -> None:
        virtual = source.virtual
        self.network.connect(source.name, [source.address], ONPREM_GATEWAY, guarded=False, virtual=virtual is not None)
        public_key = self._place.key.with_suffix(".pub").read_text(encoding="ascii")
        if virtual is not None:
            booted = BootedSource(
                source,
                virtual,
                image=self._images[source.name],
                cache=self._place.cache,
                work=self._place.directory / "sources" / source.name,
                machine_files=site.directory / source.name,
                controller=self.network.controller,
                gateway=ONPREM_GATEWAY,
            )

            def make(disks: list[MachineDisk], snapshot: str) -> VirtualMachine:
                machine = site.virtual_source(source.name, disks, virtual, snapshot)
                self._sources[source.name] = machine
                return machine

            booted.start(make, public_key, progress)
            return
        work = self._place.directory / "sources" / source.name
        files = in_private_mounts(lambda: diskbuild.build_source(source, work, site.base_root, public_key))
        machine = site.source(source.name, [MachineDisk(item.file, item.disk.serial) for item in files])
        self._sources[source.name] = machine
        machine.start()

    def _provision(self, instance_id: str) -> None:
        assert self._server is not None
        self._server.cloud.provision(instance_id)

    def _make_cos(self, credentials: dict[str, str]) -> CosServer:
        listening = in_netns(self.network.router, lambda: listen(network.COS_ADDRESS, network.COS_PORT))
        return CosServer(
            listening,
            self._place.directory / "cos",
            credentials,
            region=self.description.region,
            request_log=self._place.directory / "cos-requests.jsonl",
        )

    def _connect_to_cos(self) -> socket.socket:
        address = (network.COS_ADDRESS, network.COS_PORT)
        return in_netns(self.network.router, lambda: socket.create_connection(address, timeout=30))

    def _make_server(self, hypervisor: LabHypervisor, credentials: dict[str, str]) -> CloudServer:
        store = Store(self._place.directory / "cloud.json", cloud_site(self.description))
        fill_store(store, self.description)
        listening = in_netns(self.network.router, lambda: listen(network.API_ADDRESS, network.API_PORT))
        return CloudServer(
            listening, store, hypervisor, credentials, request_log=self._place.directory / "requests.jsonl"
        )

    def _powered_off(self, name: str) -> None:
        if self._server is not None and name not in self._sources:
            self._server.cloud.powered_off(name)

    def stop(self) -> None:
        """Cut every machine's power and give everything back."""
        if self._server is not None:
            self._server.close()
        if self._cos is not None:
            self._cos.close()
        for machine in self.machines():
            machine.stop(hard=True)

    def machines(self) -> list[Machine]:
        """Return the sources and the instances."""
        instances = [] if self._hypervisor is None else self._hypervisor.machines()
        return [*self._sources.values(), *instances]

    def source(self, name: str) -> Machine:
        """Return a source's machine."""
        try:
            return self._sources[name]
        except KeyError:
            raise LabError(
                f"there is no source {name!r}", f"Sources: {', '.join(self._sources)}; instances obey the cloud's API"
            ) from None

    def set_instance(self, instance_id: str, fields: dict[str, str]) -> None:
        """Change an instance behind the API's back."""
        assert self._server is not None
        try:
            self._server.cloud.set_instance(instance_id, **fields)
        except KeyError as error:
            raise LabError(f"there is no instance {error.args[0]!r}", "See: status") from error
        except ValueError as error:
            raise LabError(str(error), "Name a field of DescribeInstances, as KEY=VALUE") from error

    def resolve(self, name: str) -> str:
        """Return the machine's own name for what a user calls it."""
        by_name = {instance.name: instance.instance_id for instance in self.description.instances}
        return self.network.port(by_name.get(name, name)).name

    def cos_status(self) -> dict[str, Any]:
        """Return what COS holds, what has passed, and the faults that wait."""
        assert self._cos is not None
        return self._cos.status()

    def cos_fault(self, fault: dict[str, Any] | None) -> None:
        """Have a fault befall the next requests to COS; None takes back those that wait."""
        assert self._cos is not None
        if fault is None:
            self._cos.faults.clear()
            return
        try:
            self._cos.faults.add(Fault(**fault))
        except ValueError as error:
            raise LabError(str(error), "See: cos fault --help") from error

    def notices(self) -> list[dict[str, Any]]:
        """Return what the account's Message Center says."""
        assert self._server is not None
        store = self._server.cloud.store
        with store.reading():
            return [asdict(notice) for notice in store.notices]

    def status(self) -> dict[str, Any]:
        """Return what runs, for people and programs."""
        assert self._server is not None
        store = self._server.cloud.store
        with store.reading():
            clouds = {item.instance_id: (item.state, item.name) for item in store.instances.values()}
        rows = []
        for machine in self.machines():
            port = self.network.port(machine.name)
            cloud_state, title = clouds.get(machine.name, (None, machine.name))
            rows.append(
                {
                    "name": machine.name,
                    "kind": "source" if machine.name in self._sources else "instance",
                    "title": title,
                    "addresses": list(port.addresses),
                    "power": machine.state.value,
                    "state": cloud_state or ("RUNNING" if machine.state is State.RUNNING else "OFF"),
                    "link": "up" if port.up else "down",
                    "namespace": port.namespace,
                    "root": None if machine.root is None else str(machine.root),
                    "disks": [
                        {"serial": disk.serial, "size": disk.size, "file": str(disk.file)} for disk in machine.disks
                    ],
                }
            )
        return {
            "lab": self._place.name,
            "region": self.description.region,
            "endpoint": f"http://{network.API_ADDRESS}:{network.API_PORT}",
            "cos_endpoint": f"http://{network.COS_ADDRESS}:{network.COS_PORT}",
            "appid": APPID,
            "controller": network.CONTROLLER_ADDRESS,
            "machines": rows,
        }


def cloud_site(description: Description) -> CloudSite:
    """Return the cloud's fixed part."""
    return CloudSite(
        region=description.region,
        zones=(description.zone,),
        images={STOCK_IMAGE: "Debian 12 64-bit"},
        international=description.site == "international",
    )


def fill_store(store: Store, description: Description) -> None:
    """Define the groups, disks and instances of ``description``."""
    for group in description.security_groups:
        ingress = [
            Policy(action=rule.action, protocol=rule.protocol, port=rule.port, cidr=rule.cidr) for rule in group.ingress
        ]
        store.add_group(SecurityGroup(group_id=group.group_id, name=group.group_id, ingress=ingress))
    for instance in description.instances:
        for disk in instance.disks:
            store.add_disk(Disk(disk_id=disk.disk_id, size_gb=disk.size_gb, zone=description.zone))
        store.add_instance(
            Instance(
                instance_id=instance.instance_id,
                name=instance.name,
                zone=description.zone,
                instance_type="S5.MEDIUM4",
                image_id=STOCK_IMAGE if instance.image == "stock" else "",
                os_name="Debian 12 64-bit",
                host_name=diskbuild.STOCK_HOSTNAME,
                system_disk_id=instance.system_disk.disk_id,
                data_disk_ids=[disk.disk_id for disk in instance.data_disks],
                private_addresses=[instance.private_address],
                public_addresses=[instance.public_address],
                security_group_ids=list(instance.security_groups),
                bandwidth_out=instance.bandwidth,
                state=instance.state,
            )
        )


def make_credentials(place: Place, region: str) -> dict[str, str]:
    """Make the cloud account's keys, readable by root only."""
    secret_id, secret_key = f"AKID{secrets.token_hex(16)}", secrets.token_urlsafe(24)
    fd = os.open(place.credentials, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as stream:
        json.dump({"secret_id": secret_id, "secret_key": secret_key, "region": region}, stream)
    return {secret_id: secret_key}


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket of the cloud."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    listening.listen(128)
    return listening


def wait_for_ssh(addresses: list[str], timeout: float = SSH_TIMEOUT) -> None:
    """Wait until an SSH server greets at each address."""
    deadline = time.monotonic() + timeout
    for address in addresses:
        while not _greets(address):
            if time.monotonic() > deadline:
                raise LabError(f"{address} does not answer SSH after {timeout:g} s", "See its console: console NAME")
            time.sleep(0.05)


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
