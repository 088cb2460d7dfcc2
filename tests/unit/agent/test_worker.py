# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a receiver makes of the frames of one connection."""

from __future__ import annotations

import functools
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleetlift_agent import wire
from fleetlift_agent.compression import CODEC_NONE
from fleetlift_agent.connection import ConnectionLost
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, Range
from fleetlift_agent.features import Features
from fleetlift_agent.hashing import load_hash
from fleetlift_agent.receiver import Session, Worker
from fleetlift_agent.replica import ReplicaDisk
from fleetlift_agent.wire import ExtentKey
from loop_pair import MIB, Loop, replica_on

pytestmark = pytest.mark.root

HASH = load_hash("blake3")
# The last extent is short, and so is its last sub-block.
SIZE = 4 * MIB + 4096 + 512


class Sender:
    """A connection over which these frames come, and then no more."""

    def __init__(self, frames: list[tuple[int, bytes]]) -> None:
        self._frames = frames
        self._payload = b""
        self.sent: list[tuple[int, bytes]] = []

    def receive_header(self) -> tuple[int, int]:
        if not self._frames:
            raise ConnectionLost("no more frames")
        kind, self._payload = self._frames.pop(0)
        return kind, len(self._payload)

    def receive_payload(self, _kind: int, length: int) -> memoryview:
        view = memoryview(bytearray(length))
        self.read_into(view)
        return view

    def read_into(self, view: memoryview) -> None:
        view[:], self._payload = self._payload[: len(view)], self._payload[len(view) :]

    def send(self, kind: int, *parts: bytes) -> None:
        self.sent.append((kind, b"".join(parts)))

    def close(self) -> None:
        """There is nothing to close."""


class Receiver:
    def __init__(self) -> None:
        self.seal = "sealed"

    def unseal(self) -> None:
        self.seal = ""

    def wrote(self, size: int) -> None:
        """Nobody counts here."""


@dataclass
class Scene:
    loop: Loop
    disk: ReplicaDisk
    receiver: Receiver
    session: Session | None = None

    def serve(self, *frames: tuple[int, bytes], sender: Any = None) -> list[tuple[int, bytes]]:
        """What was answered to these frames, once all of it is durable."""
        sender = sender or Sender(list(frames))
        agreed = Features(hash="blake3", compression="none")
        session = self.session = Session("0" * 32, [self.disk], agreed, lambda _error: None, HASH)
        session.join(0, sender, threading.current_thread())
        buffers = [memoryview(mmap.mmap(-1, EXTENT)) for _buffer in range(2)]
        worker = Worker(session, sender, self.receiver, *buffers)  # type: ignore[arg-type]
        try:
            with pytest.raises(ConnectionLost):
                worker.serve()
        finally:
            session.committer.close()
        return sender.sent  # type: ignore[no-any-return]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with replica_on(tmp_path / "target", 5 * MIB, SIZE) as (loop, disk):
        disk.open_manifest(tmp_path, "blake3")
        yield Scene(loop, disk, Receiver())


def keys(*extents: int) -> bytes:
    return wire.pack_extent_keys([ExtentKey(0, extent) for extent in extents])


def test_zeros_are_written_over_something_and_then_read_back(scene: Scene) -> None:
    scene.loop.write(MIB, os.urandom(MIB))
    scene.loop.write(3 * MIB - 1, b"x")
    scene.loop.write(SIZE - 1, b"xy")
    answers = scene.serve((wire.CLEAR, keys(0, 1, 2, 4)))
    assert [key for kind, payload in answers for key in wire.parse_extent_keys(payload) if kind == wire.ACK] == [
        ExtentKey(0, extent) for extent in (0, 1, 2, 4)
    ]
    content = scene.loop.content()
    assert content[:SIZE] == bytes(SIZE)
    assert content[SIZE:] == b"y" + bytes(5 * MIB - SIZE - 1), "what is behind the disk stays"
    assert [kind for kind, _payload in answers][0] == wire.PONG, "the sender hears of a slow disk"
    # What was zero was seen to be, and what was not is not believed before it is read.
    assert list(scene.disk.read_back.unproved(None)) == [1, 2, 4]
    assert [scene.disk.manifest.get(extent) for extent in (0, 1, 2, 4)] == [
        HASH.extent_digest(memoryview(bytes(size))) for size in (MIB, MIB, MIB, SIZE - 4 * MIB)
    ]
    assert scene.disk.manifest.get(3) == bytes(32), "nobody asked for it"
    assert scene.receiver.seal == ""


