# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that hash: the same leaves as ever, whatever happens to them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleetlift_agent import hash_pool
from fleetlift_agent.extents import EXTENT, SUB_BLOCK
from fleetlift_agent.hash_pool import HashPool
from fleetlift_agent.hashing import available_hashes, load_hash
from loop_pair import MIB, MakePair, Pair, wait_for


@pytest.fixture
def pool() -> Iterator[HashPool]:
    pool = HashPool(4)
    pool.start(2)
    yield pool
    pool.close()


def filled(pool: HashPool, content: bytes) -> memoryview:
    view = pool.buffers.take()[: len(content)]
    view[:] = content
    return view


@pytest.mark.parametrize("name", available_hashes())
@pytest.mark.parametrize("length", [EXTENT, EXTENT - 1000, 64 << 10, 4096, 100])
def test_leaves_are_those_of_the_plain_hash(pool: HashPool, name: str, length: int) -> None:
    content = os.urandom(length)
    plain = load_hash(name)
    leaves = b"".join(plain.leaf(content[at : at + SUB_BLOCK]) for at in range(0, length, SUB_BLOCK))
    assert pool.hash(name).leaves(filled(pool, content)) == leaves
    assert plain.leaves(memoryview(content)) == leaves


def test_the_processes_do_the_work(pool: HashPool) -> None:
    before = sum(cpu_ticks(pid) for pid in pool.pids)
    view = filled(pool, os.urandom(EXTENT))
    deadline = time.monotonic() + 20
    while sum(cpu_ticks(pid) for pid in pool.pids) < before + 10:
        assert pool.leaves(0, view)
        assert time.monotonic() < deadline, "nothing was hashed there"


def test_memory_that_is_not_shared_is_hashed_by_the_caller(pool: HashPool) -> None:
    taken = [pool.buffers.take() for _buffer in range(4)]
    private = pool.buffers.take()
    private[:] = os.urandom(EXTENT)
    assert pool.leaves(0, private) is None
    assert pool.hash("sha256").leaves(private) == load_hash("sha256").leaves(private)
    pool.buffers.give(private)
    for buffer in taken:
        pool.buffers.give(buffer)
    # What was not shared was not taken in, and what was is handed out again.
    assert all(pool.buffers.place(pool.buffers.take()) is not None for _buffer in range(4))
    assert pool.buffers.place(pool.buffers.take()) is None


def test_every_taker_has_a_buffer_of_his_own(pool: HashPool) -> None:
    views = [filled(pool, bytes([number]) * EXTENT) for number in range(1, 5)]
    assert [view[0] for view in views] == [1, 2, 3, 4]
    assert [view[-1] for view in views] == [1, 2, 3, 4]


def test_threads_share_the_processes(pool: HashPool) -> None:
    contents = [os.urandom(EXTENT) for _buffer in range(4)]
    views = [filled(pool, content) for content in contents]
    expected = [load_hash("sha256").leaves(memoryview(content)) for content in contents]
    wrong: list[int] = []

    def work(number: int) -> None:
        algorithm = pool.hash("sha256")
        for _round in range(50):
            if algorithm.leaves(views[number]) != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_killed_process_is_replaced_by_the_others_and_then_by_the_caller(pool: HashPool) -> None:
    content = os.urandom(EXTENT)
    view = filled(pool, content)
    algorithm = pool.hash("sha256")
    expected = load_hash("sha256").leaves(memoryview(content))
    for left in (1, 0):
        os.kill(pool.pids[0], signal.SIGKILL)
        wait_for(lambda: (algorithm.leaves(view), len(pool.pids))[1] == left, "the loss is noticed")  # noqa: B023
        assert algorithm.leaves(view) == expected
    assert pool.leaves(0, view) is None


def test_a_process_that_is_stopped_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_pool, "_PATIENCE", 1)
    pool = HashPool(1)
    pool.start(1)
    content = os.urandom(EXTENT)
    view = filled(pool, content)
    (stopped,) = pool.pids
    os.kill(stopped, signal.SIGSTOP)
    assert pool.hash("sha256").leaves(view) == load_hash("sha256").leaves(memoryview(content))
    assert pool.pids == [] and not Path(f"/proc/{stopped}").exists()


def test_without_processes_the_caller_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    pool = HashPool(1)
    pool.start(2)
    assert pool.pids == []
    content = os.urandom(EXTENT)
    assert pool.hash("sha256").leaves(filled(pool, content)) == load_hash("sha256").leaves(memoryview(content))


def test_it_ends_with_the_pool() -> None:
    pool = HashPool(1)
    pool.start(2)
    pids = pool.pids
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert pool.leaves(0, filled(pool, os.urandom(EXTENT))) is None


def hashing_processes(pair: Pair) -> list[int]:
    """The children of the two daemons."""
    return [
        int(child)
        for agent in (pair.sender, pair.receiver)
        for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    ]


def test_daemons_that_are_killed_take_them_along(make_pair: MakePair) -> None:
    pair = make_pair(4 * MIB)
    pair.start()
    pids = hashing_processes(pair)
    assert len(pids) == (4 if len(os.sched_getaffinity(0)) > 1 else 0)
    for agent in (pair.sender, pair.receiver):
        os.kill(agent.pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "they are gone")


def test_they_hold_nothing_of_the_daemon_open(make_pair: MakePair) -> None:
    """A disk or port that a process of the daemon holds could not be used by the next one."""
    pair = make_pair(4 * MIB)
    pair.start()
    for pid in hashing_processes(pair):
        held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if int(entry.name) > 2]
        assert len(held) == 1 and held[0].startswith("socket:"), held


def test_a_copy_is_right_although_they_are_killed(make_pair: MakePair) -> None:
    pair = make_pair(96 * MIB)
    content = os.urandom(96 * MIB)
    pair.disks[0][0].write(0, content)
    pair.sender.write_config(bandwidth_limit=30 * MIB)
    pair.start()
    pair.sender.ctl("replicate")
    wait_for(lambda: pair.sender.state["progress"]["bytes_done"] > 8 * MIB, "some of it is there")
    for pid in hashing_processes(pair):
        os.kill(pid, signal.SIGKILL)
    pair.sender.phase("in_sync", seconds=60)
    assert pair.disks[0][1].content() == content


def cpu_ticks(pid: int) -> int:
    return sum(int(value) for value in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
