# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sender's pass puts on its connections, and how much of it at once."""

from __future__ import annotations

import mmap
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import pytest
from fleetlift_agent import wire
from fleetlift_agent.bucket import TokenBucket
from fleetlift_agent.compression import Economy, load_codec
from fleetlift_agent.connection import ConnectionLost
from fleetlift_agent.extents import EXTENT, SUB_BLOCK
from fleetlift_agent.hash_pool import HashPool
from fleetlift_agent.hashing import UNKNOWN, NullDetector, load_hash
from fleetlift_agent.mask import NullMask
from fleetlift_agent.passes import NothingNew, PassWork, Ranges, WholeDisks
from fleetlift_agent.reader import BufferPool
from fleetlift_agent.sender import Cancelled, Losses, Pipeline, Replicator, Route, SenderDisk, pool_size
from fleetlift_agent.sender import Session as SenderSession
from fleetlift_agent.wire import ExtentKey
from loop_pair import wait_for

HASH = load_hash("blake3")
EXTENTS = 3000


class Source:
    """A disk of which nothing is read, or what a file holds."""

    logical_block_size = 512

    def __init__(self, extents: int, fd: int = -1) -> None:
        self.size = extents * EXTENT
        self.fd = fd


class AllFree(NullMask):
    """Nobody uses anything."""

    def free(self, _key: ExtentKey) -> list[tuple[int, int]]:
        return [(0, EXTENT)]


class SomeFree(NullMask):
    """Free is some of the first extent, not all of it whole sub-blocks; and of the last the inside of swap space."""

    free_bytes = (4 * SUB_BLOCK, 8 * SUB_BLOCK), (10 * SUB_BLOCK + 1024, 10 * SUB_BLOCK + 2048)
    swap_bytes = (0, 100 * SUB_BLOCK)

    def free(self, key: ExtentKey) -> list[tuple[int, int]]:
        return list(self.free_bytes) if key.extent == 0 else [self.swap_bytes] if key.extent == 3 else []

    def worthwhile(self, key: ExtentKey, ranges: Ranges) -> Ranges:
        return ranges if key.extent != 3 else tuple(part for part in ranges if part[0] >= self.swap_bytes[1])


