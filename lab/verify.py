# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Is the target the source? Compares the disks of a source that is switched off with those of an instance.

A target that is off is compared path by path. One that runs has booted the copy and goes on living: what
a running system changes by itself is then left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import loopdisk
from lab.errors import LabError
from lab.loopdisk import mounted
from lab.machines.init import LIGHT
from lab.treedigest import Entry, compare, read_tree, tree_digest
from lab.workloads import database

# What a server that has been booted from the copy changes by itself.
LIVING = (
    "dev",
    "etc/mtab",
    "proc",
    "root/.bash_history",
    "run",
    "sys",
    "tmp",
    "var/cache",
    "var/lib/fleetlift-writer",
    "var/lib/nginx",
    "var/lib/postgresql",
    "var/log",
    "var/spool",
    "var/tmp",
)
READ_ONLY = {"ext4": ("ro", "noload"), "xfs": ("ro", "norecovery"), "btrfs": ("ro",)}
SHOWN = 20


@dataclass(frozen=True)
class Result:
    """What one comparison found: of what, whether it is the same, how much was compared, and what differs."""

    subject: str
    same: bool
    compared: str
    differences: tuple[str, ...]
    source_digest: str = ""
    target_digest: str = ""


@contextmanager
def at_rest(file: Path, mountpoint: Path) -> Iterator[Path]:
    """Show the filesystem of a switched-off machine's disk without changing a byte of it."""
    filesystem = loopdisk.probe(str(file)).filesystem
    if filesystem not in READ_ONLY:
        raise LabError(f"{file.name} holds no filesystem that can be compared ({filesystem or 'nothing'})")
    with mounted(file, mountpoint, options=READ_ONLY[filesystem]) as root:
        yield root
    mountpoint.rmdir()


def compare_trees(mount: str, source: Path, target: Path, exclude: tuple[str, ...]) -> Result:
    """Compare two mounted trees."""
    left: list[Entry] = list(read_tree(source, exclude))
    right: list[Entry] = list(read_tree(target, exclude))
    differences = [str(difference) for difference in compare(left, right)]
    ours, theirs = tree_digest(left), tree_digest(right)
    return Result(mount, ours == theirs, f"{len(left)} paths", tuple(differences[:SHOWN]), ours, theirs)


def verify(
    status: dict[str, Any], source_name: str, target_name: str, scratch: Path, query: Callable[[str, str], str]
) -> list[Result]:
    """Compare every disk of a source with the disk in the same place of an instance.

    ``query`` runs an SQL query on a machine, named by its address, and returns what it answers.
    """
    machines = {row["name"]: row for row in status["machines"]} | {row["title"]: row for row in status["machines"]}
    for name in (source_name, target_name):
        if name not in machines:
            raise LabError(f"the lab has no machine {name!r}", "See: python -m lab status")
    source, target = machines[source_name], machines[target_name]
    if source["power"] != "off":
        raise LabError(
            f"{source_name} is still running, and changes while it is read",
            f"Switch it off first: python -m lab machine stop {source_name}",
        )
    if target["power"] == "rescue":
        raise LabError(f"{target_name} is in its rescue system", "Let it leave rescue mode first")
    if len(target["disks"]) < len(source["disks"]):
        raise LabError(f"{target_name} has fewer disks than {source_name}", "Compare the instance it was moved to")
    with at_rest(Path(source["disks"][0]["file"]), scratch / "source-0") as root:
        mounts = mount_points(root, len(source["disks"]))
        committed = database.committed(root)
    results = [
        _verify_disk(source["disks"][number], target, number, mounts, scratch)
        for number, mount in enumerate(mounts)
        if target["root"] is None or mount.lstrip("/") not in LIVING
    ]
    if committed and target["root"] is not None:
        results.append(verify_rows(committed, lambda sql: query(target["addresses"][-1], sql)))
    return results


def verify_rows(committed: int, query: Callable[[str], str]) -> Result:
    """Compare what the source's client saw committed with what the target's database holds."""
    found = int(query(database.COUNT_ROWS.format(last=committed)) or 0)
    missing = () if found == committed else (f"{committed - found} committed rows are missing",)
    return Result("database", not missing, f"{committed} committed rows", missing)


def mount_points(root: Path, disks: int) -> list[str]:
    """Return where the disks are mounted, by the fstab of the first: the lab lists them in the disks' order."""
    lines = [line.split() for line in (root / "etc/fstab").read_text(encoding="utf-8").splitlines()]
    mounts = [fields[1] for fields in lines if len(fields) > 1 and not fields[0].startswith("#")]
    if len(mounts) < disks:
        raise LabError(f"the source's fstab mounts {len(mounts)} of its {disks} disks", "Mount them all")
    return mounts[:disks]


def _verify_disk(disk: dict[str, Any], target: dict[str, Any], number: int, mounts: list[str], scratch: Path) -> Result:
    mount = mounts[number]
    with at_rest(Path(disk["file"]), scratch / f"source-{number}") as source:
        if target["root"] is None:
            with at_rest(Path(target["disks"][number]["file"]), scratch / f"target-{number}") as there:
                return compare_trees(mount, source, there, ())
        top = mount.lstrip("/")
        # Where another disk is mounted on the target, the source at rest has its empty mount point.
        others = [other.lstrip("/") for other in mounts if other != mount]
        if (source / LIGHT).exists():
            # Programs that all such machines share are mounted there.
            others.append("usr")
        below = [path for path in (*LIVING, *others) if not top or path == top or path.startswith(f"{top}/")]
        exclude = tuple(path.removeprefix(top).lstrip("/") for path in below)
        return compare_trees(mount, source, Path(target["root"]) / top, exclude)
