# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Volume groups that the landing's device manager has activated by itself, because a copy on its disks has them.

It does so whenever it sees a physical volume appear or change (lvmautoactivation(7)). Nobody there uses them, and as
long as they are active the disks they are on cannot be had.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from .devices import VIRTIO_SERIAL_BYTES
from .errors import AgentError

PROGRAMS = tuple(Path(base) / "lvm" for base in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"))
_SECONDS = 300


def release(serials: Sequence[str], *, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> list[str]:
    """Deactivate the volume groups on the target's disks with these serials; the names of the groups.

    Only the disks that the device manager calls by these serials are looked at, and only where LVM alone holds them:
    whatever else does is found, and refused, when the disk is opened. A group with an open volume stays active, too.
    Raises AgentError LVM_FAILED.
    """
    physical = [path for serial in serials for path in _held_by_lvm(serial, sys, dev)]
    program = next((path for path in PROGRAMS if path.exists()), None)
    if not physical or program is None:
        return []
    configuration = only(physical)
    rows = lvm(program, configuration, "lvs", "--noheadings", "--separator", "|", "-o", "vg_name,lv_device_open")
    open_in = [
        (group.strip(), state.strip()) for group, _bar, state in (row.partition("|") for row in rows.splitlines())
    ]
    groups = sorted({group for group, _state in open_in} - {group for group, state in open_in if state == "open"})
    for group in groups:
        lvm(program, configuration, "vgchange", "-an", group)
    return groups


def _held_by_lvm(serial: str, sys: Path, dev: Path) -> Iterator[Path]:
    """The nodes of the disk and its partitions whose holders are all LVM's."""
    link = dev / "disk/by-id" / f"virtio-{serial.strip()[:VIRTIO_SERIAL_BYTES]}"
    if not link.exists():
        return
    disk = sys / "block" / link.resolve().name
    for block in (disk, *sorted(child for child in disk.glob("*") if (child / "partition").exists())):
        directory = block / "holders"
        holders = sorted(directory.iterdir()) if directory.is_dir() else []
        if holders and all(_is_lvm(sys / "block" / holder.name) for holder in holders):
            yield dev / block.name


def _is_lvm(block: Path) -> bool:
    """Whether a mapping is a logical volume: its name begins so (libdm's dm_build_dm_uuid)."""
    try:
        return (block / "dm/uuid").read_text(encoding="utf-8").startswith("LVM-")
    except FileNotFoundError:
        return False


def only(physical: Sequence[Path]) -> str:
    """lvm's configuration (lvm.conf(5)) that shows it these physical volumes and nothing else, and asks nobody."""
    accepted = ",".join(f'"a|^{path}$|"' for path in physical)
    scan = ",".join(f'"{each}"' for each in sorted({str(path.parent) for path in physical}))
    return (
        f'devices {{ dir="/dev" scan=[{scan}] filter=[{accepted},"r|.*|"] global_filter=[{accepted},"r|.*|"] '
        'obtain_device_list_from_udev=0 use_devicesfile=0 write_cache_state=0 external_device_info_source="none" } '
        "global { use_lvmetad=0 use_lvmpolld=0 locking_type=1 } "
        "activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
    )


def lvm(program: Path, configuration: str, command: str, *arguments: str) -> str:
    """What a command of lvm2 prints. Raises AgentError LVM_FAILED."""
    done = subprocess.run(
        [str(program), command, "--config", configuration, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
        env={"PATH": ":".join(str(path.parent) for path in PROGRAMS), "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"},
    )
    if done.returncode != 0:
        raise AgentError(
            "LVM_FAILED",
            f"lvm {command} ended with status {done.returncode}",
            "Read what it said in the evidence; the volume groups of the copy may be incomplete: copy all their disks",
            {"output": done.stderr[-2000:]},
            subject="lvm",
        )
    return done.stdout
