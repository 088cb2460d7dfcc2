# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hashing in processes of its own.

The leaves of an extent are 256 short calls, and each gives the interpreter's lock away and takes it back: with some
threads at work these waits cost more than the hashing. A process that shares the extent's buffer needs one message.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import queue
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NoReturn

from fleetlift_agent.extents import EXTENT, sub_block_count
from fleetlift_agent.forked import close_all_but, end_with_parent
from fleetlift_agent.hashing import LEAF, Hash, available_hashes, load_hash

log = logging.getLogger(__name__)

# One hashes more than 1 GiB/s with BLAKE3, 0.4 GiB/s with SHA-256.
_PROCESSES = 2
# The most memory that one has for itself, in bytes; the rest it shares with the daemon.
OWN_MEMORY = 16 << 20
# Fewer bytes than this are hashed sooner than handed over.
_LEAST = 32 << 10
# One that takes longer than this for an extent is stopped or stuck, in seconds.
_PATIENCE = 20
# The hash's number, where the bytes begin in the shared memory, how many they are.
_ORDER = struct.Struct("=BQI")


class SharedBuffers:
    """Buffers of one extent each, at page boundaries, in memory that is shared with processes forked later."""

    def __init__(self, count: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, max(1, count) * EXTENT))
        self._base = _address(self._memory)
        self._free = [self._memory[number * EXTENT : (number + 1) * EXTENT] for number in range(count)]
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """A buffer that nobody else has; one that is not shared when all of those are taken."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return memoryview(mmap.mmap(-1, EXTENT))

    def give(self, buffer: memoryview) -> None:
        """Return what was taken, once nobody uses it any more."""
        if self.place(buffer) is not None:
            with self._lock:
                self._free.append(buffer)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[memoryview]:
        """A buffer for a while."""
        buffer = self.take()
        try:
            yield buffer
        finally:
            self.give(buffer)

    def place(self, view: memoryview) -> int | None:
        """Where in the shared memory a part of a buffer begins; None when it is not there."""
        place = _address(view) - self._base if len(view) and not view.readonly else -1
        return place if 0 <= place < len(self._memory) else None

    def part(self, place: int, length: int) -> memoryview:
        return self._memory[place : place + length]


class HashPool:
    """Some processes that hash what lies in shared buffers; without any, or once they are gone, the caller does it."""

    def __init__(self, buffers: int) -> None:
        self.buffers = SharedBuffers(buffers)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes: list[_Process] = []
        self._lock = threading.Lock()

    def start(self, count: int | None = None) -> None:
        """Fork the processes: by the main thread, before there are others, and after memory was locked.

        They end with that thread. count: by default two, and none where there is but one processor.
        """
        if count is None:
            processors = len(os.sched_getaffinity(0))
            count = min(_PROCESSES, processors) if processors > 1 else 0
        for _round in range(count):
            try:
                process = _Process(self.buffers)
            except OSError as error:
                # A limit of processes or of memory: it only makes the copy slower.
                log.warning("no further process can be had for hashing: %s", error)
                return
            self._processes.append(process)
            self._idle.put(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def hash(self, name: str) -> Hash:
        """As `load_hash`, with the leaves made by the processes where that is faster."""
        return _PooledHash(name, self)

    def leaves(self, number: int, data: memoryview) -> bytes | None:
        """The leaves by the hash of that number in `available_hashes`; None when the caller has to hash himself."""
        if not self._processes or len(data) < _LEAST:
            return None
        place = self.buffers.place(data)
        while place is not None and self._processes:
            try:
                process = self._idle.get(timeout=0.2)
            except queue.Empty:
                continue
            answer = process.ask(number, place, len(data))
            if answer is not None:
                self._idle.put(process)
                return answer
            log.warning("a hashing process has ended: the others, or this one, do its work")
            with self._lock:
                self._processes.remove(process)
            process.end()
        return None

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            processes, self._processes = self._processes, []
        for process in processes:
            process.end()


class _PooledHash(Hash):
    def __init__(self, name: str, pool: HashPool) -> None:
        self._plain = load_hash(name)
        super().__init__(name, self._plain.new)
        self._pool = pool
        self._number = available_hashes().index(name)

    def each(self, data: memoryview) -> bytes:
        leaves = self._pool.leaves(self._number, data)
        return self._plain.each(data) if leaves is None else leaves

    def at_once(self, data: memoryview) -> bytes | None:
        return self._plain.at_once(data)


class _Process:
    """One process, seen from the daemon."""

    def __init__(self, buffers: SharedBuffers) -> None:
        # Messages keep their bounds, and the end of either side is seen by the other.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            self._channel.close()
            theirs.close()
            raise
        if self.pid == 0:
            _serve(theirs, buffers, parent)
        theirs.close()
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _PATIENCE, 0))

    def ask(self, number: int, place: int, length: int) -> bytes | None:
        size = sub_block_count(length) * LEAF
        try:
            self._channel.send(_ORDER.pack(number, place, length))
            answer = self._channel.recv(size)
        except OSError:
            return None
        return answer if len(answer) == size else None

    def end(self) -> None:
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _serve(channel: socket.socket, buffers: SharedBuffers, parent: int) -> NoReturn:
    """In the forked process: hash what is asked for until the daemon is gone."""
    try:
        # Another child of the daemon may keep its end of the channel open.
        end_with_parent()
        for number in (signal.SIGTERM, signal.SIGINT):
            # The daemon is told, and ends this one when it has no more work for it.
            signal.signal(number, signal.SIG_IGN)
        close_all_but({0, 1, 2, channel.fileno()})
        hashes = [load_hash(name) for name in available_hashes()]
        while os.getppid() == parent:
            order = channel.recv(_ORDER.size)
            if len(order) != _ORDER.size:
                break
            number, place, length = _ORDER.unpack(order)
            channel.send(hashes[number].each(buffers.part(place, length)))
    finally:
        os._exit(0)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
