# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The receiver: takes the connections of its one sender and makes the target's disks equal to the source's."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent import features, wire
from fleetlift_agent.committer import Committer
from fleetlift_agent.compression import CODEC_NONE, Unpacker
from fleetlift_agent.connection import Connection, ConnectionLost
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, SUB_BLOCK, Range, data_bytes, sub_block_count
from fleetlift_agent.hash_pool import HashPool
from fleetlift_agent.hashing import DIGEST, LEAF, UNKNOWN, Hash, is_zero
from fleetlift_agent.manifest import disk_root
from fleetlift_agent.replica import ReplicaDisk
from fleetlift_agent.state import State, write_json
from fleetlift_agent.tls import TlsIdentity
from fleetlift_agent.wire import ExtentKey, Write

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 15.0
_MAX_HANDSHAKES = 32
_MAX_CONNECTIONS = 64
# Extents whose leaves are kept, the most recently used ones: 4 KiB each. What changes often is not read again.
_REMEMBERED = 8192
# Of those that read back in the background all but the first work only while nothing arrives.
VERIFY_THREADS = 2
# The background reading waits this long for something to do, and gives way for this long after a write.
_IDLE_SECONDS = 0.2
_BUSY_SECONDS = 0.1
# include/uapi/linux/tcp.h.
_TCP_NOTSENT_LOWAT = 25
_UNSENT_BYTES = 256 << 10


