# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A paravirtual disk for a kernel that has no hypervisor below it: the host's half of virtio-blk.

    python -m lab.machines.vhostdisk SOCKET=FILE=SERIAL...

User-mode Linux has disks of its own, but none with a serial number, and by its serial a target's disk is known. Each
disk is a raw file served over one socket to one kernel after the other: one that restarts comes again.

Formats: docs/interop/vhost-user.rst of QEMU (messages), Virtual I/O Device (VIRTIO) 1.1, 2.6 (split virtqueues) and
5.2 (block device).
"""

from __future__ import annotations

import array
import mmap
import os
import selectors
import socket
import struct
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

GET_FEATURES, SET_MEM_TABLE = 1, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, GET_CONFIG = 15, 24
VERSION, REPLY, NEED_REPLY = 1, 4, 8
# In the second byte of the number of a queue: there is no descriptor.
NO_FD = 1

SEG_MAX, BLK_SIZE, FLUSH, HAS_PROTOCOL_FEATURES, VERSION_1 = 1 << 2, 1 << 6, 1 << 9, 1 << 30, 1 << 32
# Without a channel for the host's own requests, which nobody uses, User-mode Linux has no interrupt for the disk.
REPLY_ACK, HOST_REQUESTS, CONFIG = 1 << 3, 1 << 5, 1 << 9
SEGMENTS = 126
SECTOR = 512
CONFIG_BYTES = 256

IN, OUT, FLUSH_DISK, GET_ID = 0, 1, 4, 8
OK, FAILED, UNSUPPORTED = 0, 1, 2
ID_BYTES = 20
DESC_NEXT, DESC_WRITE = 1, 2

_HEADER = struct.Struct("<III")
_DESC = struct.Struct("<QIHH")
_REQUEST = struct.Struct("<IIQ")


@dataclass(frozen=True)
class Memory:
    """The guest's memory: ``view`` begins at the guest's address ``start``."""

    start: int
    view: memoryview

    def at(self, address: int, length: int) -> memoryview:
        """Return ``length`` bytes of the guest at ``address``."""
        offset = address - self.start
        if offset < 0 or offset + length > len(self.view):
            raise ValueError(f"the guest names memory that it does not have: {length} bytes at {address:#x}")
        return self.view[offset : offset + length]


@dataclass
class Queue:
    """A virtqueue: addresses of its three parts in the guest, and how far it has been worked off."""

    size: int = 0
    descriptors: int = 0
    available: int = 0
    used: int = 0
    done: int = 0
    kick: int = -1
    call: int = -1


@dataclass
class Disk:
    """One disk: its file, what the guest is told, and the connection to the guest."""

    descriptor: int
    serial: str
    sectors: int
    memory: list[Memory] = field(default_factory=list)
    queue: Queue = field(default_factory=Queue)

    def configuration(self) -> bytes:
        """struct virtio_blk_config: capacity in sectors, then the most segments of a request and the block's size."""
        return struct.pack("<QIII", self.sectors, 0, SEGMENTS, 0).ljust(20, b"\0") + struct.pack("<I", SECTOR)

    def at(self, address: int, length: int) -> memoryview:
        """Return ``length`` bytes of the guest at ``address``."""
        for memory in self.memory:
            if memory.start <= address < memory.start + len(memory.view):
                return memory.at(address, length)
        raise ValueError(f"the guest names memory that it does not have: {address:#x}")

    def work(self) -> bool:
        """Do every request that waits; whether there was one."""
        queue = self.queue
        # Two bytes at a time, as the other side writes them.
        available = self.at(queue.available, 4 + 2 * queue.size).cast("H")
        used = self.at(queue.used, 4 + 8 * queue.size)
        count = used[2:4].cast("H")
        began = queue.done
        while queue.done != available[1]:
            head = available[2 + queue.done % queue.size]
            written = self._request(head)
            struct.pack_into("<II", used, 4 + 8 * (queue.done % queue.size), head, written)
            queue.done = (queue.done + 1) & 0xFFFF
            # On x86 stores are seen in their order: first the element, then the count.
            count[0] = queue.done
        return queue.done != began

    def _request(self, head: int) -> int:
        """Do one request; the bytes written to the guest."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        table = self.at(self.queue.descriptors, 16 * self.queue.size)
        index = head
        for _hop in range(self.queue.size):
            address, length, flags, following = _DESC.unpack_from(table, 16 * index)
            (writable if flags & DESC_WRITE else readable).append(self.at(address, length))
            if not flags & DESC_NEXT:
                break
            index = following
        kind, _priority, sector = _REQUEST.unpack(readable[0][:16])
        status = writable.pop()
        size = sum(map(len, writable))
        try:
            status[0] = self._transfer(kind, sector * SECTOR, readable[1:], writable)
        except OSError as error:
            print(f"{self.serial}: request {kind} at sector {sector}: {error}", file=sys.stderr, flush=True)
            status[0] = FAILED
        return size + 1

    def _transfer(self, kind: int, offset: int, readable: list[memoryview], writable: list[memoryview]) -> int:
        if kind in (IN, OUT):
            buffers = writable if kind == IN else readable
            size = sum(map(len, buffers))
            if offset + size > self.sectors * SECTOR:
                return FAILED
            move = os.preadv if kind == IN else os.pwritev
            return OK if move(self.descriptor, buffers, offset) == size else FAILED
        if kind == FLUSH_DISK:
            # The host's page cache outlives the guest, whose power may be cut at any time.
            return OK
        if kind == GET_ID:
            writable[0][:ID_BYTES] = self.serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
            return OK
        return UNSUPPORTED


class Connection:
    """The guest's kernel, which sets its disk up over this socket."""

    def __init__(self, stream: socket.socket, disk: Disk) -> None:
        self.stream = stream
        self._disk = disk

    def serve(self) -> bool:
        """Handle one message; False when the guest has gone."""
        header, descriptors = self._receive(_HEADER.size)
        if len(header) < _HEADER.size:
            return False
        request, flags, size = _HEADER.unpack(header)
        payload = b""
        while len(payload) < size:
            piece = self.stream.recv(size - len(payload))
            if not piece:
                return False
            payload += piece
        answer = self._handle(request, payload, descriptors)
        if answer is None and flags & NEED_REPLY:
            answer = struct.pack("<Q", 0)
        if answer is not None:
            self.stream.sendall(_HEADER.pack(request, VERSION | REPLY, len(answer)) + answer)
        return True

    def _receive(self, size: int) -> tuple[bytes, list[int]]:
        data, ancillary, _flags, _address = self.stream.recvmsg(size, socket.CMSG_SPACE(8 * 4))
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) // 4 * 4])
        return data, list(descriptors)

    def _handle(self, request: int, payload: bytes, descriptors: list[int]) -> bytes | None:
        queue = self._disk.queue
        if request == GET_FEATURES:
            return struct.pack("<Q", SEG_MAX | BLK_SIZE | FLUSH | HAS_PROTOCOL_FEATURES | VERSION_1)
        if request == GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", REPLY_ACK | HOST_REQUESTS | CONFIG)
        if request == GET_CONFIG:
            offset, size, flags = struct.unpack_from("<III", payload)
            whole = self._disk.configuration().ljust(CONFIG_BYTES, b"\0")
            return struct.pack("<III", offset, size, flags) + whole[offset : offset + size]
        if request == GET_VRING_BASE:
            return struct.pack("<II", 0, queue.done)
        if request == SET_MEM_TABLE:
            self._map(payload, descriptors)
        elif request == SET_VRING_NUM:
            queue.size = struct.unpack_from("<II", payload)[1]
        elif request == SET_VRING_ADDR:
            queue.descriptors, queue.used, queue.available = struct.unpack_from("<QQQ", payload, 8)
        elif request == SET_VRING_BASE:
            queue.done = struct.unpack_from("<II", payload)[1]
        elif request == SET_VRING_KICK:
            queue.kick = -1 if payload[1] & NO_FD else descriptors[0]
        elif request == SET_VRING_CALL:
            queue.call = -1 if payload[1] & NO_FD else descriptors[0]
        return None

    def _map(self, payload: bytes, descriptors: list[int]) -> None:
        (count,) = struct.unpack_from("<I", payload)
        regions = [struct.unpack_from("<QQQQ", payload, 8 + 32 * number) for number in range(count)]
        self._disk.memory = []
        for (_guest, size, start, offset), descriptor in zip(regions, descriptors, strict=True):
            mapped = mmap.mmap(descriptor, offset + size)
            os.close(descriptor)
            self._disk.memory.append(Memory(start, memoryview(mapped)[offset:]))


