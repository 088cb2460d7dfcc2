# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sender's data plane: read → mask → hash → compare → compress → send → acknowledged.

Of an extent that is known to have changed in some places only these are read: the target tells the leaves that it
holds, their hash must be the digest that was confirmed, and the leaves of what changed are replaced.

Memory (bytes): 48 per MiB of source disk (digest 32, change detector 16) and 64 for the dirty map where changes are
tracked, one MiB per pooled buffer, at most 6 MiB per connection, and what the interpreter needs. `memory_bound` says
how much.
"""

from __future__ import annotations

import functools
import logging
import queue
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Protocol

from fleetlift_agent import features, hashing, wire
from fleetlift_agent.bucket import TokenBucket
from fleetlift_agent.compression import Economy, load_codec
from fleetlift_agent.connection import Connection, ConnectionLost
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import (
    EXTENT,
    SUB_BLOCK,
    Range,
    coalesce,
    data_bytes,
    extent_length,
    sub_block_count,
    zero_bytes,
)
from fleetlift_agent.hash_pool import HashPool
from fleetlift_agent.hashing import DETECTOR, DIGEST, LEAF, UNKNOWN, Hash
from fleetlift_agent.manifest import MemoryManifest, disk_root
from fleetlift_agent.mask import Mask
from fleetlift_agent.passes import PassWork, Ranges
from fleetlift_agent.proxy import Proxy, connect
from fleetlift_agent.reader import BufferPool, DirectReader
from fleetlift_agent.receiver import HANDSHAKE_SECONDS, tune
from fleetlift_agent.tls import TlsIdentity
from fleetlift_agent.usedblocks.runs import FreeRuns
from fleetlift_agent.wire import ExtentKey, Write

log = logging.getLogger(__name__)

_READERS = 2
# Extents sent and not yet acknowledged; each costs a few hundred bytes here, its content nothing.
_WINDOW = 4096
# What lies between two changes is read with them when it is shorter than this: one request costs more than these bytes.
_GAP = 64 << 10
# More lost extents than this are not remembered one by one: their disk is gone through.
_REMEMBERED_LOSSES = 4096
# Extents of zeros that are asked for at once, and those that may be on their way. Each costs the target the reading of
# a MiB, and perhaps the writing: what the peer says behind them must not come too late.
_CLEARED_TOGETHER = 32
_CLEARED_WINDOW = 512
# How long a reader waits for an extent that comes back, in seconds.
_PATIENCE = 0.1
# Two bits for each 4 KiB.
_DIRTY = EXTENT // 4096 * 2 // 8
# Errors that a new connection cannot cure.
_FATAL = {
    "PROTOCOL_VERSION_MISMATCH",
    "PEER_PLAN_DIFFERS",
    "FEATURES_DIFFER",
    "TARGET_WRITE_FAILED",
    "DISK_READ_FAILED",
}


class Cancelled(Exception):
    """The pass was told to stop."""


class OpenSource(Protocol):
    """What replication needs of an opened source disk."""

    @property
    def fd(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def logical_block_size(self) -> int: ...


class SenderDisk:
    """A source disk with what is known about the target's copy of it.

    manifest: per extent the digest that the target is known to hold durably. A
    detector entry is the fingerprint of the source's content with that digest.
    """

    def __init__(self, disk_id: str, source: OpenSource, target_serial: str) -> None:
        self.id = disk_id
        self.size = source.size
        self.target_serial = target_serial
        self.reader = DirectReader(source.fd, source.size, source.logical_block_size, f"source disk {disk_id}")
        self.manifest = MemoryManifest(source.size)
        self._fingerprints = bytearray(self.manifest.count * DETECTOR)

    def confirm(self, extent: int, digest: bytes, fingerprint: bytes) -> None:
        """The target holds `digest`, which is what the source had with `fingerprint`."""
        self.manifest.set(extent, digest)
        self._set_fingerprint(extent, fingerprint or bytes(DETECTOR))

    def length(self, extent: int) -> int:
        return extent_length(self.size, extent)

    def learn(self, extent: int, digest: bytes) -> None:
        """The target says that it holds `digest`; the source's content is not known to match."""
        self.manifest.set(extent, digest)
        self._set_fingerprint(extent, bytes(DETECTOR))

    def unchanged(self, extent: int, fingerprint: bytes) -> bool:
        """Whether the fingerprint proves that the target's copy is still right."""
        at = extent * DETECTOR
        return bool(fingerprint) and self._fingerprints[at : at + DETECTOR] == fingerprint

    def _set_fingerprint(self, extent: int, fingerprint: bytes) -> None:
        self._fingerprints[extent * DETECTOR : (extent + 1) * DETECTOR] = fingerprint


