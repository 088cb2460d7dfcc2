# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether one source can go to its target, disk by disk, decided from facts alone.

The facts are those of the module ``preflight``, the target is one of the module ``target_info``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .acceptance import accept
from .cloud.target import CHANGING_STATES, Disk, Target, standing_refusals, target_from_record
from .findings import Finding, Refusal, by_severity, finding_from
from .own_addresses import pointing_at, seen_as
from .path_findings import rate_findings, reach_findings
from .security_groups import DROP, UNKNOWN, decide

GIB = 1 << 30
# Logical sectors of a CVM's disks: virtio-blk without another blk_size (virtio 1.2, section 5.2.4).
TARGET_SECTOR_SIZE = 512
# What the vendor's own tool needs open (tencentcloud.com/document/product/213/44340); this collection needs one port.
VENDOR_PORTS = (80, 443)
# States and operations that this collection itself leaves behind when a run is interrupted: the landing continues them.
OWN_STATES = ("ENTER_RESCUE_MODE", "EXIT_RESCUE_MODE")
OWN_OPERATIONS = ("EnterRescueMode", "ExitRescueMode", "StartInstances")
ARCHITECTURES = {"x86_64": "x86", "amd64": "x86", "i386": "x86", "i686": "x86", "aarch64": "arm", "arm64": "arm"}


@dataclass(frozen=True)
class SourceDisk:
    """A disk of the source. ``size`` is in bytes; ``mounts`` are the mount points of what is on it."""

    path: str
    size: int
    name: str = ""
    serial: str | None = None
    system: bool = False
    mounted: bool = False
    mounts: tuple[str, ...] = ()
    sector_size: int | None = None

    def answers_to(self, name: str) -> bool:
        return name in (self.path, self.name, self.serial)

    def __str__(self) -> str:
        return f"{self.path} ({self.serial})" if self.serial else self.path


@dataclass(frozen=True)
class Pair:
    """A source's disk and the target's disk that becomes it."""

    id: str
    source: SourceDisk
    target: Disk

    def record(self) -> dict[str, Any]:
        """The form that the module ``agent`` takes as one of its disks."""
        return {
            "id": self.id,
            "device": self.source.path,
            "source_serial": self.source.serial,
            "size": self.source.size,
            "target_serial": self.target.disk_id,
            "target_size": self.target.size_bytes,
        }


@dataclass(frozen=True)
class Assessment:
    """``findings`` are the plan's own and those that were handed in, worst first."""

    pairs: tuple[Pair, ...]
    findings: tuple[Finding, ...]
    # The paths of the source's disks that are not paired, when it was accepted that such disks are in use.
    left_behind: tuple[str, ...] = ()

    @property
    def blockers(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.blocks]


def source_disks(facts: Mapping[str, Any]) -> list[SourceDisk]:
    """The disks in the facts of the module ``preflight``. Raises ``KeyError`` for a disk without path or size."""
    disks = []
    for disk in facts.get("disks") or ():
        filesystems = disk.get("filesystems") or ()
        mounts = tuple(
            str(point)
            for filesystem in filesystems
            for point in _as_list(filesystem.get("mountpoints") or filesystem.get("mountpoint"))
        )
        mounted = disk.get("mounted")
        if isinstance(mounted, (list, tuple)):
            mounts = tuple(dict.fromkeys((*mounts, *map(str, mounted))))
        path = str(disk["path"])
        disks.append(
            SourceDisk(
                path=path,
                size=int(disk["size"]),
                name=str(disk.get("name") or path.rpartition("/")[2]),
                serial=str(disk["serial"]) if disk.get("serial") else None,
                system=bool(disk.get("system", "/" in mounts)),
                mounted=bool(mounted) or bool(mounts),
                mounts=mounts,
                sector_size=disk.get("logical_block_size"),
            )
        )
    return disks


