# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases: which copies are made side by side in one run, on which link."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import content
from block_devices import run
from content import MIB
from tools import Measurement, NbdCopy, Ours, Rsync, loop, mounted
from veth_link import Link, veth_link

# Mbit/s of the slow link, and what of it TCP with timestamps leaves to its payload in frames of 1514 bytes.
SLOW = 100
PAYLOAD = 1448 / 1514
_SERVER_SIZE = 2048 * MIB
_FILES_SIZE = 3072 * MIB
_FILES = 200_000
_RUNS = 3
_WRITES = 60_000
_GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One line of the table. limit: Mbit/s or None; payload: bytes of content where that is known."""

    case: str
    workload: str
    tool: str
    limit: int | None
    measured: Measurement
    payload: int | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """What passed in the busier direction, of what the link would let pass in that time."""
        if self.limit is None:
            return None
        busier = max(self.measured.out, self.measured.back)
        return busier / (self.measured.wall * self.limit * 1_000_000 / 8)


class Bench:
    """One case's surroundings: a link, a directory in memory, and the base root that servers are filled with."""

    def __init__(self, case: str, link: Link, scratch: Path, base_root: Path, limit: int | None) -> None:
        self.case = case
        self.link = link
        self.scratch = scratch
        self.base_root = base_root
        self.limit = limit

    def row(self, workload: str, tool: str, measured: Measurement, **facts: object) -> Row:
        row = Row(self.case, workload, tool, self.limit, measured, **facts)  # type: ignore[arg-type]
        print(f"  {tool}: {measured.wall:.2f} s, {measured.wire / 1e6:.1f} MB {row.note}", flush=True)
        return row

    def filesystem(self, name: str, size: int, fill: Callable[[Path], None]) -> Path:
        """An image with an ext4 that was filled and unmounted."""
        with loop(self.scratch / f"{name}.making", size) as made:
            run("mkfs.ext4", "-q", "-i", "8192", made.device)
            with mounted(made.device, self.scratch / "mnt") as top:
                fill(top)
            image = self.scratch / f"{name}.img"
            run("cp", "--sparse=always", made.file, image)
        return image

    def trees(self, workload: str, image: Path, change: Callable[[Path], None] | None) -> Iterator[Row]:
        """rsync without and with compression, to an empty filesystem or, with a `change`, to one that was equal."""
        for compress in (False, True):
            rsync = Rsync(self.link, self.scratch, compress=compress)
            with (
                loop(self.scratch / "source.img", image.stat().st_size, image) as source,
                loop(self.scratch / "target.img", image.stat().st_size, image if change else None) as target,
            ):
                if change is None:
                    run("mkfs.ext4", "-q", target.device)
                with (
                    mounted(source.device, self.scratch / "source") as top,
                    mounted(target.device, self.scratch / "target") as there,
                ):
                    if change is not None:
                        change(top)
                    yield self.row(workload, rsync.name, rsync.copy(top, there))

    def disk(self, workload: str, image: Path) -> Row:
        with (
            loop(self.scratch / "source.img", image.stat().st_size, image) as source,
            loop(self.scratch / "target.img", image.stat().st_size) as target,
        ):
            return self.row(workload, NbdCopy.name, NbdCopy(self.link).copy(source.device, target.device))


def initial(bench: Bench) -> Iterator[Row]:
    """All tools in turn; over an unlimited link some times, for what limits them there is shared with others."""
    image = bench.filesystem("server", _SERVER_SIZE, lambda top: content.fill_server(top, bench.base_root))
    rounds: dict[str, list[Row]] = {}
    for number in range(_RUNS if bench.limit is None else 1):
        for row in (
            *bench.trees("initial sync", image, None),
            bench.disk("initial sync", image),
            ours_initially(bench, image, number),
        ):
            rounds.setdefault(row.tool, []).append(row)
    yield from (middle(rows) for rows in rounds.values())


