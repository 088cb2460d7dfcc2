# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutover with a mounted, really frozen filesystem on the source disk."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loop_pair import MIB, Agent, MakePair, Pair, wait_for

pytestmark = pytest.mark.root


@contextmanager
def mounted_source(make_pair: MakePair) -> Iterator[tuple[Pair, Path]]:
    """A pair in sync whose source disk holds a mounted ext4 filesystem."""
    pair = make_pair(64 * MIB)
    device = pair.disks[0][0].device
    mountpoint = pair.sender.directory.parent / "mnt"
    mountpoint.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    subprocess.run(["mount", str(device), str(mountpoint)], check=True)
    try:
        (mountpoint / "before").write_text("before replication")
        pair.start()
        pair.replicate()
        yield pair, mountpoint
    finally:
        # Killing the sender lets the watchdog thaw whatever a failed test left frozen.
        if pair.sender.alive():
            pair.sender.kill()
        wait_for(lambda: not writer_blocks(mountpoint), "thawed")
        # The probing writers of the frozen time are just ending.
        wait_for(lambda: subprocess.run(["umount", str(mountpoint)]).returncode == 0, "unmounted")


def writer_blocks(mountpoint: Path, seconds: float = 0.5) -> bool:
    """Whether a write to the filesystem does not come back; the writer ends once it is thawed."""
    done = threading.Event()

    def write() -> None:
        (mountpoint / "probe").write_text("x")
        done.set()

    threading.Thread(target=write, daemon=True).start()
    return not done.wait(seconds)


def target_files(pair: Pair) -> dict[str, str]:
    """The files on a copy of the target's filesystem, after its journal was replayed."""
    target = pair.disks[0][1]
    copy = target.file.with_suffix(".copy")
    copy.write_bytes(target.content())
    mountpoint = target.file.with_suffix(".mnt")
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(copy), str(mountpoint)], check=True)
    try:
        return {path.name: path.read_text() for path in mountpoint.iterdir() if path.is_file()}
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


def test_frozen_source_is_copied_held_and_released(make_pair: MakePair) -> None:
    with mounted_source(make_pair) as (pair, mountpoint):
        (mountpoint / "late").write_text("written just before the cutover")

        cutover = pair.prepare(freeze=True)

        assert cutover["phase"] == "prepared", cutover
        assert cutover["frozen"] == [str(mountpoint)]
        assert {"approach", "stop_services", "flush", "freeze", "drain", "send", "verify"} <= set(cutover["timings"])
        assert writer_blocks(mountpoint)
        pair.assert_identical()
        files = target_files(pair)
        assert files["before"] == "before replication"
        assert files["late"] == "written just before the cutover"

        released = pair.sender.ctl("release", action="thaw")["cutover"]
        assert released["phase"] == "released"
        assert released["thawed_by"] == "release"
        assert released["timings"]["frozen_total"] > 0
        assert not writer_blocks(mountpoint)
        assert pair.receiver.state["phase"] == "sealed"
        assert pair.sender.ctl("cutover")["already_running"]
        assert pair.sender.ctl("release", action="thaw")["cutover"]["phase"] == "released"


def test_abort_thaws_and_unseals_and_the_cutover_can_be_repeated(make_pair: MakePair) -> None:
    with mounted_source(make_pair) as (pair, mountpoint):
        assert pair.prepare(freeze=True)["phase"] == "prepared"
        assert pair.receiver.state["sealed"] is not None

        aborted = pair.sender.ctl("abort")["cutover"]

        assert aborted["phase"] == "aborted"
        assert aborted["thawed_by"] == "abort"
        assert not writer_blocks(mountpoint)
        assert pair.receiver.state["sealed"] is None
        assert pair.sender.state["phase"] == "in_sync"
        assert pair.sender.refused("release", action="thaw")["code"] == "CUTOVER_NOT_PREPARED"
        assert pair.prepare(freeze=True)["phase"] == "prepared"
        assert pair.receiver.state["sealed"] is not None


def test_without_a_decision_the_watchdog_gives_the_source_back(make_pair: MakePair) -> None:
    with mounted_source(make_pair) as (pair, mountpoint):
        pair.sender.ctl("cutover", services=[], freeze=True, hold_timeout=1)
        cutover = pair.sender.cutover_phase("aborted")
        assert cutover["error"]["code"] == "HOLD_TIMED_OUT"
        assert cutover["thawed_by"] == "watchdog"
        assert not writer_blocks(mountpoint)
        wait_for(lambda: pair.receiver.state["sealed"] is None, "the target is no longer sealed")


