# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication from end to end between two daemons."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest
from fleetlift_agent import hash_pool, receiver, sender, wire
from fleetlift_agent.hashing import load_hash
from loop_pair import MIB, Loop, MakePair, Pair, wait_for

pytestmark = pytest.mark.root

SUB_BLOCK = 4 << 10
LEAF = 16


def independent_root(content: list[bytes], hash_name: str) -> str:
    """The migration's root hash, computed from the description in docs/wire-protocol.md and nothing else."""
    digest = load_hash(hash_name).digest
    roots = []
    for disk in content:
        extents = [disk[at : at + MIB] for at in range(0, len(disk), MIB)]
        digests = [
            digest(b"".join(digest(extent[at : at + SUB_BLOCK])[:LEAF] for at in range(0, len(extent), SUB_BLOCK)))
            for extent in extents
        ]
        roots.append(digest(b"".join(digests)))
    return digest(b"".join(roots)).hex()


def durable_bytes(pair: Pair) -> int:
    """Bytes that the receiver's manifest vouches for, and that are not zero on the target."""
    path = pair.receiver.directory / "manifest-d0.bin"
    data = path.read_bytes()[4096:] if path.exists() else b""
    zero: bytes = load_hash("blake3").extent_digest(memoryview(bytes(MIB)))
    digests = [data[at : at + 32] for at in range(0, len(data), 32)]
    return MIB * len([digest for digest in digests if digest not in (bytes(32), zero)])


def test_running_source_ends_up_identical_on_the_target(make_pair: MakePair) -> None:
    pair = make_pair(24 * MIB + 4096, 32 * MIB, disks=2)
    pair.disks[0][0].write(0, os.urandom(9 * MIB))
    pair.disks[0][0].write(20 * MIB, b"text " * 100000)
    pair.disks[1][0].write(24 * MIB, os.urandom(4096))
    # The target is an instance's disk: it had a system on it, also where the source has zeros.
    pair.disks[0][1].write(3 * MIB, os.urandom(20 * MIB))
    beyond = os.urandom(MIB)
    pair.disks[0][1].write(28 * MIB, beyond)
    pair.start()

    state = pair.replicate()

    pair.assert_identical()
    assert pair.disks[0][1].content()[28 * MIB : 29 * MIB] == beyond
    assert [item["kind"] for item in state["passes"]] == ["initial", "delta"]
    assert state["passes"][0]["bytes_read"] == 2 * (24 * MIB + 4096)
    assert state["passes"][1]["bytes_sent"] == 0

    cutover = pair.prepare()

    assert cutover["phase"] == "prepared", cutover
    assert cutover["verified"]
    content = [target.content(source.size) for source, target in pair.disks]
    assert cutover["root_hash"] == independent_root(content, state["features"]["hash"])
    receiver = pair.receiver.state
    assert receiver["phase"] == "sealed"
    assert receiver["sealed"]["root_hash"] == cutover["root_hash"]
    final = pair.sender.state
    assert final["passes"][-1]["kind"] == "final"
    assert [disk["root_hash"] for disk in final["disks"]] == [disk["root_hash"] for disk in receiver["disks"]]
    released = pair.sender.ctl("release", action="thaw")["cutover"]
    assert released["phase"] == "released"
    assert pair.receiver.state["sealed"] is not None


def test_zeros_travel_without_data_and_a_blank_target_stays_sparse(make_pair: MakePair) -> None:
    pair = make_pair(64 * MIB)
    pair.disks[0][0].write(10 * MIB, os.urandom(MIB))
    pair.start()
    state = pair.replicate()
    pair.assert_identical()
    assert state["passes"][0]["bytes_sent"] == MIB
    assert state["passes"][0]["bytes_zero"] == 63 * MIB
    assert state["passes"][0]["bytes_wire"] < MIB + 64 * 1024
    assert pair.disks[0][1].file.stat().st_blocks * 512 < 2 * MIB