class Connection:
    """Takes frames; sending one takes `seconds`, for which nobody waits for the link."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.link_seconds = 0.0
        self._seconds = seconds

    def send(self, kind: int, *parts: bytes | memoryview) -> None:
        time.sleep(self._seconds)
        self.frames.append((kind, b"".join(parts)))


class Session:
    """Four connections that answer when the test does."""

    hash = HASH
    bytes_out = 0
    failed = False
    failure: Exception | None = None

    def __init__(self, economy: Callable[[], Any], seconds: float = 0.0) -> None:
        self.economy = economy
        self.blank = [True]
        self.connections = [Connection(seconds) for _connection in range(4)]
        self.on_ack: Callable[[list[ExtentKey]], None] | None = None
        self.on_leaves: Callable[[wire.Leaves], None] | None = None

    def close(self, reason: Exception) -> None:
        self.failed, self.failure = True, reason

    def cleared(self) -> list[ExtentKey]:
        return [
            key
            for connection in self.connections
            for kind, payload in list(connection.frames)
            if kind == wire.CLEAR
            for key in wire.parse_extent_keys(payload)
        ]

    def unanswered(self, disk: SenderDisk) -> list[ExtentKey]:
        return [key for key in self.cleared() if disk.manifest.get(key.extent) == UNKNOWN]

    def answer(self, disk: SenderDisk) -> None:
        """Acknowledge what was asked for."""
        if self.on_ack is not None:
            self.on_ack(self.unanswered(disk))


def economy() -> Economy:
    return Economy(load_codec("none"))


class Pass:
    """A pass over one blank target, in a thread; over the work of an earlier one if need be."""

    def __init__(
        self,
        session: Session,
        source: Source,
        mask: NullMask,
        work: PassWork | None = None,
        differs: Callable[[ExtentKey, Ranges], None] | None = None,
    ) -> None:
        self.session = session
        self.work = work or PassWork(1, "audit" if differs else "initial", WholeDisks([source.size]), [source.size])
        self.disk = SenderDisk("d0", source, "serial")
        self.error: BaseException | None = None
        pool = BufferPool([memoryview(mmap.mmap(-1, EXTENT)) for _buffer in range(4)])
        self._pipeline = Pipeline(
            session,  # type: ignore[arg-type]
            [self.disk],
            self.work,
            pool,
            NullDetector(),
            mask,
            lambda _disk: True,
            differs,
            lambda: False,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        yield
        thread.join(30)
        assert not thread.is_alive()

    def _run(self) -> None:
        try:
            self._pipeline.run()
        except ConnectionLost as error:
            self.error = error


def settled(count: Callable[[], int]) -> int:
    """The count, once it does not grow any more."""
    known = -1
    while count() != known:
        known = count()
        time.sleep(0.3)
    return known


def test_extents_of_zeros_wait_for_the_target() -> None:
    session = Session(economy)
    subject = Pass(session, Source(EXTENTS), AllFree())
    with subject.running():
        assert settled(lambda: len(session.cleared())) <= 512

        def answered() -> bool:
            assert len(session.unanswered(subject.disk)) <= 512
            session.answer(subject.disk)
            return subject.work.wait(0)

        wait_for(answered, "all are named")
    assert subject.error is None
    assert sorted(session.cleared()) == [ExtentKey(0, extent) for extent in range(EXTENTS)]
    assert {subject.disk.manifest.get(extent) for extent in range(EXTENTS)} == {HASH.zero_digest(EXTENT)}
    assert subject.work.counters.bytes_zero == EXTENTS * EXTENT


def test_extents_of_zeros_that_a_lost_session_left_are_named_again() -> None:
    lost = Session(economy)
    source = Source(700)
    first = Pass(lost, source, AllFree())
    with first.running():
        settled(lambda: len(lost.cleared()))
        known = lost.cleared()[:100]
        assert lost.on_ack is not None
        lost.on_ack(known)
        lost.close(ConnectionLost("cut"))
    assert isinstance(first.error, ConnectionLost)
    first.work.requeue_open()
    again = Session(economy)
    second = Pass(again, source, AllFree(), first.work)
    with second.running():
        wait_for(lambda: len(again.cleared()) > 500, "what is left is named")
        wait_for(lambda: again.answer(second.disk) or second.work.wait(0), "all that is left is named")
    assert set(again.cleared()) == {ExtentKey(0, extent) for extent in range(700)} - set(known)


def test_what_sending_takes_on_a_busy_processor_is_not_blamed_on_the_link() -> None:
    told: list[float] = []

    class Told(Economy):
        def sent(self, wire_bytes: int, seconds: float) -> None:
            told.append(seconds)

    session = Session(lambda: Told(load_codec("none")), seconds=0.2)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(os.urandom(2 * EXTENT))
        file.flush()
        subject = Pass(session, Source(2, file.fileno()), NullMask())
        with subject.running():
            wait_for(lambda: sum(len(each.frames) for each in session.connections) == 2, "both are sent")
            assert session.on_ack is not None
            session.on_ack([ExtentKey(0, 0), ExtentKey(0, 1)])
    assert len(told) == 2
    assert max(told) < 0.1


def test_audit_tells_where_the_target_is_wrong_and_sends_nothing() -> None:
    """Right is what the source has, and zeros for what is free there; of swap's inside anything."""
    content = bytearray(os.urandom(4 * EXTENT))
    target = bytearray(content)

    def elsewhere(extent: int, first: int, count: int) -> None:
        at = extent * EXTENT + first * SUB_BLOCK
        target[at : at + count * SUB_BLOCK] = os.urandom(count * SUB_BLOCK)

    # Free: half of it as it is, for it changed once; and a quarter of a sub-block.
    target[4 * SUB_BLOCK : 6 * SUB_BLOCK] = bytes(2 * SUB_BLOCK)
    target[10 * SUB_BLOCK + 1024 : 10 * SUB_BLOCK + 2048] = bytes(1024)
    elsewhere(0, 7, 1)
    elsewhere(1, 3, 2)
    elsewhere(1, 200, 1)
    elsewhere(3, 50, 2)
    elsewhere(3, 255, 1)
    leaves = [HASH.leaves(memoryview(target)[at : at + EXTENT]) for at in range(0, 4 * EXTENT, EXTENT)]

    told: dict[ExtentKey, Ranges] = {}
    session = Session(economy)
    answered: set[tuple[int, bytes]] = set()

    def answer() -> None:
        for number, connection in enumerate(session.connections):
            for kind, payload in list(connection.frames):
                assert kind == wire.LEAVES_REQUEST
                if (number, payload) not in answered and session.on_leaves is not None:
                    answered.add((number, payload))
                    key = wire.parse_extent_key(memoryview(payload))
                    session.on_leaves(wire.Leaves(key, leaves[key.extent]))

    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(content)
        file.flush()
        subject = Pass(session, Source(4, file.fileno()), SomeFree(), differs=told.__setitem__)
        for extent, each in enumerate(leaves):
            subject.disk.learn(extent, HASH.digest(each))
        with subject.running():
            wait_for(lambda: answer() or subject.work.wait(0), "all is answered")
    assert subject.error is None
    assert told == {
        ExtentKey(0, 0): ((7 * SUB_BLOCK, SUB_BLOCK),),
        ExtentKey(0, 1): ((3 * SUB_BLOCK, 2 * SUB_BLOCK), (200 * SUB_BLOCK, SUB_BLOCK)),
        ExtentKey(0, 3): ((255 * SUB_BLOCK, SUB_BLOCK),),
    }
    assert len(answered) == 3
    # What the target holds is known as before: another pass sends what changed.
    assert [subject.disk.manifest.get(extent) for extent in range(4)] == [HASH.digest(each) for each in leaves]