def test_nothing_is_written_over_zeros(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene.disk, "write", lambda *_what: pytest.fail("something was written"))
    scene.serve((wire.CLEAR, keys(0, 1, 2, 3, 4)))
    assert scene.loop.file.stat().st_blocks == 0
    assert not list(scene.disk.read_back.unproved(None))


@pytest.mark.parametrize("frame", ["clear", "write"])
def test_nothing_is_vouched_for_while_it_is_written(scene: Scene, monkeypatch: pytest.MonkeyPatch, frame: str) -> None:
    scene.serve(write_of(1, os.urandom(MIB)))
    seen = []

    def write(extent: int, *_what: object) -> None:
        assert scene.session is not None
        pending = scene.disk.read_back.pending
        seen.append((scene.disk.manifest.get(extent), pending, scene.session.recall(ExtentKey(0, extent))))

    assert scene.disk.read_back.pending == 1
    monkeypatch.setattr(scene.disk, "write", write)
    scene.serve((wire.CLEAR, keys(1)) if frame == "clear" else write_of(1, os.urandom(MIB)))
    assert seen == [(bytes(32), 0, None)]


def test_clearing_ends_with_its_session(scene: Scene) -> None:
    frames = iter([(wire.CLEAR, keys(0, 1, 2))])

    class Ending(Sender):
        def receive_header(self) -> tuple[int, int]:
            kind, self._payload = next(frames)
            assert scene.session is not None
            scene.session.closing.set()
            return kind, len(self._payload)

    scene.loop.write(0, b"x" * 3 * MIB)
    assert not scene.serve(sender=Ending([]))
    assert scene.loop.content()[: 3 * MIB] == b"x" * 3 * MIB