def test_delta_sends_only_the_changed_sub_blocks(make_pair: MakePair) -> None:
    pair = make_pair(16 * MIB)
    source = pair.disks[0][0]
    source.write(0, os.urandom(16 * MIB))
    pair.start()
    before = pair.replicate()["totals"]
    source.write(3 * MIB + 5 * SUB_BLOCK + 100, b"changed")
    source.write(9 * MIB + SUB_BLOCK - 1, b"xx")
    source.write(12 * MIB, bytes(SUB_BLOCK))
    assert pair.sender.ctl("replicate")["already_running"]
    state = pair.refresh()
    pair.assert_identical()
    assert state["totals"]["bytes_sent"] - before["bytes_sent"] == 3 * SUB_BLOCK
    assert state["totals"]["bytes_zero"] - before["bytes_zero"] == SUB_BLOCK


@pytest.mark.parametrize(
    ("compression", "limit", "least", "most"),
    [("auto", 8 * MIB, 0, 0.2), ("always", None, 0, 0.2), ("never", None, 1, 1.1)],
)
def test_content_is_compressed_where_that_is_wanted(
    make_pair: MakePair, compression: str, limit: int | None, least: float, most: float
) -> None:
    pair = make_pair(16 * MIB)
    pair.disks[0][0].write(0, b"all work and no play\n" * (15 * MIB // 21))
    pair.sender.write_config(compression=compression, bandwidth_limit=limit)
    pair.start()
    totals = pair.replicate()["totals"]
    pair.assert_identical()
    assert least < totals["bytes_wire"] / totals["bytes_sent"] < most


def throttled_half_way(make_pair: MakePair, size: int = 48) -> Pair:
    """A pair whose random disk is replicated slowly enough to be interrupted, a quarter of it durable."""
    pair = make_pair(size * MIB)
    pair.disks[0][0].write(0, os.urandom(size * MIB))
    pair.start()
    pair.sender.ctl("replicate", bandwidth_limit=16 * MIB)
    wait_for(lambda: durable_bytes(pair) >= size // 4 * MIB, "a quarter is durable")
    return pair


def test_killed_sender_continues_and_resends_only_what_was_not_durable(make_pair: MakePair) -> None:
    pair = throttled_half_way(make_pair)
    pair.sender.kill()
    wait_for(lambda: pair.receiver.state["phase"] == "listening", "the receiver noticed")
    durable = durable_bytes(pair)
    assert 12 * MIB <= durable < 48 * MIB
    pair.sender.start()
    state = pair.replicate(bandwidth_limit=None)
    pair.assert_identical()
    assert state["totals"]["bytes_sent"] == 48 * MIB - durable
    assert pair.prepare()["verified"]


def test_killed_receiver_continues_and_what_it_wrote_is_not_sent_again(make_pair: MakePair) -> None:
    pair = throttled_half_way(make_pair)
    pair.receiver.kill()
    stalled = wait_for(lambda: pair.sender.state["stalled"], "the sender says that it stalls")
    assert stalled["reason"]
    durable = durable_bytes(pair)
    assert durable >= 12 * MIB
    pair.sender.ctl("set", bandwidth_limit=None)
    pair.receiver.start()
    state = pair.sender.phase("in_sync")
    assert state["stalled"] is None
    pair.assert_identical()
    # Four connections, each with one extent under way and a socket buffer full of others.
    assert state["totals"]["bytes_sent"] <= 48 * MIB + 16 * MIB
    resent = state["totals"]["bytes_sent"] - 48 * MIB
    assert resent <= 48 * MIB - durable
    assert pair.prepare()["verified"]


def test_target_rebooted_without_its_manifest_is_compared_and_not_sent_again(make_pair: MakePair) -> None:
    pair = make_pair(32 * MIB)
    pair.disks[0][0].write(0, os.urandom(20 * MIB))
    pair.start()
    sent = pair.replicate()["totals"]["bytes_sent"]
    for restart_sender in (False, True):
        pair.receiver.kill()
        (pair.receiver.directory / "manifest-d0.bin").unlink()
        if restart_sender:
            pair.sender.kill()
            pair.sender.start()
            sent = 0
        pair.receiver.start()
        state = pair.refresh()
        assert state["totals"]["bytes_sent"] == sent
        pair.assert_identical()


def test_corruption_behind_the_receiver_is_found_and_repaired(make_pair: MakePair) -> None:
    pair = make_pair(16 * MIB)
    source, target = pair.disks[0]
    source.write(0, os.urandom(16 * MIB))
    pair.start()
    pair.replicate()
    before = pair.sender.state["totals"]["bytes_sent"]
    corrupt(target, 5 * MIB + 100, b"flipped bits")
    assert source.content() != target.content()
    cutover = pair.prepare(verify_age=0)
    assert cutover["phase"] == "prepared", cutover
    pair.assert_identical()
    state = pair.sender.state
    # Found while the services still run, and not in the time that counts.
    assert [item["kind"] for item in state["passes"]][-2:] == ["repair", "final"]
    assert state["passes"][-2]["bytes_sent"] == SUB_BLOCK
    assert state["passes"][-1]["bytes_sent"] == 0
    assert state["totals"]["bytes_sent"] - before == SUB_BLOCK


def test_target_that_refuses_writes_fails_loudly_and_replication_continues_afterwards(make_pair: MakePair) -> None:
    pair = make_pair(24 * MIB)
    source, target = pair.disks[0]
    source.write(0, os.urandom(24 * MIB))
    with limited_medium(target, 8 * MIB) as enlarge:
        pair.start()
        pair.sender.ctl("replicate")
        failed = pair.sender.phase("failed")
        # A write that the medium refused may first show when the same extent is read back.
        assert failed["error"]["code"] in ("TARGET_WRITE_FAILED", "DISK_READ_FAILED")
        assert "(disk-0)" in failed["error"]["cause"]
        wait_for(lambda: pair.receiver.state["phase"] == "failed", "the receiver says so as well")
        enlarge(64 * MIB)
        state = pair.replicate()
        assert state["error"] is None
        pair.assert_identical()
        assert pair.prepare()["verified"]


def test_final_pass_does_not_trust_the_change_detector(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETLIFT_TEST_BLIND", "1")
    pair = make_pair(4 * MIB)
    source = pair.disks[0][0]
    source.write(0, os.urandom(4 * MIB))
    pair.start()
    pair.replicate()
    source.write(MIB, b"changed without being seen")
    assert pair.refresh()["passes"][-1]["bytes_sent"] == 0
    assert pair.prepare()["verified"]
    pair.assert_identical()
    assert [item["kind"] for item in pair.sender.state["passes"]][-1] == "final"


def test_restarted_sender_in_sync_sends_nothing_at_all(make_pair: MakePair) -> None:
    pair = make_pair(64 * MIB)
    pair.disks[0][0].write(0, os.urandom(64 * MIB))
    pair.start()
    pair.replicate()
    pair.sender.kill()
    pair.sender.start()
    first = pair.replicate()["passes"][0]
    assert first["bytes_skipped"] == first["bytes_read"] == 64 * MIB
    # Not even a question for each extent; a heartbeat may fall into the pass.
    assert first["bytes_wire"] < 64 * 16


def test_target_replaced_in_the_middle_of_a_pass_is_filled_within_that_pass(make_pair: MakePair) -> None:
    pair = throttled_half_way(make_pair)
    pair.sender.ctl("set", bandwidth_limit=1 << 20)
    pair.sender.ctl("replicate", max_passes=1)
    pair.receiver.kill()
    (pair.receiver.directory / "manifest-d0.bin").unlink()
    pair.disks[0][1].write(0, bytes(48 * MIB))
    pair.sender.ctl("set", bandwidth_limit=None)
    pair.receiver.start()
    state = pair.sender.phase("in_sync")
    assert [item["kind"] for item in state["passes"]] == ["initial"]
    pair.assert_identical()


@contextmanager
def limited_medium(target: Loop, size: int) -> Iterator[Callable[[int], None]]:
    """Move the loop device's file into a tmpfs that is too small for it; yields what changes its size."""
    target.detach()
    mountpoint = target.file.with_suffix(".small")
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(mountpoint)], check=True)
    target.file = mountpoint / "target.img"
    with target.file.open("wb") as stream:
        stream.truncate(target.size)
    subprocess.run(["losetup", str(target.device), str(target.file)], check=True)

    def resize(new: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={new}", str(mountpoint)], check=True)

    try:
        yield resize
    finally:
        # The device lets go of the file once its last user is gone.
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)


def corrupt(target: Loop, offset: int, data: bytes) -> None:
    """Change the medium under the receiver's exclusively opened device."""
    with target.file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)
    assert target.content()[offset : offset + len(data)] == data


def test_bandwidth_limit_changes_while_it_runs(make_pair: MakePair) -> None:
    pair = make_pair(64 * MIB)
    pair.disks[0][0].write(0, os.urandom(64 * MIB))
    pair.start()
    pair.sender.ctl("replicate", bandwidth_limit=64 << 10)
    wait_for(lambda: pair.sender.state["totals"]["bytes_wire"] > 64 << 10, "something was sent")
    started = pair.sender.state
    wait_for(lambda: pair.sender.state["updated"] - started["updated"] >= 2, "two seconds of throttled sending")
    slow = pair.sender.state
    rate = (slow["totals"]["bytes_wire"] - started["totals"]["bytes_wire"]) / (slow["updated"] - started["updated"])
    assert rate < 10 * (64 << 10)
    assert pair.sender.ctl("set", bandwidth_limit=None)["bandwidth_limit"] is None
    state = pair.sender.phase("in_sync", seconds=20)
    assert state["bandwidth_limit"] is None
    pair.assert_identical()
    assert "BANDWIDTH" not in pair.sender.log
    assert pair.sender.refused("set", bandwidth_limit=1)["code"] == "CONFIG_INVALID"


def test_stopped_replication_keeps_what_was_sent(make_pair: MakePair) -> None:
    pair = throttled_half_way(make_pair)
    assert pair.sender.ctl("stop") == {"ok": True, "was_running": True}
    assert pair.sender.state["phase"] == "stopped"
    assert pair.sender.ctl("stop") == {"ok": True, "was_running": False}
    pair.sender.ctl("replicate", bandwidth_limit=None)
    state = pair.sender.phase("in_sync")
    pair.assert_identical()
    assert state["totals"]["bytes_sent"] <= 48 * MIB + 16 * MIB


def test_sender_holds_its_disks_read_only_and_direct(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.start()
    device = str(pair.disks[0][0].device)
    process = Path(f"/proc/{pair.sender.pid}")
    held = [fd for fd in (process / "fd").iterdir() if os.readlink(fd) == device]
    assert held
    for fd in held:
        flags = int((process / "fdinfo" / fd.name).read_text().split("flags:")[1].split()[0], 8)
        assert flags & os.O_ACCMODE == os.O_RDONLY
        assert flags & os.O_DIRECT


def test_memory_stays_within_the_stated_bound(make_pair: MakePair) -> None:
    size = 2048 * MIB
    pair = make_pair(size)
    for at in range(0, 2048, 32):
        pair.disks[0][0].write(at * MIB, os.urandom(MIB))
    pair.start()
    pair.replicate()
    assert_bounded(pair, size)


@pytest.mark.parametrize("size", [1 << 40, 16 << 40])
def test_memory_for_huge_disks_is_what_is_stated(make_pair: MakePair, size: int) -> None:
    """Sparse disks, tracked: the manifests, the digests of all extents on both sides, and a pass that runs."""
    pair = make_pair(size, tracking=True)
    for at in range(0, 512, 2):
        pair.disks[0][0].write(at * MIB, os.urandom(MIB))
    pair.start()
    pair.sender.ctl("replicate")
    wait_for(lambda: pair.sender.state["progress"]["bytes_done"] > 256 * MIB, "some of it is there", 240)
    # Granules all over the disk, so that the map of what changed is as large as it gets for so few.
    for at in range(0, size, size // 64):
        pair.disks[0][0].write(at, os.urandom(4096))
    wait_for(lambda: pair.sender.state["progress"]["bytes_done"] > 512 * MIB, "some more", 240)
    assert_bounded(pair, size)


def assert_bounded(pair: Pair, size: int) -> None:
    bounds = ((pair.sender, sender.memory_bound(size, 4)), (pair.receiver, receiver.memory_bound(size, 4)))
    for agent, bound in bounds:
        status = Path(f"/proc/{agent.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        print(agent.config["role"], size >> 40, "TiB:", peak >> 20, "MiB of", bound >> 20)
        assert peak <= bound, f"{agent.config['role']}: {peak} > {bound}"
        for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
            rollup = Path(f"/proc/{child}/smaps_rollup").read_text()
            own = sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Private_"))
            assert own <= hash_pool.OWN_MEMORY


def test_command_line_speaks_json(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    directory = ("--dir", str(pair.sender.directory))
    status, reply = pair.sender.run("ctl", *directory, "status")
    assert (status, reply["error"]["code"]) == (1, "AGENT_NOT_RUNNING")
    pair.sender.start()
    status, reply = pair.sender.run("ctl", *directory, "set", data={"bandwidth_limit": 1 << 20})
    assert (status, reply) == (0, {"ok": True, "bandwidth_limit": 1 << 20})
    status, reply = pair.sender.run("ctl", *directory, "status")
    assert (status, reply["phase"], reply["bandwidth_limit"]) == (0, "idle", 1 << 20)
    status, reply = pair.sender.run("ctl", *directory, "frobnicate")
    assert (status, reply["error"]["code"]) == (1, "COMMAND_UNKNOWN")
    status, reply = pair.receiver.run("ctl", "--dir", "/nonexistent", "status")
    assert (status, reply["error"]["code"]) == (1, "AGENT_NOT_RUNNING")


def test_start_is_idempotent_and_shutdown_ends_the_daemon(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    first = pair.receiver.start()
    second = pair.receiver.start()
    assert first == {"pid": pair.receiver.pid, "already_running": False}
    assert second == {"pid": first["pid"], "already_running": True}
    assert pair.receiver.ctl("status")["phase"] == "listening"
    pair.receiver.ctl("shutdown")
    wait_for(lambda: not pair.receiver.alive(), "the daemon ends")
    assert pair.receiver.refused("status")["code"] == "AGENT_NOT_RUNNING"


def test_unusable_configuration_is_refused_before_anything_runs(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    for agent, changes, code in (
        (pair.sender, {"disks": []}, "CONFIG_INVALID"),
        (pair.sender, {"disks": [{**pair.sender.config["disks"][0], "device": "/dev/null"}]}, "SOURCE_DISK_NOT_A_DISK"),
        (pair.receiver, {"disks": [{"id": "d0", "serial": "disk-0", "size": 8 * MIB}]}, "TARGET_DISK_TOO_SMALL"),
        (pair.receiver, {"schema": 2}, "CONFIG_INVALID"),
    ):
        kept = dict(agent.config)
        agent.write_config(**changes)
        status, reply = agent.run("start", "--dir", str(agent.directory))
        assert (status, reply["error"]["code"]) == (1, code)
        assert not agent.alive()
        agent.write_config(**kept)


def test_version_tells_what_this_host_can_do(make_pair: MakePair) -> None:
    status, reply = make_pair(MIB).sender.run("version")
    assert status == 0
    assert reply["protocol"] == wire.PROTOCOL
    assert "sha256" in reply["features"]["hash"]
    assert reply["features"]["compression"][-1] == "none"


def test_state_is_always_complete_json(make_pair: MakePair) -> None:
    pair = throttled_half_way(make_pair)
    for _ in range(200):
        state = json.loads((pair.sender.directory / "state.json").read_text())
        assert state["schema"] == 1
    assert (pair.sender.directory / "state.json").stat().st_mode & 0o777 == 0o600