def memory_bound(disk_bytes: int, connections: int) -> int:
    """The most resident bytes a sender uses, 48 MiB for the (memory-locked) interpreter included.

    Besides: the hashing processes (`hash_pool.OWN_MEMORY` each); the ring of the trace
    (`tracing.DEFAULT_BUFFER_KIB` per processor), which belongs to the kernel; and the map of free blocks, as large as
    the disk is fragmented (16 bytes per free range, at most 96 MiB a disk).
    """
    extents = disk_bytes // EXTENT + 1
    each = DIGEST + DETECTOR + _DIRTY
    return (48 << 20) + extents * each + (pool_size(connections) << 20) + connections * (6 << 20)


def pool_size(connections: int) -> int:
    """How many extent buffers may be between reading and sending."""
    return max(16, 4 * connections)


@dataclass(frozen=True)
class _Read:
    """An extent that was read and differs from what the target is known to hold. Owns its buffer.

    Of a part (see _Part) the buffer holds the sub-blocks that changed; `whole` is false. Where nobody uses any of the
    extent its leaves are those of zeros, and the buffer holds anything.
    """

    key: ExtentKey
    buffer: memoryview
    view: memoryview
    leaves: bytes
    digest: bytes
    fingerprint: bytes
    whole: bool = True

    @property
    def read(self) -> int:
        """Bytes that were read and may turn out to be on the target."""
        return len(self.view) if self.whole else 0


@dataclass(frozen=True)
class _Part:
    """The changed sub-blocks of an extent whose other sub-blocks the target holds already. Owns its buffer.

    leaves: by sub-block number. held: the digest that the target's extent has.
    """

    key: ExtentKey
    buffer: memoryview
    view: memoryview
    leaves: dict[int, bytes]
    held: bytes


