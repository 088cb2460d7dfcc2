# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lies between a source's disks and its files, and what of its storage is not on its disks at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .findings import Finding
from .source_facts import Mount

# What the agent can leave the free blocks of; everything else it reads and sends in full.
MAPPED_FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "swap")
# An EFI system partition is not worth a word.
SMALL = 1 << 30

NETWORK_FILESYSTEMS = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs",
    "fuse.cosfs", "fuse.ceph", "afs", "9p", "virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "gfs2", "ocfs2", "beegfs",
)  # fmt: skip


class Layer(NamedTuple):
    """What a kind of volume means for the copy; ``{disks}`` in the cause stands for where it was found."""

    code: str
    severity: str
    cause: str
    action: str


# By the type that the facts give the holders of a disk.
LAYERS: Mapping[str, Layer] = {
    "lvm": Layer(
        "LVM_USED",
        "note",
        "Logical volumes lie on {disks}. They travel as they are, and their physical volumes are read in full.",
        "Map every disk of a volume group, or none.",
    ),
    "md": Layer(
        "RAID_USED",
        "warning",
        "A Linux RAID lies on {disks}. Each of its disks is copied as it is, so that the cloud, which keeps copies of"
        " its disks itself, is made to keep them twice.",
        "Map every member, or one half of a mirror: the array then starts degraded, and the other half can be left"
        " out.",
    ),
    "crypt": Layer(
        "ENCRYPTION_USED",
        "warning",
        "Encrypted volumes lie on {disks}. They are read in full, and the target asks for the passphrase at its console"
        " when it starts, unless a key is on the disks. A key that a TPM or the network gave does not travel.",
        "Have the passphrase and the console at hand at the cutover.",
    ),
    "multipath": Layer(
        "MULTIPATH_USED",
        "warning",
        "The disks {disks} are reached over several paths: more than one of them is the same disk.",
        "Map one path of each disk only. On the target there is one path: multipath is not needed there.",
    ),
}


def layer_findings(disks: Sequence[Mapping[str, Any]], mounts: Iterable[Mount]) -> list[Finding]:
    """What the volumes, filesystems and connections of *disks* mean, and the mounts that have no disk here."""
    every = list(mounts)
    return [
        *_layers(disks),
        *_zfs(every),
        *_read_in_full(disks),
        *_swap(disks),
        *_remote_disks(disks),
        *_network(every),
    ]


def _layers(disks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for kind, layer in LAYERS.items():
        found = [disk["path"] for disk in disks if any(holder["type"] == kind for holder in disk["holders"])]
        if found:
            volumes = [
                holder["volume"] or holder["name"]
                for disk in disks
                for holder in disk["holders"]
                if holder["type"] == kind
            ]
            named = {"disks": found, "volumes": sorted(set(volumes))}
            where = ", ".join(found)
            yield Finding(layer.code, layer.severity, where, layer.cause.format(disks=where), layer.action, named)


def _zfs(mounts: Sequence[Mount]) -> Iterator[Finding]:
    points = [mount.mountpoint for mount in mounts if mount.filesystem == "zfs"]
    if points:
        yield Finding(
            "ZFS_USED",
            "warning",
            "ZFS",
            f"ZFS is mounted at {', '.join(points)}. Which disks its pools are made of is not known here; those"
            " that are mapped are read in full, and a pool can only be copied with all of its disks at one instant.",
            "Map every disk of the pool, and export the pool in fleetlift_pre_freeze. Or send it with zfs send.",
            {"mountpoints": points},
        )


def _read_in_full(disks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for disk in disks:
        sizes = {disk["path"]: disk["size"], **{part["path"]: part["size"] for part in disk["partitions"]}}
        known = {entry["device"]: entry for entry in disk["filesystems"] if entry["device"] in sizes}
        full = {
            device: entry["type"]
            for device, entry in known.items()
            if entry["type"] not in MAPPED_FILESYSTEMS or (entry["type"] == "xfs" and not entry["mountpoints"])
        }
        total = sum(sizes[device] for device in full)
        if total >= SMALL:
            listing = ", ".join(f"{device} ({kind})" for device, kind in sorted(full.items()))
            yield Finding(
                "READ_IN_FULL",
                "note",
                disk["path"],
                f"Of {listing} it is not known which blocks are in use: all {total >> 20} MiB are read, and sent as far"
                " as they are not zero.",
                "Nothing. It makes the first pass longer.",
                {"devices": full, "bytes": total},
            )


def _swap(disks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    used = [device for disk in disks for device in disk["swap"]]
    if used:
        yield Finding(
            "SWAP_NOT_COPIED",
            "note",
            ", ".join(used),
            f"What is in the swap space {', '.join(used)} is not copied; the target has it again, empty.",
            "Nothing. A suspended system cannot be resumed on the target.",
            {"devices": used},
        )


def _remote_disks(disks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for disk in disks:
        if disk.get("transport") in ("iscsi", "fc", "nvme-fabrics"):
            yield Finding(
                "REMOTE_DISK",
                "warning",
                disk["path"],
                f"The disk {disk['path']} is reached over {disk['transport']}: it is on a storage system, not in"
                " the server.",
                "If it is mapped, it is copied like any other; on the target remove the initiator's configuration,"
                " which would look for the storage system and hold up the start.",
                {"transport": disk["transport"]},
            )


def network_mounts(mounts: Iterable[Mount]) -> list[dict[str, str]]:
    """The mounts of other servers' filesystems."""
    return [
        {"mountpoint": mount.mountpoint, "source": mount.source, "filesystem": mount.filesystem}
        for mount in mounts
        if mount.filesystem in NETWORK_FILESYSTEMS
    ]


def _network(mounts: Sequence[Mount]) -> Iterator[Finding]:
    for mount in mounts:
        if mount.filesystem in NETWORK_FILESYSTEMS:
            yield Finding(
                "NETWORK_MOUNT",
                "warning",
                mount.mountpoint,
                f"{mount.mountpoint} is mounted from {mount.source} ({mount.filesystem}). It does not travel: the"
                " target mounts it from there again, if it can reach it.",
                "Make it reachable from the target's network, or give its line in /etc/fstab the option nofail before"
                " the cutover: a mount that is waited for can keep the target from starting.",
                {"source": mount.source, "filesystem": mount.filesystem},
            )
