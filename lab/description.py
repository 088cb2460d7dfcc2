# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a lab is made of, read from a YAML file. Every mistake is named with its file and key."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lab.errors import LabError

ONPREM = ipaddress.IPv4Network("10.96.0.0/24")
VPC = ipaddress.IPv4Network("10.97.0.0/24")
PUBLIC = ipaddress.IPv4Network("203.0.113.0/24")
FILESYSTEMS = ("ext4", "xfs", "btrfs")
WORKLOADS = ("none", "web", "database", "files")
TABLES = ("mbr", "gpt")
INITRAMFS = ("most", "dep")
FIRMWARE = ("bios", "uefi")
BUSES = ("ide", "ahci", "virtio")
NICS = ("e1000", "e1000e", "virtio")
GENERATORS = ("initramfs-tools", "dracut")
RELEASES = ("bookworm", "bullseye", "trixie")
KINDS = ("qemu", "uml")
GIB = 1024**3
# One namespace name holds the lab's and the machine's name; veth and cgroup names are made from it.
NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
MACHINE = re.compile(r"[a-z][a-z0-9-]{0,30}")

Item = TypeVar("Item")


class Reader:
    """One mapping of the file, with the place it came from, for errors that name the key."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, Mapping):
            raise LabError(f"{where}: expected a mapping, found {value!r}", "Correct the lab description")
        self.where = where
        self._values: dict[str, Any] = {str(key): item for key, item in value.items()}
        self._read: set[str] = set()

    def fail(self, key: str, problem: str) -> LabError:
        """Return an error about ``key``."""
        return LabError(f"{self.where}: {key}: {problem}", "Correct the lab description")

    def _get(self, key: str, kind: type[Item], default: Item | None) -> Item:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(key, f"expected {kind.__name__}, found {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        return self._get(key, str, default)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a number that is not negative."""
        value = self._get(key, int, default)
        if value < 0:
            raise self.fail(key, f"must not be negative, found {value}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """Return one of ``choices``."""
        value = self.text(key, default)
        if value not in choices:
            raise self.fail(key, f"expected one of {', '.join(choices)}, found {value!r}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        """Return a string that matches ``pattern`` from end to end."""
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise self.fail(key, f"{value!r} does not match {pattern.pattern}")
        return value

    def address(self, key: str, network: ipaddress.IPv4Network) -> str:
        """Return an address that a machine may have in ``network``; its first one is the gateway's."""
        value = self.text(key)
        try:
            address = ipaddress.IPv4Address(value)
        except ValueError as error:
            raise self.fail(key, f"{value!r} is not an IPv4 address") from error
        if address not in network or address in (network[0], network[1], network[-1]):
            raise self.fail(key, f"{value} is not between {network[2]} and {network[-2]}")
        return value

    def items(self, key: str, build: Callable[[Reader], Item]) -> tuple[Item, ...]:
        """Return a list whose elements ``build`` reads."""
        values = self._get(key, list, [])
        return tuple(build(Reader(f"{self.where}: {key}[{index}]", value)) for index, value in enumerate(values))

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self._get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise self.fail(key, f"expected a list of strings, found {values!r}")
        return tuple(values)

    def mapping(self, key: str) -> Reader:
        """Return a mapping inside this one."""
        self._read.add(key)
        return Reader(f"{self.where}: {key}", self._values.get(key))

    def optional(self, key: str, build: Callable[[Reader], Item]) -> Item | None:
        """Return what ``build`` reads from the mapping inside this one, or None when there is none."""
        return build(self.mapping(key)) if key in self._values else None

    def flag(self, key: str) -> bool:
        """Return a truth value, false when it is not given."""
        return self._get(key, bool, False)

    def done(self) -> None:
        """Refuse keys that nothing has read: they are misspelt."""
        unknown = sorted(set(self._values) - self._read)
        if unknown:
            raise LabError(
                f"{self.where}: unknown key {unknown[0]!r}", f"Known keys here: {', '.join(sorted(self._read))}"
            )


@dataclass(frozen=True)
class SourceDisk:
    """A disk of a source server; ``size`` in bytes."""

    device: str
    serial: str
    size: int
    filesystem: str
    mount: str

    @classmethod
    def from_dict(cls, reader: Reader) -> SourceDisk:
        disk = cls(
            device=reader.matching("device", re.compile("[sv]d[a-z]")),
            serial=reader.matching("serial", re.compile("[A-Za-z0-9_-]{1,20}")),
            size=reader.integer("size_mib") * 1024 * 1024,
            filesystem=reader.choice("filesystem", FILESYSTEMS),
            mount=reader.matching("mount", re.compile("/[A-Za-z0-9_./-]*")),
        )
        if disk.size < 512 * 1024 * 1024:
            raise reader.fail("size_mib", "a disk needs at least 512 MiB")
        reader.done()
        return disk


@dataclass(frozen=True)
class Virtual:
    """A source that is a virtual machine: its hardware, and how its first disk is laid out.

    ``initramfs`` is ``most`` (drivers for most hardware) or ``dep`` (for this hardware only), made by ``generator``;
    ``release`` is Debian's. ``kind`` is what runs its kernel: ``qemu``, or ``uml``, which has no firmware.
    """

    firmware: str
    bus: str
    nic: str
    table: str
    lvm: bool
    separate_boot: bool
    initramfs: str
    generator: str = GENERATORS[0]
    release: str = RELEASES[0]
    kind: str = KINDS[0]

    @property
    def disk_prefix(self) -> str:
        """What its disks are called: the paravirtual ones have a name of their own."""
        return "vd" if self.kind == "uml" or self.bus == "virtio" else "sd"

    @classmethod
    def from_dict(cls, reader: Reader) -> Virtual:
        virtual = cls(
            firmware=reader.choice("firmware", FIRMWARE, "bios"),
            bus=reader.choice("bus", BUSES, "ide"),
            nic=reader.choice("nic", NICS, "e1000"),
            table=reader.choice("table", TABLES, "mbr"),
            lvm=reader.flag("lvm"),
            separate_boot=reader.flag("separate_boot"),
            initramfs=reader.choice("initramfs", INITRAMFS, "most"),
            generator=reader.choice("generator", GENERATORS, GENERATORS[0]),
            release=reader.choice("release", RELEASES, RELEASES[0]),
            kind=reader.choice("kind", KINDS, KINDS[0]),
        )
        if virtual.firmware == "uefi" and virtual.table == "mbr":
            raise reader.fail("table", "a source that boots by UEFI has a gpt")
        if virtual.kind == "uml" and virtual.firmware != "bios":
            raise reader.fail("kind", "User-mode Linux has no firmware: leave firmware out")
        if virtual.lvm and not virtual.separate_boot:
            raise reader.fail("lvm", "a source with LVM needs separate_boot: true")
        reader.done()
        return virtual


@dataclass(frozen=True)
class Source:
    """A running server to be moved; with ``virtual`` it is a virtual machine, without it is made of namespaces.

    A ``light`` one has no /usr on its disk but mounts a shared one, so that a hundred fit on one machine.
    """

    name: str
    address: str
    workload: str
    disks: tuple[SourceDisk, ...]
    virtual: Virtual | None
    light: bool = False

    @classmethod
    def from_dict(cls, reader: Reader) -> Source:
        source = cls(
            name=reader.matching("name", MACHINE),
            address=reader.address("address", ONPREM),
            workload=reader.choice("workload", WORKLOADS, "none"),
            disks=reader.items("disks", SourceDisk.from_dict),
            virtual=reader.optional("virtual", Virtual.from_dict),
            light=reader.flag("light"),
        )
        if source.light and (source.virtual or source.workload not in ("none", "web")):
            raise reader.fail("light", "a light source is not virtual, and its workload is none or web")
        mounts = [disk.mount for disk in source.disks]
        if not source.disks or mounts[0] != "/":
            raise reader.fail("disks", "the first disk must be mounted on /")
        if len(set(mounts)) != len(mounts):
            raise reader.fail("disks", "two disks have one mount point")
        prefix = source.virtual.disk_prefix if source.virtual else "sd"
        if [disk.device for disk in source.disks] != [f"{prefix}{'abcdefgh'[i]}" for i in range(len(source.disks))]:
            raise reader.fail("disks", f"devices must be {prefix}a, {prefix}b, … in order")
        reader.done()
        return source


@dataclass(frozen=True)
class CloudDisk:
    """A cloud disk; ``size_gb`` as the cloud counts."""

    disk_id: str
    size_gb: int

    @classmethod
    def from_dict(cls, reader: Reader) -> CloudDisk:
        disk = cls(
            disk_id=reader.matching("id", re.compile("disk-[a-z0-9]{1,15}")),
            size_gb=reader.integer("size_gb"),
        )
        if not 1 <= disk.size_gb <= 32000:
            raise reader.fail("size_gb", "expected 1 to 32000")
        reader.done()
        return disk


@dataclass(frozen=True)
class Instance:
    """A target instance; ``bandwidth`` in Mbit/s (InternetMaxBandwidthOut), ``image`` is what its system disk holds.

    ``firmware`` makes it a virtual machine: ``bios`` and ``uefi`` by QEMU, ``uml`` is User-mode Linux, which has none.
    Without it is made of namespaces.
    """

    instance_id: str
    name: str
    private_address: str
    public_address: str
    bandwidth: int
    image: str
    state: str
    system_disk: CloudDisk
    data_disks: tuple[CloudDisk, ...]
    security_groups: tuple[str, ...]
    firmware: str

    @classmethod
    def from_dict(cls, reader: Reader) -> Instance:
        instance = cls(
            instance_id=reader.matching("id", re.compile("ins-[a-z0-9]{1,12}")),
            name=reader.text("name"),
            private_address=reader.address("private_address", VPC),
            public_address=reader.address("public_address", PUBLIC),
            bandwidth=reader.integer("bandwidth", 100),
            image=reader.choice("image", ("stock", "none"), "stock"),
            state=reader.choice("state", ("RUNNING", "STOPPED"), "RUNNING"),
            system_disk=CloudDisk.from_dict(reader.mapping("system_disk")),
            data_disks=reader.items("data_disks", CloudDisk.from_dict),
            security_groups=reader.strings("security_groups"),
            firmware=reader.choice("firmware", ("", *FIRMWARE, "uml"), ""),
        )
        if instance.firmware and instance.image != "none":
            raise reader.fail("image", "a virtual machine has no stock image: use none")
        if instance.image == "none" and instance.state == "RUNNING":
            raise reader.fail("state", "an instance without an image cannot run: use STOPPED")
        reader.done()
        return instance

    @property
    def disks(self) -> tuple[CloudDisk, ...]:
        """The system disk and the data disks."""
        return (self.system_disk, *self.data_disks)


@dataclass(frozen=True)
class Rule:
    """One ingress rule of a security group, in the cloud's own words."""

    protocol: str
    port: str
    cidr: str
    action: str

    @classmethod
    def from_dict(cls, reader: Reader) -> Rule:
        rule = cls(
            protocol=reader.choice("protocol", ("ALL", "TCP", "UDP", "ICMP"), "TCP"),
            port=reader.matching("port", re.compile(r"ALL|all|\d+(-\d+)?(,\d+(-\d+)?)*")),
            cidr=reader.text("cidr", "0.0.0.0/0"),
            action=reader.choice("action", ("ACCEPT", "DROP"), "ACCEPT"),
        )
        try:
            ipaddress.IPv4Network(rule.cidr)
        except ValueError as error:
            raise reader.fail("cidr", f"{rule.cidr!r} is not an IPv4 network: {error}") from error
        reader.done()
        return rule


@dataclass(frozen=True)
class SecurityGroup:
    """A security group and its ingress rules from top to bottom."""

    group_id: str
    ingress: tuple[Rule, ...]

    @classmethod
    def from_dict(cls, reader: Reader) -> SecurityGroup:
        group = cls(
            group_id=reader.matching("id", re.compile("sg-[a-z0-9]{1,12}")),
            ingress=reader.items("ingress", Rule.from_dict),
        )
        reader.done()
        return group


@dataclass(frozen=True)
class Description:
    """A whole lab. ``site`` is which of the vendor's two sites the cloud belongs to: their API models differ."""

    region: str
    zone: str
    site: str
    sources: tuple[Source, ...]
    security_groups: tuple[SecurityGroup, ...]
    instances: tuple[Instance, ...]

    @classmethod
    def from_dict(cls, where: str, value: object) -> Description:
        reader = Reader(where, value)
        description = cls(
            region=reader.text("region", "ap-guangzhou"),
            zone=reader.text("zone", "ap-guangzhou-3"),
            site=reader.choice("site", ("china", "international"), "china"),
            sources=reader.items("sources", Source.from_dict),
            security_groups=reader.items("security_groups", SecurityGroup.from_dict),
            instances=reader.items("instances", Instance.from_dict),
        )
        reader.done()
        description._check(reader)
        return description

    @property
    def needs_uml(self) -> bool:
        """Whether any machine is User-mode Linux."""
        return any(source.virtual and source.virtual.kind == "uml" for source in self.sources) or any(
            instance.firmware == "uml" for instance in self.instances
        )

    def _check(self, reader: Reader) -> None:
        unique = {
            "name or id": [s.name for s in self.sources] + [i.instance_id for i in self.instances],
            "address": [s.address for s in self.sources]
            + [a for i in self.instances for a in (i.private_address, i.public_address)],
            "disk id": [d.disk_id for i in self.instances for d in i.disks],
            "disk serial": [d.serial for s in self.sources for d in s.disks],
            "security group": [g.group_id for g in self.security_groups],
        }
        for what, values in unique.items():
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise LabError(f"{reader.where}: the {what} {twice[0]!r} is used twice", "Give each its own")
        groups = {group.group_id for group in self.security_groups}
        for instance in self.instances:
            for group in instance.security_groups:
                if group not in groups:
                    raise LabError(
                        f"{reader.where}: instances: {instance.instance_id}: there is no security group {group!r}",
                        "Add it to security_groups",
                    )


def load(path: Path) -> Description:
    """Read a lab description."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabError(
            f"cannot read the lab description {path}: {error.strerror}", "Name a file that exists"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LabError(f"{path} is not YAML: {error}", "Correct the lab description") from error
    return Description.from_dict(str(path), value)