@dataclass(frozen=True)
class _Suspect:
    """An extent that the audit found to differ from the digest that the target holds. Owns its buffer.

    leaves: of what the disk holds. masked: the same with zeros for what is free; a target is right with either.
    """

    key: ExtentKey
    buffer: memoryview
    view: memoryview
    leaves: bytes
    masked: bytes
    held: bytes

    def differing(self, told: bytes) -> Ranges:
        """The (offset, length) pairs, in bytes, where a target with these leaves is wrong."""
        wrong = (
            (at // LEAF, False)
            for at in range(0, len(told), LEAF)
            if told[at : at + LEAF] not in (self.leaves[at : at + LEAF], self.masked[at : at + LEAF])
        )
        spans = (part.span(len(self.view)) for part in coalesce(wrong))
        return tuple((start, end - start) for start, end in spans)


@dataclass(frozen=True)
class _Ask:
    item: _Read | _Part | _Suspect


@dataclass(frozen=True)
class _Send:
    item: _Read
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class _Clear:
    """Extents of zeros, of which the target is not known to hold anything."""

    keys: list[ExtentKey]


@dataclass(frozen=True)
class Route:
    """How to reach the receiver."""

    host: str
    port: int
    identity: TlsIdentity
    connections: int
    peer_timeout: float
    proxy: Proxy | None = None
    # One of compression.COMPRESSION.
    compression: str = "auto"

    def economy(self, codec: str) -> Economy:
        """For one connection, with the codec that was agreed on."""
        return Economy(
            load_codec("none" if self.compression == "never" else codec), always=self.compression == "always"
        )


class ExtentSet:
    """Extents one by one as long as they are few, and then whole disks."""

    def __init__(self) -> None:
        self.keys: dict[ExtentKey, None] = {}
        # Of these it is all extents of which the target is not known to hold anything. One of which it holds something
        # else than was acknowledged was sent before a connection was lost, and waits for a pass as before.
        self.disks: set[int] = set()

    def add(self, disk: int, extent: int) -> None:
        if disk in self.disks:
            return
        if len(self.keys) >= _REMEMBERED_LOSSES:
            self.add_disk(disk)
        else:
            self.keys[ExtentKey(disk, extent)] = None

    def add_disk(self, disk: int) -> None:
        self.disks.add(disk)
        self.keys = {key: None for key in self.keys if key.disk != disk}

    def update(self, other: ExtentSet, disks: Callable[[int], bool] = lambda _disk: True) -> None:
        """Take over the other's extents of these disks."""
        self.disks.update(disk for disk in other.disks if disks(disk))
        for key in other.keys:
            if disks(key.disk):
                self.add(key.disk, key.extent)

    def __bool__(self) -> bool:
        return bool(self.keys or self.disks)


class Losses:
    """What the target does not vouch for: extents it was known to hold, and others without a digest."""

    def __init__(self) -> None:
        self.lost = ExtentSet()
        self.unknown = ExtentSet()


class Session:
    """N connections to the receiver with their reading threads; made once, failed once."""

    def __init__(
        self, route: Route, migration: str, disks: Sequence[SenderDisk], bucket: TokenBucket, hashes: HashPool
    ) -> None:
        self._route = route
        self._disks = disks
        self._failure: Exception | None = None
        self._failed = threading.Event()
        self._lock = threading.Lock()
        self._replies: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._request_number = 0
        self._threads: list[threading.Thread] = []
        self.on_leaves: Callable[[wire.Leaves], None] | None = None
        self.on_ack: Callable[[list[ExtentKey]], None] | None = None
        self._digests: queue.SimpleQueue[wire.Digests] = queue.SimpleQueue()
        self.connections: list[Connection] = []
        hello = {
            "session": secrets.token_hex(16),
            "migration": migration,
            "disks": [{"id": disk.id, "size": disk.size, "target_serial": disk.target_serial} for disk in disks],
            "features": features.offered(),
        }
        try:
            welcome = self._join(hello, 0, bucket)
            self.features = features.agree(
                {kind: [name] for kind, name in welcome.get("features", {}).items()}, features.offered()
            )
            blank = welcome.get("blank")
            if not isinstance(blank, list) or len(blank) != len(disks):
                raise wire.malformed("WELCOME does not say which disks are blank")
            self.blank = [bool(flag) for flag in blank]
            for number in range(1, route.connections):
                self._join(hello, number, bucket)
        except BaseException:
            self.close()
            raise
        self.hash: Hash = hashes.hash(self.features.hash)
        for connection in self.connections:
            self._spawn(functools.partial(self._receive, connection), "receive")
        self._spawn(self._ping, "ping")

    def _join(self, hello: dict[str, Any], number: int, bucket: TokenBucket) -> dict[str, Any]:
        route = self._route
        patience = min(HANDSHAKE_SECONDS, route.peer_timeout)
        raw = connect(route.host, route.port, patience, route.proxy)
        try:
            tune(raw, route.peer_timeout)
            connection = Connection(route.identity.wrap(raw), route.peer_timeout, bucket)
        except BaseException:
            raw.close()
            raise
        self.connections.append(connection)
        connection.exchange_preambles()
        connection.send_json(wire.HELLO, {**hello, "connection": number})
        return connection.receive_json(wire.WELCOME)

    @property
    def failed(self) -> bool:
        return self._failed.is_set()

    @property
    def failure(self) -> Exception | None:
        return self._failure

    def economy(self) -> Economy:
        """What decides for one connection whether to compress."""
        return self._route.economy(self.features.compression)

    @property
    def bytes_out(self) -> int:
        return sum(connection.bytes_out for connection in self.connections)

    def fail(self, error: Exception) -> None:
        """End the session; the first error is its reason, but one that names a cause beats a lost connection."""
        with self._lock:
            vague = isinstance(self._failure, ConnectionLost) and isinstance(error, AgentError)
            if self._failure is None or vague:
                self._failure = error
        self._failed.set()
        for connection in self.connections:
            connection.close()

    def close(self, reason: ConnectionLost | None = None) -> None:
        """End every connection and thread."""
        self.fail(reason or ConnectionLost("the session was closed"))
        for thread in self._threads:
            thread.join()
        for connection in self.connections:
            connection.release()

    def pull_digests(self, losses: Losses) -> None:
        """Learn what the target holds. What it lost is in `losses` also when this fails half-way."""
        for number, disk in enumerate(self._disks):
            for first in range(0, disk.manifest.count, wire.MAX_DIGESTS):
                count = min(wire.MAX_DIGESTS, disk.manifest.count - first)
                self.connections[0].send(wire.DIGESTS_REQUEST, wire.DigestsRequest(number, first, count).pack())
                answer = self._await(self._digests)
                if answer.key != ExtentKey(number, first) or len(answer.digests) != count * DIGEST:
                    raise wire.malformed("digests that were not asked for")
                if answer.digests == disk.manifest.slice(first, count):
                    if UNKNOWN not in answer.digests:
                        continue
                    if answer.digests == UNKNOWN * count and count > _REMEMBERED_LOSSES:
                        losses.unknown.add_disk(number)
                        continue
                for at in range(count):
                    digest = answer.digests[at * DIGEST : (at + 1) * DIGEST]
                    known = disk.manifest.get(first + at)
                    if digest != known:
                        disk.learn(first + at, digest)
                    if digest != known and known != UNKNOWN:
                        losses.lost.add(number, first + at)
                    elif digest == UNKNOWN:
                        losses.unknown.add(number, first + at)

    def request(self, cancelled: Callable[[], bool], operation: str, **arguments: Any) -> dict[str, Any]:
        """Ask the receiver for something that takes time."""
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._lock:
            self._request_number += 1
            number = self._request_number
            self._replies[number] = answer
        self.connections[0].send_json(wire.REQUEST, {"id": number, "op": operation, **arguments})
        reply: dict[str, Any] = self._await(answer, cancelled)
        return reply

    def _await(self, answers: queue.SimpleQueue[Any], cancelled: Callable[[], bool] = lambda: False) -> Any:
        while True:
            try:
                return answers.get(timeout=0.2)
            except queue.Empty:
                if self._failure is not None:
                    raise self._failure from None
                if cancelled():
                    raise Cancelled from None

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _receive(self, connection: Connection) -> None:
        try:
            while True:
                self._dispatch(*connection.receive())
        except (ConnectionLost, AgentError) as error:
            self.fail(error)

    def _dispatch(self, kind: int, payload: memoryview) -> None:
        if kind == wire.ACK and self.on_ack is not None:
            self.on_ack(wire.parse_extent_keys(payload))
        elif kind == wire.LEAVES and self.on_leaves is not None:
            self.on_leaves(wire.parse_leaves(payload))
        elif kind == wire.DIGESTS:
            self._digests.put(wire.parse_digests(payload))
        elif kind == wire.REPLY:
            reply = wire.parse_json(payload)
            with self._lock:
                answer = self._replies.pop(reply.get("id", 0), None)
            if answer is None:
                raise wire.malformed("a reply to no request")
            answer.put(reply)
        elif kind != wire.PONG:
            raise wire.malformed(f"a frame of type {kind} is not for a sender")

    def _ping(self) -> None:
        while not self._failed.wait(self._route.peer_timeout / 4):
            for connection in self.connections:
                try:
                    connection.send(wire.PING)
                except ConnectionLost as error:
                    self.fail(error)


class Pipeline:
    """Runs one pass over one session: readers hash, writers compress and send, receivers confirm."""

    def __init__(
        self,
        session: Session,
        disks: Sequence[SenderDisk],
        work: PassWork,
        pool: BufferPool,
        detector: hashing.ChangeDetector,
        mask: Mask,
        scanning: Callable[[int], bool],
        differs: Callable[[ExtentKey, Ranges], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self._mask = mask
        self._scanning = scanning
        self._differs = differs
        self._session = session
        self._disks = disks
        self._work = work
        self._pool = pool
        self._detector = detector
        self._cancelled = cancelled
        self._jobs: queue.SimpleQueue[_Ask | _Send | _Clear | None] = queue.SimpleQueue()
        self._asked: dict[ExtentKey, _Read | _Part | _Suspect] = {}
        # With the digest, the fingerprint, and where the extent is counted while it is on its way.
        self._in_flight: dict[ExtentKey, tuple[bytes, bytes, threading.BoundedSemaphore]] = {}
        self._window = threading.BoundedSemaphore(_WINDOW)
        self._clear_window = threading.BoundedSemaphore(_CLEARED_WINDOW)
        self._stopping = threading.Event()
        # By length in bytes: that of an extent, and of the last one of a disk.
        self._zero_fingerprints: dict[int, bytes] = {}
        self._clearing: list[ExtentKey] = []
        self._clearing_lock = threading.Lock()

    def run(self) -> None:
        """Until every extent of the pass is durable on the target.

        Raises what made the session fail, or Cancelled; then the unconfirmed extents stay open in the work.
        """
        session = self._session
        session.on_ack = self._acknowledged
        session.on_leaves = self._compared
        wire_before = session.bytes_out
        threads = [threading.Thread(target=self._read, name="read", daemon=True) for _round in range(_READERS)]
        writers = [
            threading.Thread(target=self._write, args=(connection,), name="write", daemon=True)
            for connection in session.connections
        ]
        for thread in threads + writers:
            thread.start()
        try:
            while not self._work.wait(0.2):
                self._work.counters.bytes_wire += session.bytes_out - wire_before
                wire_before = session.bytes_out
                if session.failed or self._cancelled():
                    break
        finally:
            self._stopping.set()
            complete = self._work.wait(0)
            if not complete:
                # Writers may wait for the network or for bandwidth, and receivers may still route
                # what they got: only closing the session ends both.
                session.close(ConnectionLost("the pass was interrupted"))
            for _writer in writers:
                self._jobs.put(None)
            for thread in threads + writers:
                thread.join()
            self._reclaim()
            self._work.counters.bytes_wire += session.bytes_out - wire_before
        if not complete:
            if self._cancelled():
                raise Cancelled
            raise session.failure or ConnectionLost("the session failed")

    def _ended(self) -> bool:
        return self._stopping.is_set() or self._session.failed

    def _read(self) -> None:
        try:
            while not self._ended():
                buffer = self._pool.acquire(self._ended)
                if buffer is None:
                    return
                taken = self._work.take()
                if taken is None:
                    self._pool.release(buffer)
                    self._clear_gathered(1)
                    # What is open may come back.
                    if self._work.wait(_PATIENCE):
                        return
                    continue
                try:
                    self._examine(*taken, buffer)
                except AgentError:
                    self._pool.release(buffer)
                    raise
        except AgentError as error:
            self._session.fail(error)

    def _examine(self, key: ExtentKey, ranges: Ranges, buffer: memoryview) -> None:
        """Read and hash what is wanted of one extent; what the target has already ends here."""
        disk = self._disks[key.disk]
        known = disk.manifest.get(key.extent)
        if known == UNKNOWN or ranges == ((0, disk.length(key.extent)),):
            self._examine_whole(key, ranges, buffer, known)
            return
        ranges = self._mask.worthwhile(key, ranges)
        if ranges:
            self._jobs.put(_Ask(self._read_part(key, ranges, buffer, known)))
        else:
            self._settle(key, buffer, 0)

    def _read_part(self, key: ExtentKey, ranges: Ranges, buffer: memoryview, held: bytes) -> _Part:
        disk = self._disks[key.disk]
        length = disk.length(key.extent)
        view = buffer[:length]
        for start, end in _together(ranges, length):
            disk.reader.read_part(key.extent, buffer, start, end)
            self._work.count(bytes_read=end - start)
        leaves = {
            number: self._session.hash.leaf(view[number * SUB_BLOCK : (number + 1) * SUB_BLOCK])
            for offset, size in ranges
            for number in range(offset // SUB_BLOCK, sub_block_count(offset + size))
        }
        return _Part(key, buffer, view, leaves, held)

    def _examine_whole(self, key: ExtentKey, ranges: Ranges, buffer: memoryview, known: bytes) -> None:
        disk = self._disks[key.disk]
        view = buffer[: disk.length(key.extent)]
        free = self._free(key, ranges)
        unused = self._masked(disk, key, buffer, view, free)
        fingerprint = self._zero_fingerprint(len(view)) if unused else self._detector.fingerprint(view)
        # The final pass never trusts the change detector.
        if self._work.kind != "final" and disk.unchanged(key.extent, fingerprint):
            self._settle(key, buffer, len(view))
            return
        hashes = self._session.hash
        zeros = hashes.zero_digest(len(view))
        leaves = hashes.zero_leaves(len(view)) if unused else hashes.leaves(view)
        digest = zeros if unused else hashes.digest(leaves)
        if known == UNKNOWN and digest == zeros:
            self._clear(key, buffer, len(view), fingerprint)
            return
        if digest == known:
            disk.confirm(key.extent, digest, fingerprint)
            self._settle(key, buffer, len(view))
            return
        if known != UNKNOWN and self._differs is not None:
            if free:
                disk.reader.read(key.extent, buffer)
            self._jobs.put(_Ask(_Suspect(key, buffer, view, hashes.leaves(view) if free else leaves, leaves, known)))
            return
        item = _Read(key, buffer, view, leaves, digest, fingerprint)
        if known == UNKNOWN and self._session.blank[key.disk]:
            self._jobs.put(_Send(item, self._ranges(item, b"")))
        else:
            self._jobs.put(_Ask(item))

    def _free(self, key: ExtentKey, ranges: Ranges) -> list[tuple[int, int]]:
        """What to leave out of an extent that is read as a whole."""
        free = self._mask.free(key)
        if not free or self._differs is not None or self._scanning(key.disk):
            return free
        # What changed is sent as it is: it may have come into use since the disk was looked at.
        known, changed = FreeRuns(), FreeRuns()
        for start, end in free:
            known.add(start, end)
        for offset, size in ranges:
            changed.add(offset, offset + size)
        return list(known.without(changed))

    def _masked(
        self, disk: SenderDisk, key: ExtentKey, buffer: memoryview, view: memoryview, free: list[tuple[int, int]]
    ) -> bool:
        """Have the extent in the buffer, with zeros for what is free; when that is all, true, and nothing is read."""
        length = len(view)
        if free == [(0, length)]:
            self._work.count(bytes_free=length)
            return True
        disk.reader.read(key.extent, buffer)
        self._work.count(bytes_read=length, bytes_free=sum(end - start for start, end in free))
        for start, end in free:
            view[start:end] = bytes(end - start)
        return False

    def _zero_fingerprint(self, length: int) -> bytes:
        known = self._zero_fingerprints.get(length)
        if known is None:
            known = self._zero_fingerprints[length] = self._detector.fingerprint(memoryview(bytes(length)))
        return known

    def _clear(self, key: ExtentKey, buffer: memoryview, length: int, fingerprint: bytes) -> None:
        """Of zeros there are many extents on most disks: they travel as a list.

        They hold no buffer, so it is here that the reader waits when the target does not come along.
        """
        self._pool.release(buffer)
        if not self._admitted(self._clear_window):
            return
        self._in_flight[key] = self._session.hash.zero_digest(length), fingerprint, self._clear_window
        with self._clearing_lock:
            self._clearing.append(key)
        self._clear_gathered(_CLEARED_TOGETHER)

    def _clear_gathered(self, least: int) -> None:
        with self._clearing_lock:
            if len(self._clearing) < least:
                return
            keys, self._clearing = self._clearing, []
        self._jobs.put(_Clear(keys))

    def _settle(self, key: ExtentKey, buffer: memoryview, length: int) -> None:
        self._pool.release(buffer)
        self._work.count(bytes_skipped=length)
        self._work.finish(key)

    def _ranges(self, item: _Read, held: bytes) -> tuple[Range, ...]:
        """What to send to turn the sub-blocks with the leaves `held` into ours; everything when `held` is empty."""
        zero = self._session.hash.zero_leaf
        own = item.leaves
        count = len(own) // LEAF
        if not held and zero not in own:
            return (Range(0, count, False),)
        parts = []
        for at in range(0, len(own), LEAF):
            leaf = own[at : at + LEAF]
            if leaf != held[at : at + LEAF]:
                parts.append((at // LEAF, leaf == zero))
        return tuple(coalesce(parts))

    def _compared(self, answer: wire.Leaves) -> None:
        """The target told its leaves of an extent that was asked for."""
        item = self._asked.pop(answer.key, None)
        if item is None or len(answer.leaves) != sub_block_count(len(item.view)) * LEAF:
            raise wire.malformed("leaves that were not asked for")
        if not isinstance(item, _Read):
            if self._session.hash.digest(answer.leaves) != item.held:
                # The target holds something else than what it vouched for: a part would not do.
                self._disks[item.key.disk].learn(item.key.extent, UNKNOWN)
                self._pool.release(item.buffer)
                self._work.whole(item.key)
                return
            if isinstance(item, _Suspect):
                self._judge(item, answer.leaves)
                return
            item = self._completed(item, answer.leaves)
        ranges = self._ranges(item, answer.leaves)
        disk = self._disks[item.key.disk]
        if not ranges and item.digest == disk.manifest.get(item.key.extent):
            disk.confirm(item.key.extent, item.digest, item.fingerprint)
            self._settle(item.key, item.buffer, item.read)
        else:
            # Without ranges too: for what it merely holds the target does not vouch before it is told that it is right.
            self._jobs.put(_Send(item, ranges))

    def _judge(self, suspect: _Suspect, told: bytes) -> None:
        """Say where the target is wrong. Nothing is sent: what changed since is what another pass knows of."""
        # Of swap's inside changes are left out, and nobody minds what the target holds there.
        ranges = self._mask.worthwhile(suspect.key, suspect.differing(told))
        if ranges and self._differs is not None:
            self._differs(suspect.key, ranges)
        self._settle(suspect.key, suspect.buffer, len(suspect.view))

    def _completed(self, part: _Part, held: bytes) -> _Read:
        """The part as an extent: its own leaves where it changed, the target's elsewhere."""
        leaves = bytearray(held)
        for number, leaf in part.leaves.items():
            leaves[number * LEAF : (number + 1) * LEAF] = leaf
        merged = bytes(leaves)
        return _Read(part.key, part.buffer, part.view, merged, self._session.hash.digest(merged), b"", whole=False)

    def _acknowledged(self, keys: list[ExtentKey]) -> None:
        for key in keys:
            sent = self._in_flight.pop(key, None)
            if sent is None:
                raise wire.malformed("an acknowledgement of something that was not sent")
            digest, fingerprint, window = sent
            self._disks[key.disk].confirm(key.extent, digest, fingerprint)
            window.release()
            self._work.finish(key)

    def _write(self, connection: Connection) -> None:
        economy = self._session.economy()
        try:
            while not self._ended():
                job = self._jobs.get()
                if job is None:
                    return
                if isinstance(job, _Ask):
                    self._asked[job.item.key] = job.item
                    connection.send(wire.LEAVES_REQUEST, job.item.key.pack())
                elif isinstance(job, _Clear):
                    self._send_clear(connection, job.keys)
                else:
                    self._send(connection, economy, job)
        except ConnectionLost as error:
            self._session.fail(error)

    def _send_clear(self, connection: Connection, keys: list[ExtentKey]) -> None:
        connection.send(wire.CLEAR, wire.pack_extent_keys(keys))
        zeros = sum(self._disks[key.disk].length(key.extent) for key in keys)
        self._work.count(bytes_changed=zeros, bytes_zero=zeros)

    def _send(self, connection: Connection, economy: Economy, job: _Send) -> None:
        item = job.item
        length = len(item.view)
        try:
            if not self._admitted(self._window):
                return
            carried = [part for part in job.ranges if not part.zero]
            pieces = [item.view[slice(*part.span(length))] for part in carried]
            raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            leaves = [item.leaves[part.first * LEAF : (part.first + part.count) * LEAF] for part in carried]
            codec, packed = economy.pack(raw) if raw else (0, raw)
            write = Write(
                item.key,
                item.digest,
                self._session.hash.root(leaves),
                job.ranges,
                codec,
                data_bytes(job.ranges, length),
            )
            self._in_flight[item.key] = item.digest, item.fingerprint, self._window
            # Not the time that passed: on a busy processor most of it is neither the link's nor that of these bytes.
            begun = time.thread_time() + connection.link_seconds
            connection.send(wire.WRITE, write.pack(), packed)
            economy.sent(len(packed), time.thread_time() + connection.link_seconds - begun)
            zeros = zero_bytes(job.ranges, length)
            self._work.count(
                bytes_sent=len(raw),
                bytes_changed=len(raw) + zeros,
                bytes_zero=zeros,
                bytes_skipped=max(0, item.read - len(raw) - zeros),
            )
        finally:
            self._pool.release(item.buffer)

    def _admitted(self, window: threading.BoundedSemaphore) -> bool:
        """Wait until one more may be on its way; false when the session ends before."""
        while not window.acquire(timeout=0.2):
            if self._ended():
                return False
        return True

    def _reclaim(self) -> None:
        """Return the buffers of extents that were on their way when the session ended."""
        self._session.on_ack = None
        self._session.on_leaves = None
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if isinstance(job, (_Ask, _Send)):
                self._pool.release(job.item.buffer)
        for item in list(self._asked.values()):
            self._pool.release(item.buffer)
        self._asked.clear()


def _together(ranges: Ranges, length: int) -> list[tuple[int, int]]:
    """The (start, end) pieces to read for the ranges of an extent of `length` bytes: neighbours in one piece."""
    pieces: list[tuple[int, int]] = []
    for offset, size in ranges:
        # Hashes are of whole sub-blocks.
        start = offset // SUB_BLOCK * SUB_BLOCK
        end = min(length, sub_block_count(offset + size) * SUB_BLOCK)
        if pieces and start - pieces[-1][1] <= _GAP:
            pieces[-1] = (pieces[-1][0], max(end, pieces[-1][1]))
        else:
            pieces.append((start, end))
    return pieces


class Replicator:
    """Passes and requests over sessions that are made again for as long as it takes."""

    def __init__(
        self,
        *,
        migration: str,
        disks: Sequence[SenderDisk],
        route: Route,
        bucket: TokenBucket,
        stalled: Callable[[Exception | None], None],
        mask: Mask,
        scanning: Callable[[int], bool],
        hashes: HashPool,
    ) -> None:
        self._mask = mask
        self._hashes = hashes
        # Whether a disk is gone through as a whole anyhow.
        self._scanning = scanning
        self._migration = migration
        self.disks = disks
        self._route = route
        self._bucket = bucket
        self._stalled = stalled
        self._session: Session | None = None
        # What the target lost, for the next pass.
        self._owed = ExtentSet()
        self._detector = hashing.best_detector()
        self._pool = BufferPool([hashes.buffers.take() for _buffer in range(pool_size(route.connections))])
        self.change_detector = self._detector.name

    @property
    def sizes(self) -> list[int]:
        return [disk.size for disk in self.disks]

    @property
    def session(self) -> Session | None:
        return self._session

    @property
    def complete(self) -> bool:
        """Whether the target is known to hold something everywhere."""
        return all(disk.manifest.complete for disk in self.disks)

    @property
    def owes(self) -> bool:
        """Whether the target lacks something that it was known to hold."""
        return bool(self._owed)

    def run_pass(
        self,
        work: PassWork,
        cancelled: Callable[[], bool],
        differs: Callable[[ExtentKey, Ranges], None] | None = None,
    ) -> None:
        """Until every extent of `work` is durable on the target. Raises AgentError (fatal) or Cancelled.

        differs: for a pass that only looks whether the target is right: told where it is not.
        """

        def attempt(session: Session) -> None:
            Pipeline(
                session,
                self.disks,
                work,
                self._pool,
                self._detector,
                self._mask,
                self._scanning,
                differs,
                cancelled,
            ).run()
            session.blank = [False] * len(self.disks)

        self._hand_over(work)
        try:
            self._persist(attempt, cancelled, work)
        except BaseException:
            # What is owed stays so until the target has it.
            for key in work.wanted_whole:
                self._owed.add(*key)
            for disk in work.wanted_disks:
                self._owed.add_disk(disk)
            raise

    def _hand_over(self, work: PassWork) -> None:
        work.redo(self._owed.keys, self._owed.disks, self._is_unknown)
        self._owed = ExtentSet()

    def _is_unknown(self, key: ExtentKey) -> bool:
        return self.disks[key.disk].manifest.get(key.extent) == UNKNOWN

    def request(self, cancelled: Callable[[], bool], operation: str, **arguments: Any) -> dict[str, Any]:
        """Ask the receiver, again if need be. Raises AgentError (fatal) or Cancelled."""
        answers: list[dict[str, Any]] = []
        self._persist(lambda session: answers.append(session.request(cancelled, operation, **arguments)), cancelled)
        return answers[0]

    def connect(self, cancelled: Callable[[], bool]) -> None:
        """Make sure that a session exists and the target's digests are known."""
        self._persist(lambda session: None, cancelled)

    def refresh(self, cancelled: Callable[[], bool], *, all_unknown: bool = False) -> None:
        """Ask for the target's digests again: what it does not hold any more is owed.

        all_unknown: also what it never held of a disk that is gone through as a whole anyhow.
        """
        self._persist(lambda session: self._pull_digests(session, Losses(), all_unknown=all_unknown), cancelled)

    def _pull_digests(self, session: Session, losses: Losses, *, all_unknown: bool = False) -> None:
        try:
            session.pull_digests(losses)
        finally:
            self._owe(losses, all_unknown=all_unknown)

    def _owe(self, losses: Losses, *, all_unknown: bool = False) -> None:
        self._owed.update(losses.lost)
        # Where all of a disk is read, what the target does not know yet comes in its turn.
        self._owed.update(losses.unknown, lambda disk: all_unknown or not self._scanning(disk))

    def disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def roots(self) -> tuple[list[str], str]:
        """The roots of the disks and of the migration as the target is known to hold them."""
        session = self._session
        if session is None:
            raise ConnectionLost("no session")
        roots = [disk_root(disk.manifest, session.hash) for disk in self.disks]
        return [root.hex() for root in roots], session.hash.root(roots).hex()

    def _persist(
        self, attempt: Callable[[Session], None], cancelled: Callable[[], bool], work: PassWork | None = None
    ) -> None:
        delay = 0.2
        while True:
            try:
                session = self._session or self._open(work)
                self._stalled(None)
                delay = 0.2
                attempt(session)
                return
            except (ConnectionLost, OSError) as error:
                reason: Exception = error
            except AgentError as error:
                self.disconnect()
                if error.code in _FATAL:
                    raise
                reason = error
            except Cancelled:
                if self._session is not None and self._session.failed:
                    self.disconnect()
                raise
            log.warning("connection to %s:%d: %s", self._route.host, self._route.port, reason)
            self.disconnect()
            if work is not None:
                work.requeue_open()
            self._stalled(reason)
            self._pause(delay, cancelled)
            delay = min(5.0, delay * 2)

    def _open(self, work: PassWork | None) -> Session:
        session = Session(self._route, self._migration, self.disks, self._bucket, self._hashes)
        try:
            losses = Losses()
            self._pull_digests(session, losses)
        except BaseException:
            session.close()
            raise
        # A sender that has confirmed anything before knows better than a sample.
        if not all(disk.manifest.blank for disk in self.disks):
            session.blank = [False] * len(self.disks)
        if losses.lost:
            session.blank = [False] * len(self.disks)
        if work is not None:
            self._hand_over(work)
        self._session = session
        return session

    @staticmethod
    def _pause(seconds: float, cancelled: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if cancelled():
                raise Cancelled
            time.sleep(min(0.1, seconds))
        if cancelled():
            raise Cancelled