def test_leaves_of_a_cleared_extent_are_told_without_reading(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.serve((wire.CLEAR, keys(2, 4)))
    monkeypatch.setattr(scene.disk, "read", lambda _extent, _buffer: pytest.fail("the disk was read"))
    answers = scene.serve((wire.LEAVES_REQUEST, keys(2)), (wire.LEAVES_REQUEST, keys(4)))
    assert [wire.parse_leaves(payload).leaves for _kind, payload in answers] == [
        HASH.zero_leaf * 256,
        HASH.zero_leaf + HASH.leaf(bytes(512)),
    ]


def test_clearing_an_extent_that_does_not_exist_is_refused(scene: Scene) -> None:
    scene.loop.write(0, b"x" * 5 * MIB)
    with pytest.raises(AgentError, match="WIRE_MALFORMED"):
        scene.serve((wire.CLEAR, keys(5)))
    assert scene.loop.content() == b"x" * 5 * MIB


def write_of(extent: int, content: bytes, ranges: tuple[Range, ...] = (Range(0, 256, False),)) -> tuple[int, bytes]:
    """The frame that makes an extent hold this content, which does not change outside of the ranges."""
    leaves = HASH.leaves(memoryview(content))
    carried = b"".join(content[slice(*part.span(len(content)))] for part in ranges if not part.zero)
    head = wire.Write(
        ExtentKey(0, extent),
        HASH.digest(leaves),
        HASH.digest(HASH.leaves(memoryview(carried))),
        ranges,
        CODEC_NONE,
        len(carried),
    )
    return wire.WRITE, head.pack() + carried


def read_back(scene: Scene, extent: int) -> bool:
    assert scene.session is not None
    digest = functools.partial(scene.session.digest, ExtentKey(0, extent))
    return scene.disk.read_back.check(extent, memoryview(mmap.mmap(-1, EXTENT)), digest)


def test_what_was_written_whole_is_recognized_without_leaves(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(MIB)
    scene.serve(write_of(1, content))
    assert scene.loop.content()[MIB : 2 * MIB] == content
    with monkeypatch.context() as patch:
        patch.setattr(HASH, "each", lambda _data: pytest.fail("leaves were made"))
        assert read_back(scene, 1)
    assert not list(scene.disk.read_back.unproved(None))


@pytest.mark.parametrize("at", [0, 4096, MIB - 1])
def test_what_the_disk_does_not_hold_is_not_recognized(scene: Scene, at: int) -> None:
    content = os.urandom(MIB)
    scene.serve(write_of(1, content))
    scene.loop.write(MIB + at, bytes([content[at] ^ 1]))
    assert not read_back(scene, 1)
    assert scene.disk.manifest.get(1) == bytes(32)


def test_content_that_changes_in_memory_after_it_was_checked_is_found(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = scene.disk.write

    def flipped(extent: int, ranges: tuple[Range, ...], view: memoryview) -> None:
        view[77] ^= 1
        write(extent, ranges, view)

    monkeypatch.setattr(scene.disk, "write", flipped)
    scene.serve(write_of(1, os.urandom(MIB)))
    assert not read_back(scene, 1)


def test_what_was_written_in_parts_is_read_back_by_its_leaves(scene: Scene) -> None:
    before, after = bytearray(os.urandom(MIB)), bytearray(os.urandom(MIB))
    after[8192:] = before[8192:]
    after[4096:8192] = bytes(4096)
    scene.serve(write_of(2, bytes(before)), write_of(2, bytes(after), (Range(0, 1, False), Range(1, 1, True))))
    assert scene.loop.content()[2 * MIB : 3 * MIB] == after
    assert read_back(scene, 2)
    scene.loop.write(2 * MIB + 5000, b"x")
    assert not read_back(scene, 2)


def test_a_write_that_ends_within_its_head_is_refused(scene: Scene) -> None:
    kind, payload = write_of(1, os.urandom(MIB))
    for size in (0, 10, wire.WRITE_FIXED, wire.WRITE_FIXED + 5):
        with pytest.raises(AgentError, match="WIRE_MALFORMED"):
            scene.serve((kind, payload[:size]))
    assert scene.loop.file.stat().st_blocks == 0


def test_content_of_another_length_than_announced_is_refused(scene: Scene) -> None:
    kind, payload = write_of(1, os.urandom(MIB))
    with pytest.raises(AgentError, match="WIRE_CONTENT_DAMAGED"):
        scene.serve((kind, payload[:-1]))
    assert scene.loop.file.stat().st_blocks == 0


def test_asking_for_leaves_makes_nobody_vouch_for_them(scene: Scene) -> None:
    """That the target holds something does not make it the source's: the next sender must not believe so."""
    content = os.urandom(MIB)
    scene.loop.write(MIB, content)
    ((_kind, payload),) = scene.serve((wire.LEAVES_REQUEST, keys(1)))
    assert wire.parse_leaves(payload).leaves == HASH.leaves(memoryview(content))
    assert scene.disk.manifest.get(1) == bytes(32)
    answers = scene.serve((wire.LEAVES_REQUEST, keys(1)), write_of(1, content, ()))
    assert [kind for kind, _payload in answers] == [wire.LEAVES, wire.ACK]
    assert scene.disk.manifest.get(1) == HASH.extent_digest(memoryview(content))
    assert list(scene.disk.read_back.unproved(None)) == [1]
    assert scene.loop.content()[MIB : 2 * MIB] == content


def test_what_is_found_damaged_when_its_leaves_are_asked_for_is_not_vouched_for(scene: Scene) -> None:
    content = os.urandom(MIB)
    scene.serve(write_of(1, content))
    scene.loop.write(MIB + 5000, b"garbage")
    # Another session, which has no leaves in memory.
    ((_kind, payload),) = scene.serve((wire.LEAVES_REQUEST, keys(1)))
    damaged = scene.loop.content()[MIB : 2 * MIB]
    assert wire.parse_leaves(payload).leaves == HASH.leaves(memoryview(damaged))
    assert scene.disk.manifest.get(1) == bytes(32)
    assert (scene.disk.read_back.damaged, scene.disk.read_back.pending) == (1, 0)
    # What is sent now is put together with what the disk holds, not with what it should hold.
    with pytest.raises(AgentError, match="CONTENT_MISMATCH"):
        scene.serve((wire.LEAVES_REQUEST, keys(1)), write_of(1, content, (Range(9, 1, False),)))
    scene.serve((wire.LEAVES_REQUEST, keys(1)), write_of(1, content, (Range(1, 1, False),)))
    assert scene.loop.content()[MIB : 2 * MIB] == content
    assert read_back(scene, 1)


def test_nobody_vouches_for_content_that_is_not_there(scene: Scene) -> None:
    scene.loop.write(MIB, os.urandom(MIB))
    with pytest.raises(AgentError, match="CONTENT_MISMATCH"):
        scene.serve(write_of(1, os.urandom(MIB), ()))
    assert scene.disk.manifest.get(1) == bytes(32)