def test_audit_does_not_judge_a_target_that_holds_something_else_than_it_vouched_for() -> None:
    told: dict[ExtentKey, Ranges] = {}
    session = Session(economy)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(os.urandom(EXTENT))
        file.flush()
        subject = Pass(session, Source(1, file.fileno()), NullMask(), differs=told.__setitem__)
        subject.disk.learn(0, HASH.zero_digest(EXTENT))

        def frames() -> list[int]:
            return [kind for connection in session.connections for kind, _payload in connection.frames]

        with subject.running():
            other = wire.Leaves(ExtentKey(0, 0), HASH.leaves(memoryview(bytearray(os.urandom(EXTENT)))))
            wait_for(lambda: frames() == [wire.LEAVES_REQUEST], "the target is asked")
            assert session.on_leaves is not None and session.on_ack is not None
            session.on_leaves(other)
            # Blank as it was said to be, it is not asked again.
            wait_for(lambda: sorted(frames()) == sorted([wire.LEAVES_REQUEST, wire.WRITE]), "the extent is sent")
            session.on_ack([ExtentKey(0, 0)])
    assert subject.error is None
    assert not told


def test_extent_that_the_target_was_found_to_hold_is_done_when_it_vouches_for_it() -> None:
    session = Session(economy)
    session.blank = [False]
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        content = bytearray(os.urandom(EXTENT))
        file.write(content)
        file.flush()
        subject = Pass(session, Source(1, file.fileno()), NullMask())
        leaves = HASH.leaves(memoryview(content))

        def frames(kind: int) -> list[bytes]:
            return [part for connection in session.connections for each, part in connection.frames if each == kind]

        with subject.running():
            wait_for(lambda: frames(wire.LEAVES_REQUEST), "the target is asked")
            assert session.on_leaves is not None and session.on_ack is not None
            session.on_leaves(wire.Leaves(ExtentKey(0, 0), leaves))
            (head,) = wait_for(lambda: frames(wire.WRITE), "the target is told")
            write = wire.parse_write(memoryview(head))
            assert (write.ranges, write.raw_length, write.digest) == ((), 0, HASH.digest(leaves))
            assert not subject.work.wait(0.3)
            session.on_ack([ExtentKey(0, 0)])
    assert subject.error is None
    assert subject.disk.manifest.get(0) == HASH.digest(leaves)
    assert subject.work.counters.bytes_skipped == EXTENT
    assert subject.work.counters.bytes_changed == 0


