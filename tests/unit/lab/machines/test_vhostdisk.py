# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A paravirtual disk, driven as a guest's kernel drives it."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.machines import vhostdisk

SIZE = 1 << 20
START = 0x60000000
# Where the test puts things in the guest's memory.
TABLE, AVAILABLE, USED, HEADER, DATA, STATUS = 0, 4096, 8192, 12288, 16384, 65536
QUEUE = 8
SERIAL = "disk-abcdefgh"


class Guest:
    """A kernel with one disk and some memory."""

    def __init__(self, path: Path) -> None:
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(20)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.stream.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "the disk's server does not listen"
        self.file = os.memfd_create("guest")
        os.ftruncate(self.file, SIZE)
        self.memory = mmap.mmap(self.file, SIZE)
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.requests = 0

    def close(self) -> None:
        self.stream.close()
        self.memory.close()
        for descriptor in (self.file, self.kick, self.call):
            os.close(descriptor)

    def send(self, request: int, payload: bytes, *descriptors: int, flags: int = vhostdisk.NEED_REPLY) -> bytes:
        message = struct.pack("<III", request, vhostdisk.VERSION | flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.stream.sendmsg([message], rights)
        answered, answer_flags, size = struct.unpack("<III", self.stream.recv(12, socket.MSG_WAITALL))
        assert (answered, answer_flags) == (request, vhostdisk.VERSION | vhostdisk.REPLY)
        return self.stream.recv(size, socket.MSG_WAITALL)

    def set_up(self) -> None:
        region = struct.pack("<IIQQQQ", 1, 0, START, SIZE, START, 0)
        self.send(vhostdisk.SET_MEM_TABLE, region, self.file)
        self.send(vhostdisk.SET_VRING_NUM, struct.pack("<II", 0, QUEUE))
        addresses = struct.pack("<IIQQQQ", 0, 0, START + TABLE, START + USED, START + AVAILABLE, 0)
        self.send(vhostdisk.SET_VRING_ADDR, addresses)
        self.send(vhostdisk.SET_VRING_BASE, struct.pack("<II", 0, 0))
        self.send(vhostdisk.SET_VRING_CALL, struct.pack("<Q", 0), self.call)
        self.send(vhostdisk.SET_VRING_KICK, struct.pack("<Q", 0), self.kick)

    def request(self, kind: int, sector: int, length: int, *, to_guest: bool) -> int:
        """Make one request over the memory at DATA; its status."""
        self.memory[HEADER : HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
        self.memory[STATUS] = 255
        written = vhostdisk.DESC_WRITE
        chain = [(HEADER, 16, 0)]
        chain += [(DATA, length, written if to_guest else 0)] if length else []
        chain += [(STATUS, 1, written)]
        for index, (place, size, flags) in enumerate(chain):
            last = index + 1 == len(chain)
            entry = struct.pack("<QIHH", START + place, size, flags | (0 if last else vhostdisk.DESC_NEXT), index + 1)
            self.memory[TABLE + 16 * index : TABLE + 16 * index + 16] = entry
        struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * (self.requests % QUEUE), 0)
        self.requests += 1
        struct.pack_into("<H", self.memory, AVAILABLE + 2, self.requests & 0xFFFF)
        os.eventfd_write(self.kick, 1)
        os.eventfd_read(self.call)
        assert struct.unpack_from("<H", self.memory, USED + 2)[0] == self.requests & 0xFFFF
        return int(self.memory[STATUS])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(range(256)) * 4096)
    return file


@pytest.fixture
def server(disk: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "d0"
    with subprocess.Popen([sys.executable, "-m", "lab.machines.vhostdisk", f"{path}={disk}={SERIAL}"]) as process:
        yield path
        process.kill()


@pytest.fixture
def guest(server: Path) -> Iterator[Guest]:
    guest = Guest(server)
    guest.set_up()
    yield guest
    guest.close()


def test_the_guest_reads_the_serial_that_it_was_given(guest: Guest) -> None:
    assert guest.request(vhostdisk.GET_ID, 0, vhostdisk.ID_BYTES, to_guest=True) == vhostdisk.OK
    assert bytes(guest.memory[DATA : DATA + vhostdisk.ID_BYTES]) == SERIAL.encode().ljust(vhostdisk.ID_BYTES, b"\0")


def test_the_guest_is_told_the_size_in_sectors(guest: Guest, disk: Path) -> None:
    answer = guest.send(vhostdisk.GET_CONFIG, struct.pack("<III", 0, 60, 0) + bytes(60))
    assert struct.unpack_from("<Q", answer, 12)[0] == disk.stat().st_size // 512


def test_what_the_guest_writes_is_in_the_file_and_what_is_there_is_read(guest: Guest, disk: Path) -> None:
    guest.memory[DATA : DATA + 4096] = b"\xa5" * 4096
    assert guest.request(vhostdisk.OUT, 8, 4096, to_guest=False) == vhostdisk.OK
    assert disk.read_bytes()[4096:8192] == b"\xa5" * 4096
    assert guest.request(vhostdisk.IN, 16, 512, to_guest=True) == vhostdisk.OK
    assert bytes(guest.memory[DATA : DATA + 512]) == bytes(range(256)) * 2


def test_the_queue_goes_round(guest: Guest) -> None:
    statuses = [guest.request(vhostdisk.FLUSH_DISK, 0, 0, to_guest=False) for _ in range(3 * QUEUE + 1)]
    assert set(statuses) == {vhostdisk.OK}


def test_nothing_is_written_behind_the_end(guest: Guest, disk: Path) -> None:
    size = disk.stat().st_size
    assert guest.request(vhostdisk.OUT, size // 512 - 1, 1024, to_guest=False) == vhostdisk.FAILED
    assert disk.stat().st_size == size


def test_a_kernel_that_restarts_finds_its_disk_again(guest: Guest, server: Path) -> None:
    guest.stream.close()
    again = Guest(server)
    again.set_up()
    assert again.request(vhostdisk.GET_ID, 0, vhostdisk.ID_BYTES, to_guest=True) == vhostdisk.OK
    again.close()