def serve(disks: list[tuple[Path, Path, str]]) -> None:
    """Serve each disk (socket, file, serial) to whichever kernel connects. Does not return."""
    selector = selectors.DefaultSelector()
    for path, file, serial in disks:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        server.listen(1)
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        sectors = os.fstat(descriptor).st_size // SECTOR
        selector.register(server, selectors.EVENT_READ, partial(_accept, selector, server, descriptor, serial, sectors))
    while True:
        for key, _events in selector.select():
            key.data()


def _accept(
    selector: selectors.BaseSelector, server: socket.socket, descriptor: int, serial: str, sectors: int
) -> None:
    stream, _address = server.accept()
    disk = Disk(descriptor, serial, sectors)
    selector.register(stream, selectors.EVENT_READ, partial(_converse, selector, Connection(stream, disk), disk))


def _converse(selector: selectors.BaseSelector, connection: Connection, disk: Disk) -> None:
    before = disk.queue.kick
    alive = connection.serve()
    if before != -1 and (not alive or disk.queue.kick != before):
        selector.unregister(before)
        os.close(before)
    if not alive:
        selector.unregister(connection.stream)
        connection.stream.close()
    elif disk.queue.kick not in (-1, before):
        selector.register(disk.queue.kick, selectors.EVENT_READ, partial(_work, disk))


def _work(disk: Disk) -> None:
    os.read(disk.queue.kick, 8)
    if disk.work() and disk.queue.call >= 0:
        os.write(disk.queue.call, struct.pack("<Q", 1))


def main() -> None:
    """Serve the disks that the command line names."""
    disks = [word.split("=") for word in sys.argv[1:]]
    serve([(Path(path), Path(file), serial) for path, file, serial in disks])


if __name__ == "__main__":
    main()
