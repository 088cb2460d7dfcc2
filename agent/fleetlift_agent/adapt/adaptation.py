# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole adaptation of a copy: look, stage every change, write them, then run what only the copy's tools can do."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetlift_agent.errors import AgentError

from . import (
    boot_loader,
    chroot,
    cloud_init,
    crypttab,
    fstab,
    grow,
    guest_tools,
    initramfs,
    kernel_command_line,
    lvm,
    mdadm,
    network,
    nic_names,
    selinux,
)
from .copy import Copy, DiskRequest, held, locate, look_at, opened, table_change, untouched, write_table
from .finding import Finding
from .record import Record, describe
from .situation import Options, Situation, invalid, parse_options
from .tree import Tree
from .volumes import CopyDisk

_BASE = Path("/run/fleetlift")


@dataclass(frozen=True)
class Request:
    """What one run is to do. ``check`` changes nothing; ``diff`` adds both texts of every file; ``undo`` goes back."""

    disks: tuple[DiskRequest, ...]
    options: Options = Options()
    check: bool = False
    diff: bool = False
    undo: bool = False


def parse_request(value: Mapping[str, Any]) -> Request:
    """The request in a JSON object. Raises AgentError ADAPT_REQUEST_INVALID."""
    disks = value.get("disks")
    if not isinstance(disks, list) or not disks or not all(isinstance(disk, dict) for disk in disks):
        raise invalid("disks is not a list of disks")
    parsed = tuple(
        DiskRequest(
            id=str(disk.get("id") or f"d{number}"),
            serial=str(disk.get("serial") or disk.get("target_serial") or ""),
            path=str(disk.get("path") or ""),
            size=int(disk.get("size") or 0),
            device=str(disk.get("device") or ""),
            aliases=tuple(str(each) for each in disk.get("aliases") or ()),
            source_serial=str(disk.get("source_serial") or "").strip(),
        )
        for number, disk in enumerate(disks)
    )
    if not all(bool(disk.serial) != bool(disk.path) for disk in parsed):
        raise invalid("each disk needs either a serial or a path")
    return Request(
        parsed,
        parse_options(value.get("options") or {}),
        bool(value.get("check")),
        bool(value.get("diff")),
        bool(value.get("undo")),
    )


def adapt(request: Request) -> dict[str, Any]:
    """Adapt, check or undo; returns the result. Raises AgentError.

    To be called in namespaces of its own (:func:`fleetlift_agent.adapt.mounts.in_own_namespaces`), so that nothing of
    it outlives the process.
    """
    started = time.monotonic()
    _BASE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix=".adapt-", dir=_BASE))
        stack.callback(_forget, work)
        located = locate(request.disks)
        for _disk, path in located:
            stack.enter_context(held(path, _BASE))
        # Until all that is mounted is mounted: then the kernel keeps partitions as they are.
        quiet = stack.enter_context(ExitStack())
        for _disk, path in located:
            quiet.enter_context(untouched(path))
        run = _Run(request, work)
        if not request.undo:
            run.adapt_tables(located)
        with opened(located, work, check=request.check, root=request.options.root) as copy:
            quiet.close()
            if request.undo:
                run.undo(copy)
            else:
                run.adapt(copy)
    return run.result(time.monotonic() - started)


