# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live replication between two daemons: the copy follows a working source, and the last pass is small."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from block_devices import run
from loop_pair import MIB, Loop, MakePair, Pair, instance_of, remove_trace, wait_for
from test_replication import corrupt

pytestmark = pytest.mark.root

GRANULE = 4096


def live_pair(make_pair: MakePair, size: int = 64 * MIB, **config: Any) -> Pair:
    """A pair in sync, whose source has random content."""
    pair = make_pair(size, tracking=True)
    pair.disks[0][0].write(0, os.urandom(min(size, 48 * MIB)))
    pair.receiver.write_config(**config)
    pair.start()
    pair.replicate()
    return pair


def write_granules(pair: Pair, count: int, seed: int = 1) -> None:
    """Change granules, each in another extent, past every cache."""
    source = pair.disks[0][0]
    chance = random.Random(seed)
    extents = chance.sample(range(source.size // MIB), count)
    for extent in extents:
        source.write(extent * MIB + chance.randrange(256) * GRANULE, chance.randbytes(GRANULE))


def until_identical(pair: Pair) -> None:
    def same() -> bool:
        return all(source.content() == target.content(source.size) for source, target in pair.disks)

    wait_for(same, "the target caught up")


def read_since(before: dict[str, Any], after: dict[str, Any], name: str = "bytes_read") -> int:
    return int(after["totals"][name] - before["totals"][name])


def test_copy_follows_the_source_and_reads_only_what_changed(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    pair.assert_identical()
    before = pair.sender.state
    assert before["sync"]["mode"] == "tracking", before["sync"]
    assert [item["kind"] for item in before["passes"][:2]] == ["initial", "audit"]

    write_granules(pair, 20)
    until_identical(pair)

    after = wait_for(
        lambda: (state := pair.sender.state)["sync"]["backlog"] == 0 and read_since(before, state) and state, "settled"
    )
    assert after["phase"] == "in_sync"
    assert read_since(before, after) == 20 * GRANULE
    assert read_since(before, after, "bytes_sent") == 20 * GRANULE
    assert after["sync"]["lag"] < 10


def test_last_pass_does_not_depend_on_the_size_of_the_disk(make_pair: MakePair) -> None:
    pair = live_pair(make_pair, 1024 * MIB)
    pair.sender.ctl("set", bandwidth_limit=1 << 20)
    write_granules(pair, 10)
    cutover = pair.prepare()
    assert cutover["phase"] == "prepared", cutover
    last = pair.sender.state["passes"][-1]
    assert last["kind"] == "final"
    assert last["bytes_read"] <= 10 * GRANULE
    pair.assert_identical()


def test_writes_during_every_pass_reach_the_target(make_pair: MakePair) -> None:
    pair = make_pair(96 * MIB, tracking=True)
    pair.disks[0][0].write(0, os.urandom(64 * MIB))
    pair.start()
    stop = threading.Event()

    def scribble() -> None:
        chance = random.Random(7)
        while not stop.is_set():
            pair.disks[0][0].write(
                chance.randrange(96 * MIB // 512) * 512, chance.randbytes(512 * chance.randrange(1, 40))
            )

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        pair.sender.ctl("replicate", bandwidth_limit=32 * MIB)
        pair.sender.phase("in_sync", seconds=60)
        passes = len(pair.sender.state["passes"])
        wait_for(lambda: pair.sender.state["progress"]["pass"] > passes + 2, "passes while in sync")
    finally:
        stop.set()
        writer.join()
    pair.sender.ctl("set", bandwidth_limit=None)
    cutover = pair.prepare()
    assert cutover["phase"] == "prepared", cutover
    pair.assert_identical()


def test_source_that_never_pauses_is_in_sync_all_the_same(make_pair: MakePair) -> None:
    pair = make_pair(256 * MIB, tracking=True)
    source = pair.disks[0][0]
    pair.start()
    stop = threading.Event()

    def rewrite() -> None:
        # So much that at no moment everything that arrived was read back.
        with source.device.open("r+b", buffering=0) as device:
            while not stop.is_set():
                for extent in range(256):
                    os.pwrite(device.fileno(), os.urandom(GRANULE), extent * MIB)
                os.fsync(device.fileno())

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        pair.sender.ctl("replicate")
        pair.sender.phase("in_sync", seconds=60)
    finally:
        stop.set()
        writer.join()
    assert pair.prepare()["verified"]
    pair.assert_identical()


def test_killed_sender_goes_on_where_its_trace_stands(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    pair.sender.kill()
    write_granules(pair, 12)
    pair.sender.start()
    state = pair.replicate()
    pair.assert_identical()
    assert state["sync"]["tracker"]["attached"]
    assert state["passes"][0]["kind"] == "delta"
    assert state["passes"][0]["bytes_read"] == 12 * GRANULE
    assert pair.prepare()["verified"]
    pair.assert_identical()


def test_source_that_was_rebooted_is_read_once_more_and_not_sent_again(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    pair.sender.kill()
    # What a reboot takes: the trace in the kernel, and all that the agent kept in memory.
    remove_trace(pair)
    shutil.rmtree(pair.sender.directory / "dirty")
    for left_out in pair.sender.directory.glob("left-out.*"):
        left_out.unlink()
    write_granules(pair, 7)
    pair.sender.start()
    state = pair.replicate()
    pair.assert_identical()
    assert [item["kind"] for item in state["passes"][:2]] == ["rescan", "audit"]
    assert state["passes"][0]["bytes_read"] == 64 * MIB
    assert state["totals"]["bytes_sent"] == 7 * GRANULE
    assert state["sync"]["mode"] == "tracking"
    assert pair.prepare()["verified"]


@pytest.mark.skipif(not Path("/sys/block/loop0/diskseq").exists(), reason="Linux 5.15: a loop device stays otherwise")
def test_disk_that_was_away_meanwhile_is_not_trusted_for_its_number(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    source, _target = pair.disks[0]
    pair.sender.kill()
    source.reappear()
    changed = os.urandom(3 * GRANULE)
    with source.file.open("r+b") as elsewhere:
        elsewhere.seek(5 * MIB)
        elsewhere.write(changed)
    pair.sender.start()
    state = pair.replicate()
    assert not state["sync"]["tracker"]["attached"]
    assert state["passes"][0]["kind"] == "rescan"
    assert state["totals"]["bytes_sent"] == len(changed)
    pair.assert_identical()


def test_without_tracking_the_state_says_why_and_what_it_costs(make_pair: MakePair) -> None:
    pair = make_pair(64 * MIB, tracking=False)
    pair.disks[0][0].write(0, os.urandom(48 * MIB))
    pair.start()
    sync = pair.replicate()["sync"]
    assert (sync["mode"], sync["reason"]) == ("rehash", "it is switched off in the configuration")
    assert sync["send_rate"] > 0
    # The last pass reads the whole disk again.
    assert sync["final_pass"] == pytest.approx(0.3 + 64 * MIB / sync["send_rate"], abs=0.1)


@pytest.mark.parametrize("emptied", [False, True])
def test_target_that_lost_its_memory_is_made_whole_again(make_pair: MakePair, emptied: bool) -> None:
    pair = live_pair(make_pair)
    sent = pair.sender.state["totals"]["bytes_sent"]
    pair.receiver.kill()
    wait_for(lambda: pair.sender.state["stalled"], "the sender noticed")
    (pair.receiver.directory / "manifest-d0.bin").unlink()
    write_granules(pair, 5)
    if emptied:
        pair.disks[0][1].write(0, bytes(64 * MIB))
    pair.receiver.start()
    until_identical(pair)
    wait_for(lambda: not pair.sender.state["sync"]["backlog"], "settled")
    assert (pair.sender.state["totals"]["bytes_sent"] - sent > 40 * MIB) is emptied
    assert pair.prepare()["verified"]


def test_sender_and_target_that_both_lost_their_memory(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    pair.sender.kill()
    pair.receiver.kill()
    (pair.receiver.directory / "manifest-d0.bin").unlink()
    corrupt(pair.disks[0][1], 7 * MIB, b"something else")
    pair.receiver.start()
    pair.sender.start()
    pair.replicate()
    pair.assert_identical()


def test_corrupted_target_is_found_in_the_background_and_repaired(make_pair: MakePair) -> None:
    pair = live_pair(make_pair, scrub_interval=0)
    corrupt(pair.disks[0][1], 5 * MIB + 100, b"flipped bits")
    wait_for(lambda: (pair.receiver.state["read_back"] or {}).get("damaged"), "the receiver found it")
    until_identical(pair)
    assert pair.sender.state["phase"] == "in_sync"
    assert pair.prepare()["verified"]


def test_blocks_written_in_a_delta_are_read_back_too(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    write_granules(pair, 6)
    until_identical(pair)
    wait_for(lambda: (pair.receiver.state["read_back"] or {}).get("pending") == 0, "everything was read back")
    state = pair.prepare()
    assert state["verified"]


def test_trace_that_somebody_switches_off_is_answered_with_a_rescan(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    with instance_of(pair) as instance:
        (instance / "tracing_on").write_text("0")
    pair.disks[0][0].write(3 * MIB, os.urandom(MIB))
    until_identical(pair)
    state = wait_for(lambda: (state := pair.sender.state)["sync"]["tracker"]["rescans"] and state, "the rescan is told")
    assert "INSTANCE_CHANGED" in state["sync"]["tracker"]["rescans"]
    # And then changes are followed again.
    before = wait_for(lambda: not (state := pair.sender.state)["sync"]["tracker"]["rescan"] and state, "it is over")
    write_granules(pair, 9)
    until_identical(pair)
    after = wait_for(
        lambda: (state := pair.sender.state)["sync"]["backlog"] == 0 and read_since(before, state) and state, "settled"
    )
    assert read_since(before, after) == 9 * GRANULE
    assert pair.prepare()["verified"]
    pair.assert_identical()


def test_tracking_that_misses_a_write_is_not_used(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETLIFT_TEST_DEAF", f"0-{1 << 40}")
    pair = make_pair(48 * MIB, tracking=True)
    pair.disks[0][0].write(0, os.urandom(48 * MIB))
    pair.start()
    pair.sender.ctl("replicate", bandwidth_limit=16 * MIB)
    wait_for(lambda: pair.sender.state["progress"]["bytes_done"] > 12 * MIB, "something was sent")
    pair.disks[0][0].write(2 * MIB, b"unseen")
    pair.sender.ctl("set", bandwidth_limit=None)
    state = pair.sender.phase("in_sync")
    assert state["sync"]["mode"] == "rehash"
    assert "did not report it" in state["sync"]["reason"]
    pair.assert_identical()
    pair.disks[0][0].write(2 * MIB, b"again unseen")
    assert pair.prepare()["verified"]
    pair.assert_identical()


def test_write_that_was_missed_does_not_hide_behind_its_neighbour(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = 2 * MIB
    monkeypatch.setenv("FLEETLIFT_TEST_DEAF", f"{missed // 512}-{(missed + GRANULE) // 512 - 1}")
    pair = make_pair(48 * MIB, tracking=True)
    source = pair.disks[0][0]
    source.write(0, os.urandom(48 * MIB))
    pair.start()
    pair.sender.ctl("replicate", bandwidth_limit=16 * MIB)
    wait_for(lambda: pair.sender.state["progress"]["bytes_done"] > 12 * MIB, "something was sent")
    source.write(missed, os.urandom(GRANULE))
    with keeps_writing(source, missed + 16 * GRANULE):
        pair.sender.ctl("set", bandwidth_limit=None)
        state = pair.sender.phase("in_sync")
    assert state["sync"]["mode"] == "rehash"
    assert "extent 2 of" in state["sync"]["reason"]
    assert pair.prepare()["verified"]
    pair.assert_identical()


@contextmanager
def keeps_writing(source: Loop, offset: int) -> Iterator[None]:
    """Somebody who writes one granule all the time."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.01):
            source.write(offset, os.urandom(GRANULE))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_nothing_is_left_in_the_kernel(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    with instance_of(pair) as instance:
        assert instance.exists()
        pair.sender.ctl("shutdown")
        wait_for(lambda: not pair.sender.alive(), "the daemon ended")
        assert not instance.exists()


def test_what_a_killed_sender_left_in_the_kernel_can_be_removed(make_pair: MakePair) -> None:
    pair = live_pair(make_pair)
    pair.sender.kill()
    with instance_of(pair) as instance:
        assert instance.exists()
        for removed in (True, False):
            assert pair.sender.run("clean", "--dir", str(pair.sender.directory)) == (0, {"removed": removed})
        assert not instance.exists()


@contextmanager
def mounted(pair: Pair, kind: str) -> Iterator[Path]:
    device = pair.disks[0][0].device
    mountpoint = pair.sender.directory.parent / "mnt"
    mountpoint.mkdir()
    run(f"mkfs.{kind}", *(("-q",) if kind != "btrfs" else ("-q", "-f")), device)
    run("mount", device, mountpoint)
    try:
        yield mountpoint
    finally:
        if pair.sender.alive():
            pair.sender.kill()
        wait_for(lambda: subprocess.run(["umount", str(mountpoint)]).returncode == 0, "unmounted")


def free_garbage(mountpoint: Path, size: int) -> None:
    """Fill blocks with incompressible data, on disk, and free them again."""
    path = mountpoint / "garbage"
    path.write_bytes(os.urandom(size))
    run("sync", "--file-system", mountpoint)
    path.unlink()
    run("sync", "--file-system", mountpoint)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_free_blocks_stay_behind_and_what_comes_into_use_does_not(make_pair: MakePair, kind: str) -> None:
    pair = make_pair(384 * MIB, tracking=True)
    with mounted(pair, kind) as mountpoint:
        (mountpoint / "early").write_bytes(os.urandom(8 * MIB))
        free_garbage(mountpoint, 64 * MIB)
        pair.start()
        state = pair.replicate()
        assert state["sync"]["mode"] == "tracking"
        assert state["used_blocks"][0]["free"] > 200 * MIB, state["used_blocks"]
        assert state["totals"]["bytes_sent"] < 40 * MIB
        # Where garbage was is used now.
        for number in range(12):
            (mountpoint / f"late{number}").write_bytes(os.urandom(3 * MIB))
        (mountpoint / "early").unlink()
        cutover = pair.prepare(freeze=True)
        assert cutover["phase"] == "prepared", cutover
        assert pair.sender.ctl("release", action="thaw")["cutover"]["phase"] == "released"
        expected = {path.name: path.read_bytes() for path in mountpoint.iterdir() if path.is_file()}
        found = copied_files(pair, kind)
    assert found == expected


def copied_files(pair: Pair, kind: str) -> dict[str, bytes]:
    """The files on a copy of the target, after its log was replayed, in a filesystem that is found to be clean."""
    target = pair.disks[0][1]
    copy, mountpoint = target.file.with_suffix(".copy"), target.file.with_suffix(".mnt")
    run("cp", "--sparse=always", target.file, copy)
    if kind == "btrfs":
        # Two mounted filesystems may not have the same identity in one kernel.
        run("btrfstune", "-f", "-u", copy)
    mountpoint.mkdir()
    run("mount", "-o", "loop,nouuid" if kind == "xfs" else "loop", copy, mountpoint)
    try:
        files = {path.name: path.read_bytes() for path in mountpoint.iterdir() if path.is_file()}
    finally:
        run("umount", mountpoint)
    check = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n", "-f"), "btrfs": ("btrfs", "check", "--readonly")}
    run(*check[kind], copy)
    return files


def in_use_since(pair: Pair, mountpoint: Path) -> Path:
    """Start the pair; then a file in blocks that nobody used, which has reached the target."""
    pair.start()
    before = pair.replicate()
    new = mountpoint / "new"
    new.write_bytes(os.urandom(12 * MIB))
    run("sync", "--file-system", mountpoint)
    wait_for(
        lambda: read_since(before, state := pair.sender.state) >= 12 * MIB and not state["sync"]["backlog"], "sent"
    )
    return new


def test_new_file_is_on_the_target_before_any_cutover(make_pair: MakePair) -> None:
    """Whole extents that nobody used when the disk was looked at, and that are full of data now."""
    pair = make_pair(256 * MIB, tracking=True)
    with mounted(pair, "ext4") as mountpoint:
        new = in_use_since(pair, mountpoint)
        expected = new.read_bytes()
        assert copied_files(pair, "ext4")["new"] == expected


def test_what_was_used_for_a_while_is_no_reason_to_give_up_tracking(make_pair: MakePair) -> None:
    """Blocks that were free, written, sent as they were, and are free again: the target holds them, and may."""
    pair = make_pair(256 * MIB, tracking=True)
    with mounted(pair, "ext4") as mountpoint:
        new = in_use_since(pair, mountpoint)
        new.unlink()
        run("sync", "--file-system", mountpoint)
        pair.sender.kill()
        pair.sender.start()
        state = pair.replicate()
        assert "audit" in [item["kind"] for item in state["passes"]]
        assert state["sync"]["mode"] == "tracking", state["sync"]["reason"]
        assert pair.prepare(freeze=True)["verified"]


def test_hooks_run_around_the_freeze(make_pair: MakePair) -> None:
    pair = make_pair(64 * MIB, tracking=True)
    notes = pair.sender.directory / "notes"
    with mounted(pair, "ext4") as mountpoint:
        pair.start()
        pair.replicate()
        hooks = {
            "pre_freeze": [f"echo before >> {notes}", f"echo late > {mountpoint}/late"],
            "post_thaw": [f"echo after >> {notes}"],
        }
        assert pair.prepare(freeze=True, **hooks)["phase"] == "prepared"
        assert notes.read_text() == "before\n"
        assert pair.sender.ctl("abort")["cutover"]["phase"] == "aborted"
        assert notes.read_text() == "before\nafter\n"
        refused = pair.prepare(freeze=True, **{**hooks, "pre_freeze": ["echo no; exit 3"]})
        assert refused["phase"] == "aborted"
        assert refused["error"]["code"] == "HOOK_FAILED"
        assert refused["error"]["evidence"] == {"status": 3, "output": "no"}
        assert notes.read_text() == "before\nafter\nafter\n"
        wait_for(lambda: pair.sender.state["phase"] == "in_sync", "in sync again")
        (mountpoint / "later").write_text("still followed")
        run("sync", "--file-system", mountpoint)
        until_identical(pair)