def memory_bound(disk_bytes: int, connections: int) -> int:
    """The most resident bytes a receiver uses, the interpreter's 40 MiB included.

    37 per MiB of disk (the mapped manifest and what was read back), the leaves that are kept, and per connection its
    frame, its content and its buffers. Besides: the hashing processes (`hash_pool.OWN_MEMORY` each).
    """
    extents = disk_bytes // EXTENT + 1
    leaves = _REMEMBERED * (EXTENT // SUB_BLOCK * LEAF + 384)
    return (40 << 20) + extents * (DIGEST + 5) + leaves + connections * (6 << 20)


class Session:
    """All connections of one sender process at one time, and the committer that serves them."""

    def __init__(
        self,
        session_id: str,
        disks: Sequence[ReplicaDisk],
        agreed: features.Features,
        note: Callable[[AgentError], None],
        algorithm: Hash,
    ) -> None:
        self.id = session_id
        self.disks = disks
        self.features = agreed
        self.hash = algorithm
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._threads: set[threading.Thread] = set()
        # Of extents as they were last read or written: the leaves, and what `Hash.at_once` said of the content.
        self._kept: dict[ExtentKey, tuple[bytes, bytes | None]] = {}
        self.closing = threading.Event()
        self.committer = Committer(disks, self._acknowledge, self.fail)
        self._note = note

    def join(self, number: int, connection: Connection, thread: threading.Thread) -> None:
        with self._lock:
            if self.closing.is_set() or number in self._connections or len(self._connections) >= _MAX_CONNECTIONS:
                raise ConnectionLost("the session does not take this connection")
            self._connections[number] = connection
            self._threads.add(thread)

    def leave(self, number: int, thread: threading.Thread) -> None:
        with self._lock:
            self._connections.pop(number, None)
            self._threads.discard(thread)

    def spawn(self, target: Callable[[], None], name: str) -> None:
        """Run `target` in a thread that ends before the session does."""
        thread = threading.Thread(target=lambda: self._run(target), name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _run(self, target: Callable[[], None]) -> None:
        try:
            target()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def close(self) -> None:
        """End every connection and wait until nothing of this session can write to a disk any more."""
        self.closing.set()
        with self._lock:
            connections = list(self._connections.values())
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for connection in connections:
            connection.close()
        for thread in threads:
            thread.join()
        self.committer.close()

    def fail(self, error: AgentError) -> None:
        """Tell the sender why, and end the connections."""
        log.error("session %s: %s", self.id[:8], error)
        self._note(error)
        self.closing.set()
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections[:1]:
            connection.send_error(error)
        for connection in connections:
            connection.close()

    def remember(self, key: ExtentKey, leaves: bytes, at_once: bytes | None = None) -> None:
        with self._lock:
            self._kept.pop(key, None)
            while len(self._kept) >= _REMEMBERED:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = leaves, at_once

    def recall(self, key: ExtentKey) -> bytes | None:
        """The leaves as they were last read or written."""
        with self._lock:
            kept = self._kept.get(key)
        return kept[0] if kept is not None else None

    def digest(self, key: ExtentKey, content: memoryview) -> bytes:
        """The digest of an extent with this content; what was written whole is recognized without making leaves."""
        with self._lock:
            leaves, at_once = self._kept.get(key, (b"", None))
        if at_once is not None and self.hash.at_once(content) == at_once:
            return self.hash.digest(leaves)
        return self.hash.extent_digest(content)

    def forget(self, key: ExtentKey) -> None:
        with self._lock:
            self._kept.pop(key, None)

    @property
    def connection_count(self) -> int:
        with self._lock:
            return len(self._connections)

    def _acknowledge(self, keys: list[ExtentKey]) -> None:
        with self._lock:
            connection = next(iter(self._connections.values()), None)
        if connection is None:
            return
        try:
            connection.send(wire.ACK, wire.pack_extent_keys(keys))
        except ConnectionLost:
            # The sender learns the same from the manifest when it connects again.
            log.info("an acknowledgement found no sender")


class Worker:
    """Serves one connection: applies writes, answers questions about the target's content."""

    def __init__(
        self, session: Session, connection: Connection, receiver: Receiver, buffer: memoryview, content: memoryview
    ) -> None:
        self._session = session
        self._connection = connection
        self._receiver = receiver
        self._hash = session.hash
        self._unpacker = Unpacker()
        self._buffer = buffer
        self._content = content
        self._head = memoryview(bytearray(wire.WRITE_HEAD))

    def serve(self) -> None:
        """Until the connection ends (ConnectionLost) or breaks the protocol (AgentError)."""
        while True:
            kind, length = self._connection.receive_header()
            if kind == wire.WRITE:
                self._write(length)
                continue
            payload = self._connection.receive_payload(kind, length)
            if kind == wire.CLEAR:
                self._clear(wire.parse_extent_keys(payload))
            elif kind == wire.LEAVES_REQUEST:
                self._tell_leaves(wire.parse_extent_key(payload))
            elif kind == wire.DIGESTS_REQUEST:
                self._tell_digests(wire.parse_digests_request(payload))
            elif kind == wire.PING:
                self._connection.send(wire.PONG)
            elif kind == wire.REQUEST:
                self._request(wire.parse_json(payload))
            else:
                raise wire.malformed(f"a frame of type {kind} is not for a receiver")

    def _disk(self, number: int, extent: int) -> ReplicaDisk:
        if number >= len(self._session.disks) or extent >= self._session.disks[number].extents:
            raise wire.malformed(f"extent {extent} of disk {number} does not exist")
        return self._session.disks[number]

    def _clear(self, keys: list[ExtentKey]) -> None:
        """Have extents of zeros; what is zero already is not written, so that a blank target stays sparse."""
        self._receiver.unseal()
        for key in keys:
            if self._session.closing.is_set():
                raise ConnectionLost("the session ends")
            disk = self._disk(key.disk, key.extent)
            length = disk.length(key.extent)
            clear = is_zero(disk.read(key.extent, self._buffer))
            if not clear:
                self._open(disk, key)
                disk.write(key.extent, (Range(0, sub_block_count(length), True),), self._content[:0])
            self._receiver.wrote(0)
            digest = self._hash.zero_digest(length)
            self._session.committer.add(key, digest, 0 if clear else length, seen=clear)
        # A slow disk needs its time for them, in which the sender must hear something.
        self._connection.send(wire.PONG)

    def _open(self, disk: ReplicaDisk, key: ExtentKey) -> None:
        """The extent is about to be written: nothing is known of it until that is durable."""
        disk.read_back.opened(key.extent)
        disk.manifest.set(key.extent, UNKNOWN)
        self._session.forget(key)

    def _own_leaves(self, disk: ReplicaDisk, extent: int) -> bytes:
        return self._hash.leaves(disk.read(extent, self._buffer))

    def _kept_leaves(self, disk: ReplicaDisk, key: ExtentKey) -> bytes | None:
        """The extent's leaves, where they are known without reading: as the manifest has them, if it has any."""
        digest, length = disk.manifest.get(key.extent), disk.length(key.extent)
        if digest == self._hash.zero_digest(length):
            return self._hash.zero_leaves(length)
        leaves = self._session.recall(key)
        return leaves if leaves is not None and digest in (UNKNOWN, self._hash.digest(leaves)) else None

    def _tell_leaves(self, key: ExtentKey) -> None:
        disk = self._disk(key.disk, key.extent)
        leaves = self._kept_leaves(disk, key)
        if leaves is None:
            leaves = self._own_leaves(disk, key.extent)
            if not disk.read_back.holds(key.extent, self._hash.digest(leaves)):
                _report_damage(disk, key.extent)
            self._session.remember(key, leaves)
        self._connection.send(wire.LEAVES, wire.Leaves(key, leaves).pack())

    def _tell_digests(self, request: wire.DigestsRequest) -> None:
        disk = self._disk(request.disk, request.first + request.count - 1)
        digests = disk.manifest.slice(request.first, request.count)
        self._connection.send(wire.DIGESTS, wire.Digests(ExtentKey(request.disk, request.first), digests).pack())

    def _write(self, size: int) -> None:
        """Apply a write whose payload, of `size` bytes, comes next."""
        write = self._receive_head(size)
        packed = size - write.head_size
        disk = self._disk(write.key.disk, write.key.extent)
        extent = write.key.extent
        length = disk.length(extent)
        end = write.ranges[-1].first + write.ranges[-1].count if write.ranges else 0
        if end > sub_block_count(length) or write.raw_length != data_bytes(write.ranges, length):
            raise wire.malformed("the ranges of a write do not fit its extent or its content")
        content = self._content[: write.raw_length]
        if write.codec == CODEC_NONE and packed == write.raw_length:
            # At once where it is written from: at a page's boundary.
            self._connection.read_into(content)
        else:
            payload = self._connection.receive_payload(wire.WRITE, packed)
            content[:] = self._unpacker.unpack(write.codec, payload, write.raw_length)
        # Before the content is found to be right: what changes in memory from here on is found when it is read back.
        at_once = self._hash.at_once(content) if len(content) == length else None
        leaves = self._check(disk, write, content)
        ranges = write.ranges
        # Zeros are only written where there is something else: a blank target stays sparse.
        if any(part.zero for part in ranges):
            own = disk.read(extent, self._buffer)
            ranges = tuple(part for part in ranges if not (part.zero and is_zero(own[slice(*part.span(length))])))
        self._receiver.unseal()
        self._open(disk, write.key)
        disk.write(extent, ranges, content)
        self._session.remember(write.key, leaves, at_once)
        self._receiver.wrote(data_bytes(ranges, length))
        whole = sum(part.count for part in write.ranges) == sub_block_count(length)
        self._session.committer.add(write.key, write.digest, length, seen=whole and not ranges)

    def _receive_head(self, size: int) -> Write:
        fixed = self._head[: min(size, wire.WRITE_FIXED)]
        self._connection.read_into(fixed)
        head = self._head[: wire.write_head_size(fixed)]
        if len(head) > size:
            raise wire.malformed("a write is shorter than its header")
        self._connection.read_into(head[wire.WRITE_FIXED :])
        return wire.parse_write(head)

    def _check(self, disk: ReplicaDisk, write: Write, content: memoryview) -> bytes:
        """The extent's leaves after the write.

        The content must be what the sender hashed, and the extent must become what its digest says.
        """
        length = disk.length(write.key.extent)
        count = sub_block_count(length)
        whole = sum(part.count for part in write.ranges) == count
        told = bytes(count * LEAF) if whole else self._kept_leaves(disk, write.key)
        if told is None:
            told = self._own_leaves(disk, write.key.extent)
        merged = bytearray(told)
        # Only the last sub-block of a disk may be short, and that is the last one here.
        arrived = self._hash.leaves(content)
        at = 0
        for part in write.ranges:
            place = slice(part.first * LEAF, (part.first + part.count) * LEAF)
            if part.zero:
                start, end = part.span(length)
                merged[place] = self._hash.zero_leaves(end - start)
            else:
                merged[place] = arrived[at : at + part.count * LEAF]
                at += part.count * LEAF
        if self._hash.digest(arrived) != write.content_hash or self._hash.digest(merged) != write.digest:
            raise AgentError(
                "CONTENT_MISMATCH",
                f"Content for extent {write.key.extent} of disk {disk.id} does not have the announced hash",
                "Nothing was written; the connection is made again and the extent compared anew. If this repeats, "
                "suspect the memory of one of the two hosts",
                {"disk": disk.id, "extent": write.key.extent},
                subject=f"disk {disk.id}",
            )
        return bytes(merged)

    def _request(self, request: dict[str, Any]) -> None:
        operation = request.get("op")
        if operation == "verify":
            self._session.spawn(lambda: self._verify(request), "verify")
        elif operation == "read_back":
            self._reply(request, {**self._receiver.read_back_state(), "sweeps": self._receiver.read_back_sweeps()})
        elif operation == "seal":
            self._receiver.seal(str(request.get("root_hash"))[:128])
            self._reply(request, {})
        elif operation == "unseal":
            self._receiver.unseal()
            self._reply(request, {})
        else:
            raise wire.malformed(f"unknown request {str(operation)[:40]!r}")

    def _verify(self, request: dict[str, Any]) -> None:
        try:
            self._reply(request, self._receiver.verify(self._session, request.get("age")))
        except AgentError as error:
            self._session.fail(error)
        except ConnectionLost:
            log.info("verification ended without its sender")

    def _reply(self, request: dict[str, Any], result: dict[str, Any]) -> None:
        self._connection.send_json(wire.REPLY, {"id": request.get("id"), **result})


class Receiver:
    """The receiving daemon's core. Disks come opened; `directory` holds manifests and the sealed record."""

    def __init__(
        self,
        *,
        migration: str,
        disks: Sequence[ReplicaDisk],
        identity: TlsIdentity,
        listener: socket.socket,
        directory: Path,
        state: State,
        peer_timeout: float,
        scrub_interval: float,
        hashes: HashPool,
    ) -> None:
        self._hashes = hashes
        self._scrub_interval = scrub_interval
        self._migration = migration
        self._disks = disks
        self._identity = identity
        self._listener = listener
        self._directory = directory
        self._state = state
        self._timeout = peer_timeout
        self._session: Session | None = None
        self._session_lock = threading.Lock()
        self._seal_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._handshakes = threading.BoundedSemaphore(_MAX_HANDSHAKES)
        self._stopping = threading.Event()
        self._written = 0
        self._last_write = 0.0
        self._sealed = self._load_sealed()
        self._rest()

    def start(self) -> None:
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def close(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            # Closing alone would not wake the thread that waits in accept.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._session_lock:
            if self._session is not None:
                self._session.close()
                self._session = None
        for disk in self._disks:
            disk.close()

    # Sealing: the record that the target's disks were verified and nothing was written since.

    def seal(self, root_hash: str) -> None:
        with self._seal_lock:
            self._sealed = {"root_hash": root_hash, "time": time.time()}
            write_json(self._directory / "sealed.json", self._sealed)
            self._state.update(sealed=self._sealed, phase="sealed")

    def unseal(self) -> None:
        if self._sealed is None:
            return
        with self._seal_lock:
            self._sealed = None
            (self._directory / "sealed.json").unlink(missing_ok=True)
            self._state.update(sealed=None, phase="receiving")

    def _load_sealed(self) -> dict[str, Any] | None:
        path = self._directory / "sealed.json"
        if not path.exists():
            return None
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value

    def _rest(self) -> None:
        """The phase between sessions."""
        error = self._state.get("error")
        if error is not None and error["severity"] == "blocker":
            phase = "failed"
        else:
            phase = "sealed" if self._sealed else "listening"
        self._state.update(phase=phase, sealed=self._sealed, connections=0)

    def wrote(self, size: int) -> None:
        self._last_write = time.monotonic()
        with self._count_lock:
            self._written += size
            totals = {**self._state.get("totals"), "bytes_sent": self._written}
            self._state.touch(totals=totals)

    def note(self, error: AgentError) -> None:
        """Record why a connection ended; only what concerns the disks keeps the receiver from working."""
        blocking = error.code in ("TARGET_WRITE_FAILED", "DISK_READ_FAILED")
        self._state.update(error={**error.record(), "severity": "blocker" if blocking else "warning"})

    # Verification.

    def verify(self, session: Session, age: float | None) -> dict[str, Any]:
        """Read back what was not proved yet, or not within `age` seconds; return the root hashes of the disks.

        An extent that the disk does not hold as it was written is unknown afterwards, so that the roots differ.
        """
        self._state.update(phase="verifying")
        damaged = self._damaged()
        done = [0]
        for disk in self._disks:
            disk.sync()
            self._check_all(session, disk, disk.read_back.unproved(age), done)
        roots = []
        disks = self._state.get("disks")
        for number, disk in enumerate(self._disks):
            roots.append(disk_root(disk.manifest, session.hash))
            disks[number]["root_hash"] = roots[-1].hex()
        self._state.update(phase="receiving", read_back=self.read_back_state())
        return {
            "roots": [root.hex() for root in roots],
            "root_hash": session.hash.root(roots).hex(),
            "bytes_read": done[0],
            "damaged": self._damaged() - damaged,
        }

    def read_back_state(self) -> dict[str, int]:
        """Bytes that are durable and were not read back since, and how many extents were found damaged so far."""
        return {"pending": sum(disk.read_back.pending for disk in self._disks) * EXTENT, "damaged": self._damaged()}

    def read_back_sweeps(self) -> list[int]:
        """For each disk how often the background reading went through all that waited (see ReadBack.next_due)."""
        return [disk.read_back.sweeps for disk in self._disks]

    def _damaged(self) -> int:
        return sum(disk.read_back.damaged for disk in self._disks)

    def _check_all(self, session: Session, disk: ReplicaDisk, extents: Iterator[int], done: list[int]) -> None:
        lock = threading.Lock()
        errors: list[AgentError] = []

        def work(buffer: memoryview) -> None:
            while not session.closing.is_set() and not errors:
                with lock:
                    extent = next(extents, None)
                if extent is None:
                    return
                try:
                    self._prove(session, disk, extent, buffer)
                except AgentError as error:
                    errors.append(error)
                    return
                with lock:
                    done[0] += disk.length(extent)
                    self._state.touch(progress={**self._state.get("progress"), "kind": "verify", "bytes_done": done[0]})

        threads = [
            threading.Thread(target=self._lend_buffer, args=(work,), daemon=True) for _round in range(VERIFY_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        if session.closing.is_set():
            raise ConnectionLost("the session ended during verification")

    def _prove(self, session: Session, disk: ReplicaDisk, extent: int, buffer: memoryview) -> None:
        key = ExtentKey(self._disks.index(disk), extent)
        if not disk.read_back.check(extent, buffer, functools.partial(session.digest, key)):
            _report_damage(disk, extent)
            session.forget(key)

    def _lend_buffer(self, work: Callable[[memoryview], None]) -> None:
        with self._hashes.buffers.borrowed() as buffer:
            work(buffer)

    def _read_back(self, session: Session, leads: bool, buffer: memoryview) -> None:
        """The background of a session: read everything back that was written, and in time everything again.

        Who does not lead helps, while nothing arrives.
        """
        round_ended = time.monotonic()
        turns = itertools.cycle(range(len(self._disks)))
        try:
            while not session.closing.is_set():
                gives_way = not leads and time.monotonic() - self._last_write < _BUSY_SECONDS
                due = None if self._sealed is not None or gives_way else self._next_due(next(turns), leads)
                if due is None:
                    session.closing.wait(_IDLE_SECONDS)
                    if leads and time.monotonic() - round_ended > self._scrub_interval:
                        for disk in self._disks:
                            disk.read_back.start_round()
                    continue
                round_ended = time.monotonic()
                disk, extent = due
                begun = time.monotonic()
                self._prove(session, disk, extent, buffer)
                self._state.touch(read_back=self.read_back_state())
                now = time.monotonic()
                if now - self._last_write < _BUSY_SECONDS:
                    # What arrives has precedence: at most a quarter of the time is spent here.
                    session.closing.wait(3 * (now - begun))
        except AgentError as error:
            session.fail(error)

    def _next_due(self, first: int, leads: bool) -> tuple[ReplicaDisk, int] | None:
        """What to read back next; the disk with the number `first` is asked first."""
        for disk in (*self._disks[first:], *self._disks[:first]):
            extent = disk.read_back.next_due() if leads else disk.read_back.last_written()
            if extent is not None:
                return disk, extent
        return None

    # Connections.

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                raw, address = self._listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                log.error("accept: %s", error)
                self._stopping.wait(0.2)
                continue
            if not self._handshakes.acquire(blocking=False):
                raw.close()
                continue
            threading.Thread(target=self._serve, args=(raw, address), name="connection", daemon=True).start()

    def _serve(self, raw: socket.socket, address: Any) -> None:
        connection: Connection | None = None
        try:
            try:
                tune(raw, self._timeout)
                raw.settimeout(min(HANDSHAKE_SECONDS, self._timeout))
                connection = Connection(self._identity.wrap(raw), self._timeout)
                connection.exchange_preambles()
                hello = connection.receive_json(wire.HELLO)
            finally:
                self._handshakes.release()
            self._converse(connection, hello)
        except (ConnectionLost, OSError) as error:
            log.info("connection from %s ended: %s", address[0], error)
        except AgentError as error:
            log.warning("connection from %s refused: %s", address[0], error)
            self.note(error)
            if connection is not None:
                connection.send_error(error)
        finally:
            if connection is not None:
                connection.release()
            else:
                raw.close()

    def _converse(self, connection: Connection, hello: dict[str, Any]) -> None:
        session = self._session_for(hello)
        number = int(hello["connection"])
        thread = threading.current_thread()
        session.join(number, connection, thread)
        try:
            self._state.update(connections=session.connection_count)
            connection.send_json(wire.WELCOME, self._welcome(session, number))
            with self._hashes.buffers.borrowed() as buffer, self._hashes.buffers.borrowed() as content:
                Worker(session, connection, self, buffer, content).serve()
        finally:
            session.leave(number, thread)
            if session.connection_count == 0:
                self._finish(session)

    def _session_for(self, hello: dict[str, Any]) -> Session:
        """The session this connection belongs to; connection 0 of a new sender ends the session before it."""
        agreed = self._check_hello(hello)
        with self._session_lock:
            current = self._session
            if current is not None and current.id == hello["session"]:
                return current
            if hello["connection"] != 0:
                raise ConnectionLost("the session of this connection is over")
            if current is not None:
                current.close()
            for disk in self._disks:
                disk.open_manifest(self._directory, agreed.hash)
            session = Session(hello["session"], self._disks, agreed, self.note, self._hashes.hash(agreed.hash))
            self._session = session
            for number in range(VERIFY_THREADS):
                read_back = functools.partial(self._read_back, session, number == 0)
                session.spawn(functools.partial(self._lend_buffer, read_back), "read-back")
            if self._sealed is None:
                self._state.touch(phase="receiving")
            self._state.update(
                features={"hash": agreed.hash, "compression": agreed.compression, "change_detector": None}, error=None
            )
            return session

    def _finish(self, session: Session) -> None:
        """The last connection is gone: commit what arrived. A new sender that ends the session does the same."""
        if not self._session_lock.acquire(blocking=False):
            return
        try:
            if self._session is session:
                session.close()
                self._session = None
                self._rest()
        finally:
            self._session_lock.release()

    def _check_hello(self, hello: dict[str, Any]) -> features.Features:
        session, number, offer = hello.get("session"), hello.get("connection"), hello.get("features")
        if (
            not isinstance(session, str)
            or not isinstance(number, int)
            or not 0 <= number < _MAX_CONNECTIONS
            or not isinstance(offer, dict)
        ):
            raise wire.malformed("HELLO lacks its session, connection or features")
        own = [{"id": disk.id, "size": disk.size, "target_serial": disk.serial} for disk in self._disks]
        if hello.get("migration") != self._migration or hello.get("disks") != own:
            raise AgentError(
                "PEER_PLAN_DIFFERS",
                "The sender belongs to another migration or maps its disks differently",
                "Install both agents again from the same plan",
                {"own": {"migration": self._migration, "disks": own}, "peer": str(hello)[:2000]},
                subject=f"migration {self._migration}",
            )
        return features.agree(offer, features.offered())

    def _welcome(self, session: Session, number: int) -> dict[str, Any]:
        # Sampled only once per session, and before anything was written in it.
        with self._hashes.buffers.borrowed() as buffer:
            blank = [number == 0 and disk.looks_blank(buffer) for disk in self._disks]
        return {
            "session": session.id,
            "features": {"hash": session.features.hash, "compression": session.features.compression},
            "blank": blank,
        }


def _report_damage(disk: ReplicaDisk, extent: int) -> None:
    log.error("disk %s: extent %d does not hold what was written to it", disk.id, extent)


def tune(raw: socket.socket, peer_timeout: float) -> None:
    """Small frames leave at once, and a dead peer is noticed."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(peer_timeout * 1000))
    # Content waits in our queue and not in the kernel's: less is sent twice after a cut, and limits take effect sooner.
    raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