def _forget(work: Path) -> None:
    for path in sorted(work.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        # Shared with the agents, which may be there or not.
        work.rmdir()
        _BASE.rmdir()


def stage(
    tree: Tree, situation: Situation, disks: Sequence[CopyDisk], boot_sector: bytes, pending: Sequence[str]
) -> tuple[list[initramfs.Need], list[Finding]]:
    """Stage every change of a file; which images have to be made again, and what the operator should know.

    *pending* are the kernels whose images an earlier run did not come to.
    """
    findings: list[Finding] = []

    def wanted(concern: str) -> bool:
        return concern not in situation.options.skip

    for name, concern in (
        ("fstab", fstab.adapt),
        ("crypttab", crypttab.adapt),
        ("mdadm", mdadm.adapt),
        ("lvm", lvm.adapt),
        ("nic_names", nic_names.adapt),
        ("guest_tools", guest_tools.adapt),
        ("cloud_init", cloud_init.adapt),
    ):
        if wanted(name):
            findings += concern(tree, situation)
    words: tuple[str, ...] = ()
    if wanted("network"):
        found, words = network.adapt(tree, situation, kernel_command_line.present_words(tree))
        findings += found
    if wanted("kernel_command_line"):
        findings += kernel_command_line.adapt(tree, situation, words)
    if wanted("boot_loader"):
        findings += boot_loader.adapt(tree, situation, disks, boot_sector)
    needs: list[initramfs.Need] = []
    if wanted("initramfs"):
        needs, found = initramfs.plan(tree, situation, pending)
        findings += found
    if wanted("selinux"):
        findings += selinux.adapt(tree, situation, others_change=bool(tree.staged or needs))
    return needs, findings


class _Run:
    def __init__(self, request: Request, work: Path) -> None:
        self._request = request
        self._work = work
        self._changes: list[dict[str, Any]] = []
        self._findings: list[Finding] = []
        self._root: dict[str, Any] = {}

    def _does(self, concern: str) -> bool:
        return concern not in self._request.options.skip

    def adapt_tables(self, located: Sequence[tuple[DiskRequest, Path]]) -> None:
        """Before anything is mounted: the kernel must not hold a partition whose table changes."""
        if not self._does("partition_table"):
            return
        for disk, path in located:
            growing = self._request.options.grow
            if growing:
                obstacle = grow.not_growable(look_at(disk, path))
                self._findings += [obstacle] if obstacle else []
                growing = obstacle is None
            change = table_change(path, grow=growing)
            if change is None:
                continue
            self._did("partition_table", f"disk {disk.id}: {change.what}")
            if not self._request.check:
                write_table(path, change)

    def undo(self, copy: Copy) -> None:
        self._describe_root(copy)
        record = Record(copy.tree)
        paths = [change["path"] for change in record.changes]
        if not self._request.check:
            paths = record.undo()
        self._changes = [
            {"path": path, "concern": "undo", "action": "restored", "before": "", "after": ""} for path in paths
        ]

    def adapt(self, copy: Copy) -> None:
        options = self._request.options
        tree = copy.tree
        self._describe_root(copy)
        firmware = options.firmware if options.firmware != "auto" else firmware_here()
        situation = Situation(copy.names, firmware, options)
        record = Record(tree)
        with copy.disks[0].path.open("rb") as disk:
            boot_sector = disk.read(512)
        needs, findings = stage(tree, situation, copy.disks, boot_sector, record.pending)
        self._findings += findings
        self._changes += [describe(each, tree.root) for each in tree.staged]
        for need in needs:
            self._did("initramfs", f"kernel {need.kernel.version}: its initramfs is made again, {need.reason}")
        if options.grow and self._does("partition_table"):
            self._grow(copy)
        if self._request.check or self._blocked():
            return
        record.commit(tree.staged, [need.kernel.version for need in needs])
        if needs:
            self._rebuild(copy, needs, record)

    def _rebuild(self, copy: Copy, needs: list[initramfs.Need], record: Record) -> None:
        devices = {node: volume.content.uuid for volume, node in copy.nodes.items()}
        pending = [need.kernel.version for need in needs]
        with chroot.surroundings(copy.tree.root, devices):
            for need in needs:
                failure = initramfs.rebuild(copy.tree, need, record, self._request.options.timeout)
                if failure is not None:
                    self._findings.append(failure)
                    continue
                pending.remove(need.kernel.version)
                record.set_pending(pending)

    def _grow(self, copy: Copy) -> None:
        if self._request.check:
            return
        done, findings = grow.grow(copy, self._work)
        self._findings += findings
        for each in done:
            self._did("partition_table", each)

    def _blocked(self) -> bool:
        return any(finding.severity == "blocker" for finding in self._findings)

    def _did(self, concern: str, action: str) -> None:
        self._changes.append({"path": "", "concern": concern, "action": action, "before": "", "after": ""})

    def _describe_root(self, copy: Copy) -> None:
        release = copy.tree.read("/etc/os-release") or copy.tree.read("/usr/lib/os-release") or ""
        values = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
        self._root = {
            "volume": copy.root.name,
            "filesystem": copy.root.content.kind,
            "uuid": copy.root.content.uuid,
            "system": values.get("PRETTY_NAME", "").strip("\"'"),
        }

    def result(self, seconds: float) -> dict[str, Any]:
        changes = self._changes
        if not self._request.diff:
            changes = [{key: each[key] for key in ("path", "concern", "action")} for each in changes]
        blockers = [finding.record() for finding in self._findings if finding.severity == "blocker"]
        result: dict[str, Any] = {
            "ok": not blockers,
            "changed": bool(changes),
            "changes": changes,
            "findings": [finding.record() for finding in self._findings],
            "root": self._root,
            "seconds": round(seconds, 1),
        }
        if blockers:
            result["error"] = blockers[0]
        return result


def firmware_here() -> str:
    """How this machine was started; the target starts as its rescue system did."""
    return "uefi" if Path("/sys/firmware/efi").is_dir() else "bios"


def error_result(error: AgentError) -> dict[str, Any]:
    return {"ok": False, "changed": False, "changes": [], "findings": [error.record()], "error": error.record()}
