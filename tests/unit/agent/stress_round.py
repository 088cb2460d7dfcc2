# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One round of stress: a filesystem that is written to is replicated, disturbed, cut over, and compared.

Everything about a round is drawn from its seed, so that a round that failed can be run again.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import stress_writers
from block_devices import run
from loop_pair import MIB, Agent, MakePair, Pair, instance_of, wait_for
from used_filesystems import loop_over, spoil
from veth_link import TARGET, Link

from lab.treedigest import compare, read_tree

FILESYSTEMS = ("ext4", "xfs", "btrfs")
LAYOUTS = ("disk", "partition")
# How long anything may take that has to happen, in seconds; generous, for the machine may be busy.
PATIENCE = 120.0
# The kernel's own and a very small one, in KiB for each processor.
_SMALL_RING = 16
_RING = 2048
_SIZE = 448 * MIB
_PARTITION_AT = MIB
_CHECK = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n"), "btrfs": ("btrfs", "check", "--readonly")}
_MAKE = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q", "-f")}


@dataclass(frozen=True)
class Plan:
    """What a round does. `bandwidth` in bytes/s, `pace` in seconds between two steps of a writer."""

    seed: int
    number: int
    filesystem: str
    layout: str
    masked: bool
    bandwidth: int
    pace: float
    faults: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int, number: int) -> Plan:
        """The round of that number: neighbouring rounds have different filesystems and begin with different faults."""
        chance = random.Random(f"{seed}/{number}")
        shift = random.Random(seed).randrange(len(FILESYSTEMS) * len(FAULTS))
        names = list(FAULTS)
        first = names[(number + shift) % len(names)]
        others = chance.sample([name for name in names if name != first], chance.randrange(0, 3))
        return cls(
            seed=seed,
            number=number,
            filesystem=FILESYSTEMS[(number + shift) % len(FILESYSTEMS)],
            layout=LAYOUTS[(number + shift) // len(FILESYSTEMS) % len(LAYOUTS)],
            masked=chance.random() < 0.6,
            bandwidth=chance.choice((16, 32, 64)) * MIB,
            pace=chance.choice((0.002, 0.005, 0.02)),
            faults=(first, *others),
        )

    def __str__(self) -> str:
        free = "free blocks left out" if self.masked else "all blocks"
        faults = ", ".join(self.faults)
        return f"{self.filesystem} on a {self.layout}, {free}, {self.bandwidth // MIB} MiB/s, {faults}"


class Round:
    """A round that runs: its pair of agents, its writers, its wire."""

    def __init__(self, plan: Plan, pair: Pair, link: Link, device: Path, mountpoint: Path) -> None:
        self.plan = plan
        self.pair = pair
        self.link = link
        self.device = device
        self.mountpoint = mountpoint
        self.acknowledged = pair.sender.directory.parent / "acknowledged"
        self.chance = random.Random(f"{plan.seed}/{plan.number}/faults")
        self.corrupted = False

    @property
    def sender(self) -> Agent:
        return self.pair.sender

    @property
    def rows(self) -> int:
        return stress_writers.acknowledged(self.acknowledged)

    def more_rows(self, count: int) -> None:
        """Until the database has acknowledged so many more."""
        before = self.rows
        wait_for(lambda: self.rows >= before + count, f"{count} more rows", PATIENCE)

    def in_sync(self) -> None:
        """Replicating, with the target in reach, and seen so after this call began."""
        since = time.time()

        def settled() -> bool:
            state = self.sender.state
            assert state["phase"] != "failed", state["error"]
            assert state["sync"] is None or state["sync"]["mode"] == "tracking", state["sync"]["reason"]
            return state["phase"] == "in_sync" and state["updated"] > since and not state["stalled"]

        wait_for(settled, "in sync", PATIENCE)

    def replicate(self) -> None:
        self.sender.ctl("replicate")

    def run(self) -> None:
        """Up to a target that was proved to be the frozen source. Raises AssertionError with what is wrong."""
        plan = self.plan
        self.sender.ctl("replicate", bandwidth_limit=plan.bandwidth)
        for position, name in enumerate(plan.faults):
            if position or self.chance.random() < 0.5:
                self.in_sync()
            else:
                wait_for(lambda: self.sender.state["progress"]["bytes_done"] > 8 * MIB, "the first bytes", PATIENCE)
            FAULTS[name](self)
        self.in_sync()
        self.more_rows(5)
        self.sender.ctl("set", bandwidth_limit=None)
        self.in_sync()
        cutover = self.cut_over()
        assert cutover["phase"] == "prepared", f"the cutover ended: {cutover['error']}"
        self.compare()
        released = self.sender.ctl("release", action="thaw")["cutover"]
        assert released["phase"] == "released", released

    def cut_over(self) -> dict[str, object]:
        verify_age = 0 if self.corrupted else None
        self.sender.ctl("cutover", services=[], freeze=True, hold_timeout=600, verify_age=verify_age)
        return self.sender.cutover_phase("prepared", "aborted", seconds=PATIENCE)

    def compare(self) -> None:
        """Under the freeze: the target's bytes, or its filesystem's tree, check and database, are the source's."""
        last = self.rows
        (source, target), *_others = self.pair.disks
        if not self.plan.masked:
            assert source.content() == target.content(source.size), "the disks differ"
        with self.copy() as (copy, device):
            wrong = [str(item) for item in compare(read_tree(self.mountpoint), read_tree(copy))]
            assert not wrong, wrong[:5]
            wrong = stress_writers.missing_rows(copy / stress_writers.DATABASE, last)
            assert not wrong, wrong[:5]
            run("umount", copy)
            run(*_CHECK[self.plan.filesystem], device)

    @contextlib.contextmanager
    def copy(self) -> Iterator[tuple[Path, Path]]:
        """A copy of the target, mounted, which replays its log; and its device."""
        target = self.pair.disks[0][1]
        image, mountpoint = target.file.with_suffix(".copy"), target.file.with_suffix(".mnt")
        run("cp", "--sparse=always", target.file, image)
        mountpoint.mkdir()
        at = 0 if self.plan.layout == "disk" else _PARTITION_AT
        with loop_over(image, "--offset", str(at), "--sizelimit", str(_SIZE - at)) as device:
            if self.plan.filesystem == "btrfs":
                # Two mounted filesystems may not have the same identity in one kernel.
                run("btrfstune", "-f", "-m", device)
            options = "nouuid" if self.plan.filesystem == "xfs" else "defaults"
            run("mount", "-o", f"noatime,{options}", device, mountpoint)
            try:
                yield mountpoint, device
            finally:
                # Unmounted already when all is well.
                subprocess.run(["umount", str(mountpoint)], stderr=subprocess.DEVNULL)
        image.unlink()


# Faults. Each leaves the round replicating.


def kill_sender(stress: Round) -> None:
    stress.sender.kill()
    stress.more_rows(3)
    stress.sender.start()
    stress.replicate()


def kill_receiver(stress: Round) -> None:
    stress.pair.receiver.kill()
    wait_for(lambda: stress.sender.state["stalled"], "the sender notices", PATIENCE)
    stress.pair.receiver.start()


def kill_cutover(stress: Round) -> None:
    """Within the cutover, wherever it is: everything thaws, and all begins again with the next agent."""
    stress.in_sync()
    phase = stress.chance.choice(("freezing", "final_pass", "verifying", "prepared"))
    later = ("freezing", "final_pass", "verifying", "prepared")
    stress.sender.ctl("cutover", services=[], freeze=True)
    stress.sender.cutover_phase(*later[later.index(phase) :], seconds=PATIENCE)
    kill_sender(stress)


def cut_link(stress: Round) -> None:
    stress.link.set(up=False)
    wait_for(lambda: stress.sender.state["stalled"], "the sender notices", PATIENCE)
    stress.link.set(up=True)


def overrun_ring(stress: Round) -> None:
    """The agent does not get to run until the ring has lost events; what it missed must be asked from the disks."""
    with stopped(stress.sender), instance_of(stress.pair) as instance:
        statistics = list(instance.glob("per_cpu/cpu*/stats"))

        def lost() -> int:
            lines = [line for path in statistics for line in path.read_text().splitlines()]
            return sum(int(line.split()[1]) for line in lines if line.startswith("overrun:"))

        # An earlier agent may have lost some already.
        before = lost()
        wait_for(lambda: lost() > before, "the ring overflows", PATIENCE)
    wait_for(lambda: "EVENTS_LOST" in stress.sender.state["sync"]["tracker"]["rescans"], "the loss is told", PATIENCE)


def stall_tracer(stress: Round) -> None:
    """The agent does not get to run for longer than the tracer may sleep."""
    stress.in_sync()
    with stopped(stress.sender):
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() - begun > 2, "two seconds", PATIENCE)
    wait_for(lambda: stress.sender.state["sync"]["tracker"]["stalls"], "the stall is told", PATIENCE)