def mapped_sizes(source: str, facts: Mapping[str, Any], mapping: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """The bytes of each disk of *source* by the place on the target that *mapping* gives it. Raises ``Refusal``."""
    disks, findings = source_disks(facts), list(_twice(source, [str(each["target"]) for each in mapping], "the place"))
    sizes = {}
    for entry in mapping:
        disk = _source_disk(source, disks, str(entry["source"]), findings)
        if disk:
            sizes[str(entry["target"])] = disk.size
    for finding in findings:
        raise Refusal(finding)
    return sizes


def assessment_of(params: Mapping[str, Any]) -> Assessment:
    """The assessment for the options of the module ``assess``.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for a record without its shape.
    """
    source_findings = [finding_from(record) for record in params["source_findings"]]
    source_address = params["source_address"] or seen_as(
        params["source_facts"].get("reach") or (), params["source_addresses"]
    )
    targets_of_all = {str(name): str(target) for name, target in params["targets_of_all"].items()}
    target = target_from_record(params["target"]) if params["target"] else None
    unknown = _not_known(params, target)
    if unknown or target is None:
        known = (
            target_findings(
                params["source"],
                target,
                targets_of_all,
                params["port"],
                source_address,
                params["ssh_port"],
                params["controller_address"],
            )
            if target
            else []
        )
        return Assessment((), tuple(by_severity(accept([*unknown, *known, *source_findings], params["accept"]))))
    return assess_source(
        source=params["source"],
        facts=params["source_facts"],
        target=target,
        mapping=params["disks"],
        targets_of_all=targets_of_all,
        port=params["port"],
        ssh_port=params["ssh_port"],
        source_address=source_address,
        controller_address=params["controller_address"],
        target_host_keys=params["target_host_keys"],
        source_findings=source_findings,
        landed_before=params["landed_before"],
        bandwidth_limit=params["bandwidth_limit"],
        accepted=params["accept"],
    )


def _not_known(params: Mapping[str, Any], target: Target | None) -> list[Finding]:
    """Why source or target could not be looked at, so that they cannot be brought together."""
    findings = []
    source, error = params["source"], _said(params["source_error"])
    if params["source_unreachable"]:
        findings.append(
            _blocker(
                "SOURCE_UNREACHABLE",
                source,
                f"{source} could not be reached: {error or 'no reason was given'}.",
                "Check that it runs, its address in the inventory (ansible_host), and that this user's SSH key is let"
                " in: ssh to it by hand says more.",
            )
        )
    elif error:
        findings.append(
            _blocker(
                "SOURCE_NOT_READ",
                source,
                f"{source} was reached, but could not be looked at: {error}.",
                "Make `ansible -m fleetlift.cvm.preflight` work on it. It needs Python 3.8 or newer there"
                " (ansible_python_interpreter) and root.",
            )
        )
    if target is None:
        known = params["target_error"]
        findings.append(finding_from(known) if known.get("code") else _target_not_found(source, params["target_id"]))
    return findings


def _said(error: str | None) -> str:
    """What Ansible said, without its own words around it."""
    return (error or "").strip().removeprefix("Task failed: ").rstrip(". ")


def _target_not_found(source: str, instance_id: str | None) -> Finding:
    return _blocker(
        "TARGET_NOT_FOUND",
        source,
        f"The target {instance_id or ''} of {source} was not found.".replace("  ", " "),
        "Check the instance id and region.",
        instance_id=instance_id,
    )


def assess_source(
    *,
    source: str,
    facts: Mapping[str, Any],
    target: Target,
    mapping: Sequence[Mapping[str, str]],
    targets_of_all: Mapping[str, str],
    port: int = 443,
    ssh_port: int = 22,
    source_address: str | None = None,
    controller_address: str | None = None,
    target_host_keys: Sequence[str] = (),
    source_findings: Iterable[Finding] = (),
    landed_before: bool = False,
    bandwidth_limit: int = 0,
    accepted: Mapping[str, object] | None = None,
) -> Assessment:
    """Pairs the disks of *source* with those of *target* as *mapping* says, and finds what would go wrong.

    *mapping* has entries of ``source`` (path, name or serial) and ``target`` (``system``, ``data1``.. or a disk id);
    *targets_of_all* is the instance of every source of the plan. *source_address* and *controller_address* are what
    the target would see as the peer of *port* and *ssh_port*, where that is known. *target_host_keys* are the public
    SSH host keys that the running target shows. *landed_before* says that an earlier run of this migration put the
    target into rescue mode. *bandwidth_limit* is in bytes per second, 0 without. *accepted* is a reason by code.
    """
    disks = source_disks(facts)
    resolved, findings = _resolve(source, disks, target, mapping)
    findings += target_findings(source, target, targets_of_all, port, source_address, ssh_port, controller_address)
    findings += _same_server(source, facts.get("ssh_host_keys") or (), target, target_host_keys)
    findings += _architecture(source, str(facts.get("architecture") or ""), target)
    findings += _platform(source, facts, target)
    findings += _left_behind(target, landed_before)
    findings += _unmapped(source, disks, [disk for disk, _unused in resolved])
    for disk, target_disk in resolved:
        findings += _pair_findings(source, disk, target_disk)
    findings += reach_findings(target, facts, port, ssh_port)
    findings += rate_findings(source, facts, [disk.path for disk, _unused in resolved], bandwidth_limit)
    findings += _address_findings(target, facts.get("addresses") or {})
    # By the target's order, so that a reordered inventory names the same pairs the same way.
    in_order = sorted(resolved, key=lambda pair: pair[1].order)
    pairs = tuple(Pair(f"d{number}", disk, target_disk) for number, (disk, target_disk) in enumerate(in_order))
    paired = [disk for disk, _unused in resolved]
    return Assessment(
        pairs,
        tuple(by_severity(accept([*findings, *source_findings], accepted or {}))),
        # Those that are not mounted now too: a disk for backups comes and goes.
        tuple(sorted(disk.path for disk in disks if disk not in paired and "DISK_UNMAPPED" in (accepted or {}))),
    )


def target_findings(
    source: str,
    target: Target,
    targets_of_all: Mapping[str, str],
    port: int,
    source_address: str | None,
    ssh_port: int,
    controller_address: str | None,
) -> list[Finding]:
    """What is wrong with *target* whatever the source is made of; options as in :func:`assess_source`."""
    return [
        *_shared_target(source, target.instance_id, targets_of_all),
        *_target_findings(target),
        *_port_findings(target, port, source_address, ssh_port, controller_address),
    ]


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _blocker(code: str, subject: str, cause: str, action: str, **evidence: Any) -> Finding:
    return Finding(code, "blocker", subject, cause, action, evidence)


def _resolve(
    source: str, disks: Sequence[SourceDisk], target: Target, mapping: Sequence[Mapping[str, str]]
) -> tuple[list[tuple[SourceDisk, Disk]], list[Finding]]:
    """The pairs that *mapping* names, and what is wrong with its names."""
    pairs: list[tuple[SourceDisk, Disk]] = []
    findings: list[Finding] = []
    for entry in mapping:
        disk = _source_disk(source, disks, str(entry.get("source") or ""), findings)
        target_disk = _target_disk(source, target, str(entry.get("target") or ""), findings)
        if disk and target_disk:
            pairs.append((disk, target_disk))
    findings += _twice(source, [str(disk) for disk, _unused in pairs], "the source's disk")
    findings += _twice(source, [target_disk.disk_id for _unused, target_disk in pairs], "the target's disk")
    return pairs, findings


def _source_disk(source: str, disks: Sequence[SourceDisk], name: str, findings: list[Finding]) -> SourceDisk | None:
    found = [disk for disk in disks if disk.answers_to(name)]
    if len(found) == 1:
        return found[0]
    listing = ", ".join(map(str, disks)) or "none"
    if found:
        cause = f"{name} names {len(found)} disks of {source}: {', '.join(disk.path for disk in found)}."
        findings.append(_blocker("DISK_AMBIGUOUS", source, cause, "Name the disk by its path.", disk=name))
    else:
        cause = f"{source} has no disk {name!r}; it has {listing}."
        action = "Correct the entry's source: a path such as /dev/sda, or a serial."
        findings.append(_blocker("DISK_UNKNOWN", source, cause, action, disk=name))
    return None


def _target_disk(source: str, target: Target, name: str, findings: list[Finding]) -> Disk | None:
    for disk in target.disks:
        if name in (disk.disk_id, "system" if disk.usage == "system" else f"data{disk.order}"):
            return disk
    listing = ", ".join(
        f"{'system' if disk.usage == 'system' else f'data{disk.order}'} ({disk.disk_id})" for disk in target.disks
    )
    findings.append(
        _blocker(
            "TARGET_DISK_UNKNOWN",
            source,
            f"The target {target.instance_id} has no disk {name!r}; it has {listing or 'none'}.",
            "Correct the entry's target, or attach a disk to the instance.",
            disk=name,
            instance_id=target.instance_id,
        )
    )
    return None


def _twice(source: str, names: Sequence[str], what: str) -> Iterator[Finding]:
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield _blocker(
                "DISK_MAPPED_TWICE",
                source,
                f"The disk mapping of {source} names {what} {name} {names.count(name)} times.",
                "Map each disk once.",
                disk=name,
            )


def _shared_target(source: str, instance_id: str, targets_of_all: Mapping[str, str]) -> Iterator[Finding]:
    others = sorted(name for name, other in targets_of_all.items() if other == instance_id and name != source)
    if others:
        yield _blocker(
            "TARGET_SHARED",
            source,
            f"The target {instance_id} of {source} is also the target of {', '.join(others)}: one would overwrite the"
            " other.",
            "Give every source a target of its own.",
            instance_id=instance_id,
            sources=[source, *others],
        )


def _target_findings(target: Target) -> Iterator[Finding]:
    yield from standing_refusals(target)
    operation = target.latest_operation
    if target.architecture == "aarch64":
        yield _blocker(
            "TARGET_ARM",
            target.instance_id,
            f"The target {target.instance_id} is an ARM machine ({target.instance_type}), for which the cloud has no"
            " rescue mode.",
            "Choose an x86 instance as the target.",
            instance_type=target.instance_type,
        )
    if target.state == "STOPPED" and target.stop_charging_mode == "STOP_CHARGING":
        yield _blocker(
            "TARGET_STOPPED_NO_CHARGE",
            target.instance_id,
            f"The target {target.instance_id} was stopped without charging, and has no host to land on.",
            "Start it and run again.",
        )
    changing = operation.state == "OPERATING" or target.state in CHANGING_STATES
    if changing and operation.name not in OWN_OPERATIONS and target.state not in OWN_STATES:
        yield _blocker(
            "TARGET_BUSY",
            target.instance_id,
            f"The target {target.instance_id} is {target.state} and its operation {operation.name} is"
            f" {operation.state}.",
            "Let that operation end and run again.",
            state=target.state,
            latest_operation=operation.name,
        )
    for disk in target.disks:
        if disk.state not in (None, "ATTACHED"):
            yield _blocker(
                "TARGET_DISK_BUSY",
                target.instance_id,
                f"The disk {disk.disk_id} of the target {target.instance_id} is {disk.state}.",
                "Let that operation end, or attach the disk, and run again.",
                disk=disk.disk_id,
                state=disk.state,
            )


def _same_server(source: str, keys: Iterable[str], target: Target, target_keys: Iterable[str]) -> Iterator[Finding]:
    """A target that shows the source's own host key is the source's copy, and may be the server by now."""
    if set(keys) & set(target_keys):
        yield _blocker(
            "TARGET_IS_THE_SOURCE",
            source,
            f"The target {target.instance_id} runs and shows the SSH host key of {source}: it is a copy of it, and may"
            " be the server by now. Going on would overwrite it.",
            "If the migration is done, nothing is left to do. To overwrite the target all the same, run again with"
            " -e fleetlift_again=true.",
        )


def _architecture(source: str, architecture: str, target: Target) -> Iterator[Finding]:
    ours, theirs = ARCHITECTURES.get(architecture), ARCHITECTURES.get(target.architecture)
    if ours and theirs and ours != theirs:
        yield _blocker(
            "ARCHITECTURE_MISMATCH",
            source,
            f"{source} is {architecture}, its target {target.instance_id} is {target.architecture}: what is on the"
            " disks would not run there.",
            "Choose a target of the source's architecture.",
            source=architecture,
            target=target.architecture,
        )


# What OsName of DescribeInstances begins with, by the id of os-release(5).
SYSTEMS = {
    "centos": "centos",
    "ubuntu": "ubuntu",
    "debian": "debian",
    "rhel": "red hat",
    "rocky": "rocky",
    "almalinux": "alma",
    "sles": "suse",
    "opensuse-leap": "opensuse",
    "opensuse": "opensuse",
    "ol": "oracle",
    "fedora": "fedora",
    "tencentos": "tencentos",
    "amzn": "amazon",
}


def _platform(source: str, facts: Mapping[str, Any], target: Target) -> Iterator[Finding]:
    if facts.get("firmware") == "uefi":
        yield Finding(
            "FIRMWARE_UEFI",
            "warning",
            source,
            f"{source} was booted by UEFI. What {target.instance_id} is started with comes from its image"
            f" ({target.image_id or 'not known'}), and the API does not tell.",
            "Nothing, if its image is one for UEFI. For another, the boot adaptation gives the copy a boot loader"
            " for the"
            " firmware that it finds in the landing, which needs room for one on the disk.",
            {"firmware": "uefi", "image": target.image_id},
        )
    distribution = facts.get("distribution") or {}
    system = SYSTEMS.get(str(distribution.get("id") or ""))
    if system and target.os_name and system not in target.os_name.lower():
        yield Finding(
            "TARGET_SYSTEM_DIFFERS",
            "note",
            target.instance_id,
            f"The console goes on to call {target.instance_id} {target.os_name}, though"
            f" {distribution.get('pretty') or distribution.get('id')} will run on it.",
            "Nothing, or make the target from an image of the same distribution: some of the console's offers go by"
            " it.",
            {"os_name": target.os_name, "distribution": distribution.get("id")},
        )


def _left_behind(target: Target, landed_before: bool) -> Iterator[Finding]:
    if target.state == "RESCUE_MODE" and not landed_before:
        yield Finding(
            "TARGET_IN_RESCUE_MODE",
            "warning",
            target.instance_id,
            f"The target {target.instance_id} is in rescue mode, and not by this migration as far as its journal"
            " knows: an"
            " earlier attempt was not ended, or somebody mends it.",
            "Make sure that nobody needs it. Then leave rescue mode in the console, which also gives the next landing a"
            " password that is known here.",
            {"state": target.state, "latest_operation": target.latest_operation.name},
        )


def _unmapped(source: str, disks: Sequence[SourceDisk], mapped: Sequence[SourceDisk]) -> Iterator[Finding]:
    for disk in disks:
        if disk in mapped:
            continue
        if disk.mounted:
            where = f" (mounted at {', '.join(disk.mounts)})" if disk.mounts else ""
            yield _blocker(
                "DISK_UNMAPPED",
                source,
                f"The disk {disk} of {source} holds a mounted filesystem{where} and is mapped to no disk of the target:"
                " its data would be left behind. The vendor's own tool would silently put it on the system disk until"
                " that is full.",
                "Map it to a disk of the target, or unmount it if it is not to be moved.",
                disk=disk.path,
                mounts=list(disk.mounts),
            )
        else:
            yield Finding(
                "DISK_UNMAPPED_UNUSED",
                "note",
                source,
                f"The disk {disk} of {source} is mapped to no disk of the target; nothing on it is mounted.",
                "Map it if it is to be moved.",
                {"disk": disk.path},
            )


def _pair_findings(source: str, disk: SourceDisk, target_disk: Disk) -> Iterator[Finding]:
    if target_disk.size_bytes < disk.size:
        yield _blocker(
            "TARGET_DISK_SMALLER",
            source,
            f"The disk {disk} of {source} has {disk.size} bytes, its target {target_disk.disk_id} only"
            f" {target_disk.size_bytes}.",
            f"Expand {target_disk.disk_id} to at least {-(-disk.size // GIB)} GiB, or map another disk.",
            disk=disk.path,
            size=disk.size,
            target_disk=target_disk.disk_id,
            target_size=target_disk.size_bytes,
        )
    if disk.system != (target_disk.usage == "system"):
        whose = "the system disk" if disk.system else "not the system disk"
        yield _blocker(
            "SYSTEM_DISK_NOT_ON_SYSTEM_DISK",
            source,
            f"The disk {disk} is {whose} of {source}, and is mapped to the target's {target_disk.usage} disk"
            f" {target_disk.disk_id}: an instance starts from its system disk only.",
            "Map the source's system disk to 'system' and the others to data disks.",
            disk=disk.path,
            target_disk=target_disk.disk_id,
        )
    if disk.sector_size and disk.sector_size != TARGET_SECTOR_SIZE:
        yield _blocker(
            "SECTOR_SIZE_MISMATCH",
            source,
            f"The disk {disk} of {source} has logical sectors of {disk.sector_size} bytes, the target's disks of"
            f" {TARGET_SECTOR_SIZE}: a copied partition table would point to the wrong places.",
            "Move the data of this disk file by file, or onto a disk with sectors of 512 bytes first.",
            disk=disk.path,
            sector_size=disk.sector_size,
        )


def _port_findings(
    target: Target, port: int, source_address: str | None, ssh_port: int, controller_address: str | None
) -> Iterator[Finding]:
    yield from _needed_port(target, port, source_address, "the source's agent")
    if ssh_port != port:
        yield from _needed_port(target, ssh_port, controller_address, "the controller's SSH")
    for vendor_port in VENDOR_PORTS:
        decision = decide(target.ingress, protocol="tcp", port=vendor_port, source_address=None)
        if vendor_port not in (port, ssh_port) and decision.action == DROP:
            yield Finding(
                "VENDOR_PORT_CLOSED",
                "note",
                target.instance_id,
                f"The security groups of {target.instance_id} drop TCP {vendor_port}, which the vendor's own tool needs"
                " and this migration does not.",
                "Nothing, unless you also use that tool.",
                {"port": vendor_port, "decision": str(decision)},
            )


def _needed_port(target: Target, port: int, address: str | None, whose: str) -> Iterator[Finding]:
    decision = decide(target.ingress, protocol="tcp", port=port, source_address=address)
    evidence = {
        "port": port,
        "source_address": address,
        "decision": decision.action,
        "rule": decision.rule.record() if decision.rule else None,
        "security_groups": list(target.security_groups),
    }
    origin = f"from {address}" if address else "from an address not known here"
    if not target.security_groups or decision.action == UNKNOWN:
        reason = f"it depends on {decision.rule}" if decision.rule else "the instance lists no security group"
        yield Finding(
            "PORT_UNKNOWN",
            "warning",
            target.instance_id,
            f"Whether {target.instance_id} accepts TCP {port} for {whose} {origin} cannot be told: {reason}.",
            f"Check that the rule allows it, or add one that accepts TCP {port} from that address before it.",
            evidence,
        )
    elif decision.action == DROP:
        yield _blocker(
            "PORT_CLOSED",
            target.instance_id,
            f"The security groups of {target.instance_id} do not accept TCP {port} for {whose} {origin}: {decision}.",
            f"Add a rule that accepts TCP {port} from that address before every rule that drops it.",
            **evidence,
        )


def _address_findings(target: Target, addresses: Mapping[str, Any]) -> Iterator[Finding]:
    if not target.public_addresses and not target.private_addresses:
        yield _blocker(
            "TARGET_NO_ADDRESS",
            target.instance_id,
            f"The target {target.instance_id} has no address.",
            "Give it one.",
        )
        return
    public = ", ".join(target.public_addresses) or "none"
    pointing = pointing_at(addresses)
    named = f" On the source, {len(pointing)} places name its addresses: {'; '.join(pointing[:5])}" if pointing else ""
    yield Finding(
        "PUBLIC_IP_STAYS",
        "warning" if pointing else "note",
        target.instance_id,
        f"The source's public address does not move: the server's will be that of {target.instance_id} ({public})."
        f"{named}{', and so on.' if len(pointing) > 5 else '.' if named else ''}",
        "Lower the TTL of its DNS names now, and change them after the cutover, with all that the evidence lists."
        if pointing
        else "Lower the TTL of its DNS names now, and change them after the cutover.",
        {
            "public_addresses": list(target.public_addresses),
            "source_addresses": list(addresses.get("own") or ()),
            "named_by": pointing,
        },
    )