class Interrupted(Replicator):
    """A replicator whose passes are given up after they finished the first extent that they took."""

    def _persist(
        self, attempt: Callable[..., None], cancelled: Callable[[], bool], work: PassWork | None = None
    ) -> None:
        assert work is not None
        taken = work.take()
        assert taken is not None
        work.finish(taken[0])
        work.take()
        raise Cancelled


def interrupted(extents: int, *, scanning: bool) -> Interrupted:
    return Interrupted(
        migration="web1",
        disks=[SenderDisk("d0", Source(extents), "serial")],
        route=Route("192.0.2.1", 443, None, 4, 60.0),  # type: ignore[arg-type]
        bucket=TokenBucket(None),
        stalled=lambda _reason: None,
        mask=NullMask(),
        scanning=lambda _disk: scanning,
        hashes=HashPool(pool_size(4)),
    )


def test_what_is_owed_stays_so_when_its_pass_is_given_up() -> None:
    subject = interrupted(9, scanning=False)
    losses = Losses()
    for extent in (2, 5, 7):
        losses.lost.add(0, extent)
    subject._owe(losses)
    owed = {2, 5, 7}
    for left in (2, 1, 0):
        work = PassWork(1, "delta", NothingNew(), subject.sizes)
        with pytest.raises(Cancelled):
            subject.run_pass(work, lambda: True)
        still = {key.extent for key in subject._owed.keys}
        assert still < owed and len(still) == left
        assert subject.owes == bool(left)
        owed = still


class CutWhileTelling(SenderSession):
    """A session that ends after the first answer of a receiver that has forgotten everything."""

    def __init__(self, disks: list[SenderDisk]) -> None:
        self._disks = disks
        self.connections = [Connection()]  # type: ignore[list-item]
        self._digests = queue.SimpleQueue()
        self._answers = iter([wire.Digests(ExtentKey(0, 0), bytes(32 * wire.MAX_DIGESTS))])

    def _await(self, answers: Any, cancelled: Callable[[], bool] = lambda: False) -> Any:
        for answer in self._answers:
            return answer
        raise ConnectionLost("cut")


def test_losses_that_were_told_before_the_session_ended_are_owed() -> None:
    """The disk is being gone through, and these extents were done; in the next session nobody would miss them."""
    subject = interrupted(wire.MAX_DIGESTS + 1, scanning=True)
    for extent in (3, 4):
        subject.disks[0].confirm(extent, b"x" * 32, b"")
    with pytest.raises(ConnectionLost):
        subject._pull_digests(CutWhileTelling(list(subject.disks)), Losses())
    assert sorted(key.extent for key in subject._owed.keys) == [3, 4]


@pytest.mark.parametrize("all_unknown", [False, True])
def test_what_the_target_never_held_is_owed_to_a_verification(all_unknown: bool) -> None:
    """Elsewhere it comes in its turn, where the disk is gone through anyhow."""
    subject = interrupted(3, scanning=True)
    losses = Losses()
    losses.unknown.add(0, 1)
    subject._owe(losses, all_unknown=all_unknown)
    assert subject.owes == all_unknown