def test_killed_sender_leaves_nothing_frozen(make_pair: MakePair) -> None:
    with mounted_source(make_pair) as (pair, mountpoint):
        assert pair.prepare(freeze=True)["phase"] == "prepared"
        assert writer_blocks(mountpoint)
        pair.sender.kill()
        wait_for(lambda: not writer_blocks(mountpoint), "the watchdog thawed", 10)


def test_freeze_that_lasts_too_long_ends_in_an_abort(make_pair: MakePair) -> None:
    with mounted_source(make_pair) as (pair, mountpoint):
        (mountpoint / "bulk").write_bytes(os.urandom(16 * MIB))
        pair.sender.ctl("set", bandwidth_limit=64 << 10)
        pair.sender.ctl("cutover", services=[], freeze=True, freeze_timeout=1)
        cutover = pair.sender.cutover_phase("aborted")
        assert cutover["error"]["code"] == "FREEZE_TIMED_OUT"
        assert cutover["thawed_by"] == "watchdog"
        assert not writer_blocks(mountpoint)
        pair.sender.ctl("set", bandwidth_limit=None)
        wait_for(lambda: pair.sender.state["phase"] == "in_sync", "in sync again")
        assert pair.prepare(freeze=True)["phase"] == "prepared"
        pair.assert_identical()


def test_shutdown_thaws_first(make_pair: MakePair) -> None:
    with mounted_source(make_pair) as (pair, mountpoint):
        assert pair.prepare(freeze=True)["phase"] == "prepared"
        pair.sender.ctl("shutdown")
        wait_for(lambda: not pair.sender.alive(), "the daemon ended")
        assert not writer_blocks(mountpoint)
        assert pair.receiver.state["sealed"] is None


def test_service_that_does_not_exist_aborts_before_anything_is_frozen(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.start()
    pair.replicate()
    pair.sender.ctl("cutover", services=["no-such-service"], freeze=False)
    cutover = pair.sender.cutover_phase("aborted")
    assert cutover["error"]["code"]
    assert cutover["frozen"] == []
    assert pair.sender.state["phase"] == "in_sync"


def test_cutover_is_refused_before_the_target_is_in_sync(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.start()
    assert pair.sender.refused("cutover")["code"] == "NOT_IN_SYNC"
    assert pair.sender.refused("release", action="thaw")["code"] == "CUTOVER_NOT_PREPARED"
    assert pair.sender.ctl("abort")["aborted"] is False


def test_write_after_sealing_unseals_even_after_a_restart(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.disks[0][0].write(0, os.urandom(2 * MIB))
    pair.start()
    pair.replicate()
    assert pair.prepare()["phase"] == "prepared"
    assert pair.sender.ctl("release", action="thaw")["cutover"]["phase"] == "released"
    pair.receiver.kill()
    pair.receiver.start()
    assert pair.receiver.state["phase"] == "sealed"
    assert pair.sender.ctl("replicate")["already_running"]
    pair.disks[0][0].write(0, b"changed")
    pair.refresh()
    assert pair.receiver.state["sealed"] is None
    assert pair.receiver.state["phase"] != "sealed"
    only_log(pair.receiver)


def only_log(agent: Agent) -> None:
    """Nothing a user can cause leaves a traceback in the log."""
    assert "Traceback" not in agent.log


def test_cutover_does_not_go_past_a_disk_that_nobody_planned_for(make_pair: MakePair) -> None:
    """This host's own disk: it is mounted, and not migrated."""
    pair = make_pair(4 * MIB)
    devices = pair.sender.config["left_behind"]
    assert devices, "this host runs from no disk"
    pair.sender.write_config(left_behind=[])
    pair.start()
    pair.replicate()
    told = wait_for(lambda: pair.sender.state["unplanned"], "it is told")
    assert [disk["device"] for disk in told] == devices
    cutover = pair.prepare()
    assert (cutover["phase"], cutover["error"]["code"]) == ("aborted", "SOURCE_DISK_UNPLANNED")
    assert cutover["quiesced_at"] is None
    assert pair.sender.phase("in_sync")