def ours_initially(bench: Bench, image: Path, number: int) -> Row:
    with (
        loop(bench.scratch / "source.img", _SERVER_SIZE, image) as source,
        loop(bench.scratch / "target.img", _SERVER_SIZE) as target,
        mounted(source.device, bench.scratch / "source"),
    ):
        ours = Ours(bench.link, bench.scratch / f"ours{number}", source, target)
        with ours.running() as meter:
            return bench.row("initial sync", ours.name, ours.replicate(meter))


def middle(rows: list[Row]) -> Row:
    """The one with the median time, which says how far the others were away."""
    rows = sorted(rows, key=lambda row: row.measured.wall)
    if len(rows) == 1:
        return rows[0]
    note = f"{rows[0].measured.wall:.2f} to {rows[-1].measured.wall:.2f} s in {len(rows)} runs"
    return replace(rows[len(rows) // 2], note=note)


def delta(bench: Bench) -> Iterator[Row]:
    image = bench.filesystem("server", _SERVER_SIZE, lambda top: content.fill_server(top, bench.base_root))

    def change(top: Path) -> None:
        content.change_one_percent(top, 1)

    yield from bench.trees("1 % changed", image, change)
    yield bench.disk("1 % changed", image)
    with (
        loop(bench.scratch / "source.img", _SERVER_SIZE, image) as source,
        loop(bench.scratch / "target.img", _SERVER_SIZE) as target,
        mounted(source.device, bench.scratch / "source") as top,
    ):
        ours = Ours(bench.link, bench.scratch / "ours", source, target)
        with ours.running() as meter:
            ours.pair.sender.ctl("set", bandwidth_limit=None)
            ours.replicate(meter)
            ours.pair.sender.ctl("stop")
            before = bench.scratch / "before.img"
            run("cp", "--sparse=always", source.file, before)
            change(top)
            changed = content.changed_bytes(before, source.file)
            before.unlink()
            measured = ours.replicate(meter)
            yield bench.row("1 % changed", ours.name, measured, payload=changed)


def final(bench: Bench) -> Iterator[Row]:
    image = bench.filesystem("files", _FILES_SIZE, lambda top: content.fill_files(top, _FILES))
    workload = f"final pass, 50 MB dirty, {_FILES} files"
    yield from bench.trees(workload, image, lambda top: content.make_dirty(top, 1))
    # Its blocks are those of before, so that the initial sync has only to compare them.
    with (
        loop(bench.scratch / "source.img", _FILES_SIZE, image) as source,
        loop(bench.scratch / "target.img", _FILES_SIZE, image) as target,
        mounted(source.device, bench.scratch / "source") as top,
    ):
        ours = Ours(bench.link, bench.scratch / "ours", source, target)
        with ours.running() as meter:
            ours.replicate(meter)
            measured = ours.cut_over(meter, dirty_hook(top, 1))
            yield bench.row(workload, ours.name, measured, note=ours.split)


def size(bench: Bench) -> Iterator[Row]:
    """The final pass on disks of two sizes that hold the same; the median of some cutovers each."""
    for gib in (2, 16):
        image = bench.filesystem(f"size{gib}", gib * _GIB, content.fill_database)
        with (
            loop(bench.scratch / "source.img", gib * _GIB, image) as source,
            loop(bench.scratch / "target.img", gib * _GIB, image) as target,
            mounted(source.device, bench.scratch / "source") as top,
        ):
            ours = Ours(bench.link, bench.scratch / f"ours{gib}", source, target)
            with ours.running() as meter:
                ours.replicate(meter)
                runs = []
                for number in range(_RUNS):
                    cut = ours.cut_over(meter, dirty_hook(top, number))
                    runs.append(bench.row(f"final pass, 50 MB dirty, {gib} GiB disk", ours.name, cut))
                    ours.abort()
        yield middle(runs)


def incompressible(bench: Bench) -> Iterator[Row]:
    """How much of the link the content itself gets, from the first byte to the last acknowledgement."""
    with (
        loop(bench.scratch / "source.img", 384 * MIB) as source,
        loop(bench.scratch / "target.img", 384 * MIB) as target,
    ):
        run("dd", "if=/dev/urandom", f"of={source.device}", "bs=1M", "count=384", "oflag=direct", "status=none")
        ours = Ours(bench.link, bench.scratch / "ours", source, target)
        with ours.running() as meter:
            measured = ours.replicate(meter)
            first = ours.pair.sender.state["passes"][0]
        wall = Measurement(first["seconds"], measured.out, measured.back, measured.cpu_source, measured.cpu_target)
        yield bench.row("content that does not compress", ours.name, wall, payload=first["bytes_sent"])


_TRACKER = """
import json, sys, time
from pathlib import Path
from fleetlift_agent.tracing import ChangeTracker, TrackedDisk
device = Path(sys.argv[1])
tracker = ChangeTracker.start(Path(sys.argv[2]), "bench", [TrackedDisk.open("d0", device, int(sys.argv[3]))])
begun = time.process_time()
print("ready", flush=True)
sys.stdin.read()
tracker.drain()
state = tracker.state()
print(json.dumps({"cpu": time.process_time() - begun, "events": state.events, "lost": state.lost}))
tracker.close(remove=True)
"""


def tracking(bench: Bench) -> Iterator[Row]:
    """What following the writes costs a source that does nothing else than to write: the best of some runs each."""
    workload = f"{_WRITES} direct writes of 4 KiB, one by one"
    disk = 1024 * MIB
    write = [sys.executable, str(Path(content.__file__).resolve()), "write"]
    alone, tracked = [], []
    with loop(bench.scratch / "disk.img", disk) as made:
        run("dd", "if=/dev/zero", f"of={made.device}", "bs=1M", "count=1024", "oflag=direct", "status=none")
        command = [*write, str(made.device), str(_WRITES)]
        for number in range(_RUNS):
            alone.append(json.loads(run(*command)))
            directory = bench.scratch / f"tracker{number}"
            directory.mkdir()
            follow = [sys.executable, "-c", _TRACKER, str(made.device), str(directory), str(disk)]
            with subprocess.Popen(follow, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracker:
                assert tracker.stdout is not None and tracker.stdout.readline() == "ready\n"
                measured = json.loads(run(*command))
                facts = json.loads(tracker.communicate("")[0])
            # One more is the read by which the tracker saw that this disk is traced.
            assert facts["events"] >= _WRITES and not facts["lost"], facts
            tracked.append((measured["wall"], measured["cpu"], facts["cpu"]))
    wall, cpu = min((each["wall"], each["cpu"]) for each in alone)
    yield bench.row(workload, "not tracked", Measurement(wall, 0, 0, cpu, 0))
    wall, cpu, own = min(tracked)
    note = f"{own / _WRITES * 1e6:.1f} microseconds of the sender's CPU for each write"
    yield bench.row(workload, "tracked", Measurement(wall, 0, 0, cpu + own, 0), note=note)


def dirty_hook(top: Path, seed: int) -> str:
    return f"{sys.executable} {Path(content.__file__).resolve()} dirty {top} {seed}"


# By name: what runs, and the limit of the link in Mbit/s.
CASES: dict[str, tuple[Callable[[Bench], Iterator[Row]], int | None]] = {
    "initial": (initial, None),
    "initial-slow": (initial, SLOW),
    "delta": (delta, None),
    "delta-slow": (delta, SLOW),
    "final": (final, None),
    "final-slow": (final, SLOW),
    "size": (size, None),
    "incompressible": (incompressible, SLOW),
    "tracking": (tracking, None),
}


def play(case: str, scratch: Path, base_root: Path) -> list[Row]:
    workload, limit = CASES[case]
    with veth_link() as link:
        if limit is not None:
            link.shape(limit)
        return list(workload(Bench(case, link, scratch, base_root, limit)))
