# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sender's pass puts on its connections, and how much of it at once."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from fleetlift_agent import wire
from fleetlift_agent.compression import Economy, load_codec
from fleetlift_agent.connection import ConnectionLost
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.hashing import UNKNOWN, NullDetector, load_hash
from fleetlift_agent.mask import NullMask
from fleetlift_agent.passes import PassWork, WholeDisks
from fleetlift_agent.reader import BufferPool
from fleetlift_agent.sender import Pipeline, SenderDisk
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

    def __init__(self, session: Session, source: Source, mask: NullMask, work: PassWork | None = None) -> None:
        self.session = session
        self.work = work or PassWork(1, "initial", WholeDisks([source.size]), [source.size])
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
            None,
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
