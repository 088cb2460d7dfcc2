# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change tracking on the running kernel: a copy made of dirty ranges alone is the frozen disk, or a rescan is asked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from block_devices import MIB, eventually, loop_device, mount_namespace, run
from fleetlift_agent import tracing
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.freeze import FIFREEZE, FITHAW
from fleetlift_agent.memory import c_library
from fleetlift_agent.trace_format import Decoder, EventLayout, PageLayout, TraceFormatError, changes_disk
from fleetlift_agent.tracefs import find_tracefs
from fleetlift_agent.tracing import ChangeTracker, NullTracker, TrackedDisk, Tracker, open_tracker, probe
from hypothesis import given
from hypothesis import strategies as st

SAMPLES = Path(__file__).parent / "samples"
KERNELS = ("3.10", "4.18", "5.15", "6.1", "6.18")
PAGE = PageLayout.parse((SAMPLES / "header_page").read_text())
DISK = 8 << 20 | 16
# include/uapi/linux/fs.h
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F


# --- The format, on samples -------------------------------------------------------------------------------------------


def layout(kernel: str) -> EventLayout:
    return EventLayout.parse((SAMPLES / f"block_rq_complete-{kernel}.format").read_text())


def event(kernel: str, sector: int, sectors: int, rwbs: bytes, device: int = DISK) -> bytes:
    """A completed request as this kernel lays it out."""
    width, offset = (10, 34) if kernel == "6.18" else (8, 32)
    data = bytearray(offset + width + (-(offset + width) % 4) + 8)
    struct.pack_into("<HBBi", data, 0, layout(kernel).id, 0, 0, 1)
    struct.pack_into("<IxxxxQIi", data, 8, device, sector, sectors, 0)
    data[offset : offset + len(rwbs)] = rwbs
    return bytes(data)