def corrupt_target(stress: Round) -> None:
    """Garbage on the medium, behind the receiver's back, where the copy is."""
    stress.in_sync()
    target = stress.pair.disks[0][1]
    content = target.content()
    used = [at for at in range(0, len(content), 4096) if content[at : at + 4096] != bytes(4096)]
    spoil(target.file, [(at + 512, at + 1024) for at in stress.chance.sample(used, 20)])
    stress.corrupted = True


FAULTS: dict[str, Callable[[Round], None]] = {
    "sender killed": kill_sender,
    "receiver killed": kill_receiver,
    "link cut": cut_link,
    "ring overrun": overrun_ring,
    "tracer stalled": stall_tracer,
    "target corrupted": corrupt_target,
    "killed in the cutover": kill_cutover,
}


@contextlib.contextmanager
def stopped(agent: Agent) -> Iterator[None]:
    run("kill", "-STOP", str(agent.pid))
    try:
        yield
    finally:
        run("kill", "-CONT", str(agent.pid))


# The surroundings.


@contextlib.contextmanager
def volume(plan: Plan, disk: Path, image: Path) -> Iterator[Path]:
    """The device that holds the filesystem: the disk, or a partition that the kernel was told of."""
    if plan.layout == "disk":
        yield disk
        return
    start, count = _PARTITION_AT // 512, (_SIZE - _PARTITION_AT) // 512
    entry = struct.pack("<B3xB3xII", 0, 0x83, start, count)
    descriptor = disk.open("r+b", buffering=0)
    with descriptor:
        descriptor.write((bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa")
    run("addpart", disk, "1", str(start), str(count))
    try:
        yield Path(f"{disk}p1")
    finally:
        run("delpart", disk, "1")


@contextlib.contextmanager
def mounted(plan: Plan, device: Path, mountpoint: Path) -> Iterator[None]:
    run(*_MAKE[plan.filesystem], device)
    mountpoint.mkdir()
    # Looking at the frozen tree must not write to it.
    run("mount", "-o", "noatime", device, mountpoint)
    try:
        yield
    finally:
        run("umount", mountpoint)


@contextlib.contextmanager
def writers(stress: Round) -> Iterator[subprocess.Popen[bytes]]:
    plan = stress.plan
    command = [sys.executable, str(Path(stress_writers.__file__)), stress.mountpoint, stress.acknowledged]
    options = ["--seed", str(plan.seed * 1000 + plan.number), "--budget", str(_SIZE // 3), "--pace", str(plan.pace)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        # Whatever failed: nobody can end who waits for a frozen filesystem.
        if stress.sender.alive():
            stress.sender.kill()
        process.terminate()
        said = process.communicate()[1].decode()
    assert process.returncode == 0, f"the writers failed: {said}"


def play(plan: Plan, make_pair: MakePair, link: Link) -> None:
    """Run the round. Raises AssertionError with what is wrong."""
    pair = make_pair(_SIZE, tracking=True)
    source, target = pair.disks[0]
    pair.sender.interpreter = link.inside(link.source, sys.executable)
    pair.receiver.interpreter = link.inside(link.target, sys.executable)
    port = pair.sender.config["peer"]["port"]
    pair.sender.write_config(peer={"host": TARGET, "port": port}, skip_free=plan.masked)
    pair.receiver.write_config(listen={"host": TARGET, "port": port})
    ring = _SMALL_RING if "ring overrun" in plan.faults else _RING
    pair.sender.environment.update(FLEETLIFT_TEST_RING_KIB=str(ring))
    if "tracer stalled" in plan.faults:
        pair.sender.environment.update(FLEETLIFT_TEST_STALLED="1")
    # A target that was used before.
    spoil(target.file, [(at, at + MIB) for at in range(0, _SIZE, 16 * MIB)])
    mountpoint = pair.sender.directory.parent / "mnt"
    with volume(plan, source.device, source.file) as device, mounted(plan, device, mountpoint):
        stress = Round(plan, pair, link, device, mountpoint)
        garbage = mountpoint / "garbage"
        garbage.write_bytes(random.Random(plan.seed).randbytes(48 * MIB))
        run("sync", "--file-system", mountpoint)
        garbage.unlink()
        with writers(stress):
            stress.more_rows(20)
            pair.start()
            stress.run()
        for agent in (pair.sender, pair.receiver):
            if agent.alive():
                agent.kill()
    shutil.rmtree(target.file.with_suffix(".mnt"))
