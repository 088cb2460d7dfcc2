# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cloud's instances as machines of the lab."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import diskbuild
from lab.cloud.hypervisor import HypervisorError, ImageOrder, InstanceSpec, PacketRule
from lab.description import GIB
from lab.errors import LabError
from lab.imagelibrary import ImageLibrary
from lab.loopdisk import copy_sparse
from lab.machines.protocol import Machine, MachineDisk, MachineError, State
from lab.namespaces import in_private_mounts
from lab.network import Network
from lab.site import MachineSite

GATEWAY = "10.97.0.1"


@contextmanager
def reported() -> Iterator[None]:
    """Turn the lab's own errors into what the cloud expects."""
    try:
        yield
    except (MachineError, LabError, OSError) as error:
        raise HypervisorError(str(error)) from error


class LabHypervisor:
    """Implements lab.cloud.hypervisor.Hypervisor with the lab's machines."""

    def __init__(
        self,
        site: MachineSite,
        network: Network,
        disks: Path,
        images: ImageLibrary,
        virtual: Mapping[str, str] | None = None,
    ) -> None:
        """``virtual`` names the instances that are virtual machines, with their firmware."""
        self._virtual = dict(virtual or {})
        self._site = site
        self._network = network
        self._disks = disks
        self._snapshots = disks / "snapshots"
        self._images = images
        self._machines: dict[str, Machine] = {}
        self._fresh: set[str] = set()
        self._lock = threading.Lock()

    def machine(self, instance_id: str) -> Machine:
        """Return an instance's machine."""
        with self._lock:
            try:
                return self._machines[instance_id]
            except KeyError:
                raise HypervisorError(f"there is no machine for {instance_id}") from None

    def machines(self) -> list[Machine]:
        """Return every instance's machine."""
        with self._lock:
            return list(self._machines.values())

    def _file(self, disk_id: str) -> Path:
        return self._disks / f"{disk_id}.img"

    def create_disk(self, disk_id: str, size_gb: int) -> None:
        with reported():
            self._disks.mkdir(mode=0o700, exist_ok=True)
            if not self._file(disk_id).exists():
                diskbuild.create_cloud_disk(self._file(disk_id), size_gb * GIB)
                self._fresh.add(disk_id)

    def delete_disk(self, disk_id: str) -> None:
        with reported():
            self._file(disk_id).unlink(missing_ok=True)

    def _kept(self, snapshot_id: str) -> Path:
        return self._snapshots / f"{snapshot_id}.img"

    def snapshot_disk(self, disk_id: str, snapshot_id: str, progress: Callable[[int], None]) -> None:
        with reported(), ExitStack() as stack:
            self._snapshots.mkdir(mode=0o700, exist_ok=True)
            for machine in self.machines():
                if any(disk.file == self._file(disk_id) for disk in machine.disks):
                    stack.enter_context(machine.still())
            copy_sparse(self._file(disk_id), self._kept(snapshot_id), progress)

    def apply_snapshot(self, snapshot_id: str, disk_id: str) -> None:
        with reported():
            new = self._file(disk_id).with_suffix(".new")
            copy_sparse(self._kept(snapshot_id), new)
            new.replace(self._file(disk_id))

    def delete_snapshot(self, snapshot_id: str) -> None:
        with reported():
            self._kept(snapshot_id).unlink(missing_ok=True)

    def reinstall(self, spec: InstanceSpec) -> None:
        with reported():
            self._install(spec)

    def _install(self, spec: InstanceSpec) -> None:
        """Put the image onto the system disk: an imported one, or the cloud's own."""
        system = spec.disks[0]
        file, size = self._file(system.disk_id), system.size_gb * GIB
        mountpoint = self._disks / f"mnt-{system.disk_id}"
        if self._images.has(spec.image_id):
            if self._virtual.get(spec.instance_id):
                self._images.put(spec.image_id, 0, file, size)
            else:
                in_private_mounts(lambda: self._images.put_root(spec.image_id, file, size, mountpoint))
            return
        if spec.instance_id in self._virtual:
            raise LabError(f"the image {spec.image_id} has no boot loader, and {spec.instance_id} needs one")
        in_private_mounts(lambda: diskbuild.build_stock(file, size, self._site.base_root, mountpoint, spec.password))

    def create(self, spec: InstanceSpec) -> None:
        with reported():
            system = spec.disks[0].disk_id
            if spec.image_id and system in self._fresh:
                self._install(spec)
            self._fresh.difference_update(disk.disk_id for disk in spec.disks)
            addresses = [*spec.private_addresses, *spec.public_addresses]
            firmware = self._virtual.get(spec.instance_id, "")
            self._network.connect(spec.instance_id, addresses, GATEWAY, guarded=True, virtual=bool(firmware))
            disks = [MachineDisk(self._file(disk.disk_id), disk.serial) for disk in spec.disks]
            machine: Machine
            if firmware:
                machine = self._site.virtual_instance(spec.instance_id, disks, firmware)
            else:
                machine = self._site.instance(spec.instance_id, disks)
            with self._lock:
                self._machines[spec.instance_id] = machine

    def start(self, instance_id: str) -> None:
        with reported():
            self.machine(instance_id).start()

    def stop(self, instance_id: str, hard: bool) -> None:
        with reported():
            self.machine(instance_id).stop(hard=hard)

    def reboot(self, instance_id: str) -> None:
        with reported():
            self.machine(instance_id).reboot()

    def rescue(self, instance_id: str, username: str, password: str) -> None:
        with reported():
            self.machine(instance_id).rescue(username, password)

    def destroy(self, instance_id: str) -> None:
        with reported():
            self.machine(instance_id).destroy()
            with self._lock:
                del self._machines[instance_id]

    def attach_disk(self, instance_id: str, disk_id: str, serial: str, size_gb: int) -> None:
        with reported():
            self.machine(instance_id).attach(MachineDisk(self._file(disk_id), serial))

    def detach_disk(self, instance_id: str, disk_id: str) -> None:
        with reported():
            file = self._file(disk_id)
            machine = self.machine(instance_id)
            for disk in machine.disks:
                if disk.file == file:
                    machine.detach(disk.serial)

    def import_image(self, order: ImageOrder) -> tuple[int, ...]:
        with reported():
            return self._images.import_image(order)

    def fill_disk(self, disk_id: str, size_gb: int, image_id: str, number: int) -> None:
        with reported():
            self._images.put(image_id, number, self._file(disk_id), size_gb * GIB)

    def delete_image(self, image_id: str) -> None:
        with reported():
            self._images.delete(image_id)

    def set_bandwidth(self, instance_id: str, mbps_out: int) -> None:
        with reported():
            self._network.set_bandwidth(instance_id, mbps_out)

    def set_policies(self, instance_id: str, ingress: Sequence[PacketRule], egress: Sequence[PacketRule]) -> None:
        with reported():
            self._network.set_policies(instance_id, ingress, egress)

    def is_running(self, instance_id: str) -> bool:
        return self.machine(instance_id).state is not State.OFF