def item(data: bytes, delta: int = 7) -> bytes:
    return struct.pack("<I", len(data) // 4 | delta << 5) + data


def page(*items: bytes, flags: int = 0, tail: bytes = b"") -> bytes:
    body = b"".join(items)
    return (struct.pack("<QQ", 1, len(body) | flags) + body + tail).ljust(4096, b"\0")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_layout_is_the_one_that_the_kernel_states(kernel: str) -> None:
    decoded = Decoder(PAGE, layout(kernel), "little").decode(
        page(
            item(event(kernel, 2048, 8, b"WS")),
            struct.pack("<II", 30 | 5 << 5, 1),  # time extend
            struct.pack("<II", 31 | 5 << 5, 1),  # time stamp
            struct.pack("<II", 29 | 5 << 5, 12) + bytes(8),  # a discarded event
            item(event(kernel, 1 << 40, 1 << 20, b"D")),
            item(event(kernel, 4096, 64, b"RA")),
            struct.pack("<II", 0, len(event(kernel, 0, 0, b"W")) + 4) + event(kernel, 9, 1, b"FWFS"),  # a long length
            struct.pack("<I", 29),  # padding up to the end
            b"\xff" * 64,
        )
    )
    assert decoded.changes == [(DISK, 2048, 8), (DISK, 1 << 40, 1 << 20), (DISK, 9, 1)]
    assert (decoded.events, decoded.lost) == (4, 0)


def test_a_recorded_ring_says_what_was_done() -> None:
    changes = set()
    for sample in SAMPLES.glob("trace_pipe_raw-6.18-*.bin"):
        for device, sector, sectors in Decoder(PAGE, layout("6.18"), "little").decode(sample.read_bytes()).changes:
            assert device == 7 << 20 | 2
            changes.add((sector, sectors))
    # Writes of 8 KiB at 4 KiB, of 512 bytes at 1 MiB, with FUA at the end; a discard and write-zeroes of 1 MiB each,
    # the latter refused by the driver and done again as two writes.
    assert {change for change in changes if change[1]} == {
        (8, 16),
        (2048, 1),
        (131056, 16),
        (4096, 2048),
        (8192, 2048),
        (8192, 1024),
        (9216, 1024),
    }


@pytest.mark.parametrize("stored", [True, False])
def test_a_gap_in_the_ring_is_told(stored: bool) -> None:
    flags = 1 << 31 | (1 << 30 if stored else 0)
    data = page(item(event("6.1", 0, 8, b"W")), flags=flags, tail=struct.pack("<Q", 41) if stored else b"")
    assert Decoder(PAGE, layout("6.1"), "little").decode(data).lost == (41 if stored else -1)


@pytest.mark.parametrize(
    ("rwbs", "counts"),
    [("W", True), ("WS", True), ("WFS", True), ("FW", True), ("FWFSM", True), ("WSM", True), ("D", True),
     ("DS", True), ("DE", True), ("N", True), ("NS", True), ("ZA", True), ("ZR", True), ("X", True),
     ("R", False), ("RA", False), ("RSM", False), ("FF", False), ("F", False), ("FR", False), ("", False)],
)  # fmt: skip
def test_only_reads_and_flushes_change_nothing(rwbs: str, counts: bool) -> None:
    assert changes_disk(rwbs.encode().ljust(8, b"\0")) is counts


@given(st.binary(max_size=4096), st.sampled_from(KERNELS))
def test_garbage_is_refused_or_decoded_and_nothing_else(data: bytes, kernel: str) -> None:
    with contextlib.suppress(TraceFormatError):
        Decoder(PAGE, layout(kernel)).decode(data)


@pytest.mark.parametrize("missing", ["dev", "sector", "nr_sector", "rwbs"])
def test_a_format_without_a_field_is_refused(missing: str) -> None:
    text = (SAMPLES / "block_rq_complete-6.1.format").read_text()
    lines = [line for line in text.splitlines() if f" {missing};" not in line and f" {missing}[" not in line]
    with pytest.raises(TraceFormatError, match=missing):
        EventLayout.parse("\n".join(lines))


def test_an_event_of_another_type_is_refused() -> None:
    with pytest.raises(TraceFormatError, match="type"):
        Decoder(PAGE, layout("6.1"), "little").decode(page(item(event("4.18", 0, 8, b"W"))))


# --- The running kernel -----------------------------------------------------------------------------------------------

SIZE = 32 * MIB


@pytest.fixture(scope="module", autouse=True)
def tracefs(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("probe")
    reason = probe(directory)
    if reason is not None:
        pytest.skip(f"this kernel does not let us trace: {reason}")
    assert list(directory.iterdir()) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[TrackedDisk]:
    with loop_device(tmp_path / "disk.img", SIZE) as device:
        yield TrackedDisk.open("d0", device, SIZE)


@pytest.fixture
def tracker(tmp_path: Path, disk: TrackedDisk) -> Iterator[ChangeTracker]:
    """Follows `disk`, whose first pass is done."""
    with tracking(tmp_path / "agent", [disk]) as made:
        finish_pass(made)
        yield made


@contextlib.contextmanager
def tracking(directory: Path, disks: list[TrackedDisk], buffer_kib: int = 1024) -> Iterator[ChangeTracker]:
    directory.mkdir(exist_ok=True)
    made = ChangeTracker.start(directory, "unit", disks, buffer_kib=buffer_kib)
    try:
        yield made
    finally:
        made.close(remove=True)
        assert list(directory.iterdir()) == []


def finish_pass(tracker: Tracker) -> set[tuple[int, int]]:
    """Take everything and settle it; the (offset, length) pairs on the first disk."""
    source = tracker.changes()
    found = {(key.extent * EXTENT + offset, n) for key in source.extents() for offset, n in source.ranges(key)}
    tracker.settle()
    return found


@contextlib.contextmanager
def direct(device: Path) -> Iterator[tuple[int, mmap.mmap]]:
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, EXTENT) as buffer:
            yield fd, buffer
    finally:
        os.close(fd)


def write(device: Path, offset: int, length: int = 4096) -> None:
    with direct(device) as (fd, buffer), memoryview(buffer)[:length] as view:
        assert os.pwritev(fd, [view], offset) == length


def test_a_write_that_completed_is_in_the_map_when_drain_returns(tracker: ChangeTracker, disk: TrackedDisk) -> None:
    choice = random.Random(1)
    with direct(disk.device) as (fd, buffer), memoryview(buffer)[:4096] as view:
        for _ in range(100):
            wanted = {choice.randrange(SIZE // 4096) * 4096 for _ in range(20)}
            for offset in wanted:
                os.pwritev(fd, [view], offset)
            tracker.drain()
            covered = {start + step for start, n in finish_pass(tracker) for step in range(0, n, 4096)}
            assert covered == wanted
    assert tracker.state().rescans == {}
    assert tracker.state().lost == 0


def test_discards_and_zeroes_count_and_reads_and_flushes_do_not(tracker: ChangeTracker, disk: TrackedDisk) -> None:
    with direct(disk.device) as (fd, buffer):
        before = tracker.state().events
        for _ in range(100):
            os.preadv(fd, [buffer], 0)
        os.fsync(fd)
        tracker.drain()
        assert finish_pass(tracker) == set()
        # The kernel leaves the reads out, whatever they would cost.
        assert tracker.state().events - before < 100
        fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 2 * EXTENT, EXTENT))
        fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", 5 * EXTENT + 8192, 4096))
    tracker.drain()
    assert finish_pass(tracker) == {(2 * EXTENT, EXTENT), (5 * EXTENT + 8192, 4096)}


def test_a_write_during_the_read_of_an_extent_is_read_by_the_next_pass(
    tracker: ChangeTracker, disk: TrackedDisk
) -> None:
    write(disk.device, 0)
    tracker.drain()
    extents = tracker.changes().extents()
    with direct(disk.device) as (fd, buffer):
        for key in extents:
            os.preadv(fd, [buffer], key.extent * EXTENT)
            write(disk.device, 0)
            # The reader thread may note it before the pass goes on.
            tracker.drain()
    tracker.settle()
    assert finish_pass(tracker) == {(0, 4096)}


def test_two_disks_are_told_apart(tmp_path: Path, disk: TrackedDisk) -> None:
    with loop_device(tmp_path / "other.img", SIZE) as device:
        other = TrackedDisk.open("d1", device, SIZE)
        with tracking(tmp_path / "agent", [disk, other]) as tracker:
            finish_pass(tracker)
            write(other.device, EXTENT)
            tracker.drain()
            assert [(key.disk, key.extent) for key in tracker.changes().extents()] == [(1, 1)]


class Copy:
    """A target that receives nothing but dirty ranges."""

    def __init__(self, tracker: Tracker, device: Path, target: Path, size: int) -> None:
        self._tracker, self._target, self._size = tracker, target, size
        self.device = device
        target.touch()
        os.truncate(target, size)

    def run(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """One pass; the bytes that it copied. `meanwhile` happens between the read of an extent and the next one."""
        source, copied = self._tracker.changes(), 0
        with direct(self.device) as (fd, buffer), self._target.open("r+b") as target:
            for key in source.extents():
                for offset, length in source.ranges(key):
                    with memoryview(buffer)[:length] as view:
                        assert os.preadv(fd, [view], key.extent * EXTENT + offset) == length
                        target.seek(key.extent * EXTENT + offset)
                        target.write(view)
                    copied += length
                meanwhile()
        self._tracker.settle()
        return copied

    def differences(self) -> list[int]:
        """The extents in which target and device differ, byte for byte."""
        with direct(self.device) as (fd, buffer), self._target.open("rb") as target:
            found = []
            for offset in range(0, self._size, EXTENT):
                length = os.preadv(fd, [buffer], offset)
                if target.read(length) != buffer[:length]:
                    found.append(offset // EXTENT)
            return found


def churn(directory: Path, stop: threading.Event, seed: int) -> None:
    """What servers do: new files, overwrites in place, appends with fsync, truncates, renames, deletions."""
    choice = random.Random(seed)
    while not stop.is_set():
        path = directory / str(choice.randrange(60))
        action = choice.randrange(6)
        if action == 0 and path.exists():
            path.unlink()
        elif action == 1 and path.exists():
            path.rename(directory / str(choice.randrange(60)))
        elif action == 2 and path.exists():
            os.truncate(path, choice.randrange(1 + path.stat().st_size))
        else:
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.seek(choice.randrange(200_000))
                file.write(choice.randbytes(choice.randrange(1, 60_000)))
                if action == 3:
                    os.fsync(file.fileno())


@pytest.mark.parametrize(("kind", "size"), [("ext4", 64 * MIB), ("xfs", 320 * MIB), ("btrfs", 128 * MIB)])
def test_a_copy_of_dirty_ranges_is_the_frozen_disk(tmp_path: Path, kind: str, size: int) -> None:
    with loop_device(tmp_path / "disk.img", size) as device, mount_namespace() as namespace:
        run(f"mkfs.{kind}", "-q", device)
        namespace.run("mount", device, "/mnt")
        directory = namespace.root / "mnt"
        stop = threading.Event()
        writers = [threading.Thread(target=churn, args=(directory / name, stop, n)) for n, name in enumerate("ab")]
        for name in "ab":
            (directory / name).mkdir()
        disk = TrackedDisk.open("d0", device, size)
        with tracking(tmp_path / "agent", [disk]) as tracker:
            mount = os.open(directory, os.O_RDONLY)
            try:
                for writer in writers:
                    writer.start()
                copy = Copy(tracker, device, tmp_path / "copy.img", size)
                assert copy.run() == size

                def work_goes_on() -> None:
                    # Everything that was written is on the disk, and in the map, before the pass reads the next extent.
                    c_library().syncfs(mount)
                    tracker.drain()

                deltas = []
                for meanwhile in (lambda: None, work_goes_on):
                    # Something to do for every pass, however fast the copy was.
                    assert eventually(lambda: tracker.dirty_bytes() > MIB)
                    tracker.drain()
                    deltas.append(copy.run(meanwhile))
                fcntl.ioctl(mount, FIFREEZE, 0)
                try:
                    tracker.drain()
                    final = copy.run()
                    assert copy.differences() == []
                finally:
                    fcntl.ioctl(mount, FITHAW, 0)
            finally:
                stop.set()
                for writer in writers:
                    writer.join()
                os.close(mount)
            assert all(deltas)
            assert final < size
            assert tracker.state().rescans == {}
        namespace.run("umount", "/mnt")


# --- What shakes the trace --------------------------------------------------------------------------------------------


def test_an_overflow_of_the_ring_asks_for_a_rescan(tmp_path: Path, disk: TrackedDisk) -> None:
    with tracking(tmp_path / "agent", [disk], buffer_kib=8) as tracker:
        finish_pass(tracker)
        with tracker._reading, direct(disk.device) as (fd, buffer), memoryview(buffer)[:512] as view:
            for number in range(3000):
                os.pwritev(fd, [view], number * 512)
        tracker.drain()
        state = tracker.state()
        assert state.rescan == ["d0"]
        assert state.lost > 1000
        assert "EVENTS_LOST" in state.rescans
        assert tracker.dirty_bytes() == SIZE
        # After the rescan it is trusted again.
        finish_pass(tracker)
        tracker.drain()
        assert tracker.state().rescan == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("tracing_on", "0"), ("events/block/block_rq_complete/enable", "0"),
     ("events/block/block_rq_complete/filter", "dev == 1")],
)  # fmt: skip
def test_an_instance_that_was_changed_is_not_trusted(
    tracker: ChangeTracker, disk: TrackedDisk, name: str, value: str
) -> None:
    (tracker._instance.path / name).write_text(value)
    tracker.drain()
    assert tracker.state().rescan == ["d0"]
    assert tracker.state().rescans == {"INSTANCE_CHANGED": 1}
    # There is another one, and after the rescan it is trusted.
    finish_pass(tracker)
    write(disk.device, 2 * EXTENT)
    tracker.drain()
    assert tracker.state().rescan == []
    assert finish_pass(tracker) == {(2 * EXTENT, 4096)}
    assert tracker.state().rescans == {"INSTANCE_CHANGED": 1}


def test_an_instance_that_cannot_be_made_again_is_never_trusted(
    tracker: ChangeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_what: object) -> None:
        raise OSError(errno.EPERM, "lockdown")

    with monkeypatch.context() as patch:
        patch.setattr(tracker._instance, "trace", refused)
        (tracker._instance.path / "tracing_on").write_text("0")
        for _round in range(3):
            tracker.drain()
            assert tracker.state().rescan == ["d0"]
            finish_pass(tracker)
        assert tracker.state().rescans == {"INSTANCE_CHANGED": 1}, "it is counted once"
    tracker.drain()
    assert tracker.state().rescan == ["d0"]
    finish_pass(tracker)
    tracker.drain()
    assert tracker.state().rescan == []


def test_a_ring_that_could_not_be_opened_is_never_trusted(
    tracker: ChangeTracker, disk: TrackedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance is made anew and looks sound, but nobody reads what it holds."""
    rings = list(tracker._instance.rings())

    def none_left() -> Iterator[Path]:
        yield rings[0]
        raise OSError(errno.EMFILE, "too many open files")

    tracker._close_rings()
    tracker._instance.remove()
    with monkeypatch.context() as patch:
        patch.setattr(tracker._instance, "rings", none_left)
        for _round in range(3):
            tracker.drain()
            assert tracker.state().rescan == ["d0"]
            finish_pass(tracker)
    tracker.drain()
    assert tracker.state().rescan == ["d0"]
    finish_pass(tracker)
    write(disk.device, 2 * EXTENT)
    tracker.drain()
    assert tracker.state().rescan == []
    assert finish_pass(tracker) == {(2 * EXTENT, 4096)}


def test_a_ring_that_was_cleared_is_not_trusted(tracker: ChangeTracker, disk: TrackedDisk) -> None:
    write(disk.device, 0)
    tracker.drain()
    finish_pass(tracker)
    (tracker._instance.path / "trace").write_text("")
    tracker.drain()
    assert tracker.state().rescans == {"RING_CLEARED": 1}
    assert tracker.state().rescan == ["d0"]


def test_a_resized_disk_is_read_again(tracker: ChangeTracker, disk: TrackedDisk, tmp_path: Path) -> None:
    os.truncate(tmp_path / "disk.img", SIZE + EXTENT)
    run("losetup", "--set-capacity", disk.device)
    # The reader thread notices on its own.
    assert eventually(lambda: tracker.state().rescan == ["d0"])
    assert tracker.state().rescans == {"DISK_RESIZED": 1}
    finish_pass(tracker)
    tracker.drain()
    assert tracker.state().rescan == ["d0"]


def test_a_dead_reader_is_noticed_and_not_trusted(tracker: ChangeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("broken")

    monkeypatch.setattr(tracker, "_notice_stall", fail)
    tracker._thread.join(10)
    assert tracker.state().rescans == {"READER_DIED": 1}
    finish_pass(tracker)
    tracker.drain()
    assert tracker.state().rescan == ["d0"]


def test_a_reader_that_hangs_is_not_trusted(tracker: ChangeTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_STALLED", 0.05)
    with tracker._reading:
        tracker.drain()
    assert tracker.state().rescan == ["d0"]
    assert tracker.state().rescans == {"READER_STALLED": 1}
    assert eventually(lambda: tracker.state().stalls > 0)


# --- Restarts and absence ---------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from fleetlift_agent.tracing import ChangeTracker, TrackedDisk
directory, device, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tracker = ChangeTracker.start(directory, "unit", [TrackedDisk.open("d0", device, size)], buffer_kib=int(sys.argv[4]))
for _ in tracker.changes().extents():
    pass
tracker.settle()
print("ready", flush=True)
sys.stdin.readline()
tracker.drain()
print("drained", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def killed_agent(directory: Path, disk: TrackedDisk, buffer_kib: int = 1024) -> Iterator[None]:
    """What an agent leaves that tracked a write at 0 and was killed. Its instance is removed in the end."""
    directory.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, directory, disk.device, str(SIZE), str(buffer_kib)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tracing.__file__).parent.parent)},
    )
    try:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "ready\n"
        write(disk.device, 0)
        print(file=child.stdin, flush=True)
        assert child.stdout.readline() == "drained\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    try:
        yield
    finally:
        ChangeTracker.start(directory, "unit", [disk], buffer_kib=64).close(remove=True)
        assert list(directory.iterdir()) == []


def test_a_killed_agent_is_continued(tmp_path: Path, disk: TrackedDisk) -> None:
    with killed_agent(tmp_path / "agent", disk):
        # Nobody is there to read it; the ring keeps it.
        write(disk.device, 3 * EXTENT)
        tracker = ChangeTracker.attach(tmp_path / "agent", "unit", [disk])
        assert tracker is not None
        tracker.drain()
        assert tracker.state().attached
        assert finish_pass(tracker) == {(0, 4096), (3 * EXTENT, 4096)}
        tracker.close(remove=False)
        # An orderly end keeps everything as well.
        write(disk.device, 4 * EXTENT)
        again = open_tracker(tmp_path / "agent", "unit", [disk])
        again.drain()
        assert finish_pass(again) == {(4 * EXTENT, 4096)}
        again.close(remove=False)


def test_an_overflow_between_two_agents_asks_for_a_rescan(tmp_path: Path, disk: TrackedDisk) -> None:
    with killed_agent(tmp_path / "agent", disk, buffer_kib=8):
        with direct(disk.device) as (fd, buffer), memoryview(buffer)[:512] as view:
            for number in range(3000):
                os.pwritev(fd, [view], number * 512)
        tracker = ChangeTracker.attach(tmp_path / "agent", "unit", [disk])
        assert tracker is not None
        tracker.drain()
        assert tracker.state().rescan == ["d0"]
        tracker.close(remove=False)


def test_another_boot_or_another_disk_starts_anew(
    tmp_path: Path, disk: TrackedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_agent(tmp_path / "agent", disk):
        grown = TrackedDisk(disk.id, disk.device, disk.number, disk.size + 512)
        assert ChangeTracker.attach(tmp_path / "agent", "unit", [grown]) is None
        elsewhere = TrackedDisk.open(disk.id, disk.device, disk.size, "another target")
        assert ChangeTracker.attach(tmp_path / "agent", "unit", [elsewhere]) is None
        # Where nothing else tells: what was away has counted nothing since.
        record = tmp_path / "agent/dirty/tracker.json"
        kept = record.read_text()
        value = json.loads(kept)
        value["activity"][0][1] += 1000
        record.write_text(json.dumps(value))
        assert ChangeTracker.attach(tmp_path / "agent", "unit", [disk]) is None
        record.write_text(kept)
        with monkeypatch.context() as patch:
            patch.setattr(tracing, "read_boot_id", lambda: "another")
            assert ChangeTracker.attach(tmp_path / "agent", "unit", [disk]) is None
            anew = open_tracker(tmp_path / "agent", "unit", [disk])
        assert not anew.state().attached
        assert anew.state().rescan == ["d0"]
        anew.close(remove=False)


def test_an_agent_killed_between_ring_and_map_asks_for_a_rescan(tmp_path: Path, disk: TrackedDisk) -> None:
    with killed_agent(tmp_path / "agent", disk):
        with (tmp_path / "agent/dirty/flags").open("r+b") as flags:
            flags.write(b"\1")
        tracker = ChangeTracker.attach(tmp_path / "agent", "unit", [disk])
        assert tracker is not None
        assert tracker.state().rescans == {"AGENT_INTERRUPTED": 1}
        assert tracker.state().rescan == ["d0"]
        tracker.close(remove=False)


def test_without_the_right_to_trace_everything_may_have_changed(tmp_path: Path, disk: TrackedDisk) -> None:
    program = f"""
import sys
from pathlib import Path
from fleetlift_agent.tracing import TrackedDisk, open_tracker, probe
directory = Path({str(tmp_path / "agent")!r})
print(probe(directory))
print(open_tracker(directory, "unit", [TrackedDisk.open("d0", Path({str(disk.device)!r}), {SIZE})]).state().mode)
"""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(tracing.__file__).parent.parent)},
    )
    reason, mode = done.stdout.splitlines()
    assert "cannot be mounted" in reason
    assert mode == "rehash"
    assert not (tmp_path / "agent/tracefs").exists()


def test_the_null_tracker_hands_out_every_byte_each_time() -> None:
    disk = TrackedDisk("d0", Path("/dev/null"), (1, 3), EXTENT + 512)
    tracker = NullTracker([disk], "no tracefs")
    for _ in range(2):
        assert finish_pass(tracker) == {(0, EXTENT), (EXTENT, 512)}
    assert tracker.state().reason == "no tracefs"
    assert tracker.dirty_bytes() == disk.size


def test_the_mount_of_an_agent_is_never_in_sight(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    first = find_tracefs(tmp_path)
    assert (first.path / "instances").is_dir()
    # Whoever removes the directory of an agent that was killed must not find the kernel's files in it.
    assert list(tmp_path.iterdir()) == []
    assert Path("/proc/self/mountinfo").read_text() == before
    first.close()
