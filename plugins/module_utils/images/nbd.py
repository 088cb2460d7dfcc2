# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bytes of the disk in an image, whatever its format: from qemu-nbd over a socket that only we can reach.

No root, no mount, no kernel module. Protocol: doc/proto.md of NetworkBlockDevice/nbd (fixed newstyle, simple replies).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import qemu
from .header import Header

_GREETING = b"NBDMAGICIHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION, _OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
_EXPORT_NAME_GO = 7
_REPLY_ACK, _REPLY_INFO, _INFO_EXPORT = 1, 3, 0
_REQUEST, _REPLY = 0x25609513, 0x67446698
_READ, _DISCONNECT = 0, 2
# A request has to be below 32 MiB; small ones keep a hostile server's answers small too.
_CHUNK = 1 << 20
_START_SECONDS = 60.0
_ANSWER_SECONDS = 120.0


class DiskUnreadable(Exception):
    """The reason, for people, why the disk in the image cannot be read."""


class NbdDisk:
    """The disk behind a socket; ``size`` in bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._handle = 0
        self.size = self._shake_hands()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk. Raises OSError beyond its end, and where the image cannot be read."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(0, f"byte {offset} + {length} is beyond the end of the disk ({self.size} bytes)")
        parts = []
        for at in range(offset, offset + length, _CHUNK):
            parts.append(self._read(at, min(_CHUNK, offset + length - at)))
        return b"".join(parts)

    def _read(self, offset: int, length: int) -> bytes:
        self._handle += 1
        self._connection.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _READ, self._handle, offset, length))
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if magic != _REPLY or handle != self._handle:
            raise DiskUnreadable("qemu-nbd gave an answer that is none")
        if error:
            raise OSError(error, f"the image cannot be read at byte {offset} of its disk")
        return self._receive(length)

    def _receive(self, length: int) -> bytes:
        parts = []
        while length:
            piece = self._connection.recv(min(length, _CHUNK))
            if not piece:
                raise DiskUnreadable("qemu-nbd ended")
            parts.append(piece)
            length -= len(piece)
        return b"".join(parts)

    def _shake_hands(self) -> int:
        """Take the only export; its size in bytes."""
        if self._receive(16) != _GREETING:
            raise DiskUnreadable("qemu-nbd greets in another language")
        self._receive(2)
        name = struct.pack(">IH", 0, 0)
        option = struct.pack(">QII", _OPTION, _EXPORT_NAME_GO, len(name))
        self._connection.sendall(struct.pack(">I", _FIXED_NEWSTYLE | _NO_ZEROES) + option + name)
        size = -1
        while True:
            magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
            body = self._receive(length)
            if magic != _OPTION_REPLY or kind >> 31:
                raise DiskUnreadable(f"qemu-nbd refuses: {body.decode('utf-8', 'replace')}")
            if kind == _REPLY_INFO and struct.unpack(">H", body[:2])[0] == _INFO_EXPORT:
                size = struct.unpack(">Q", body[2:10])[0]
            if kind == _REPLY_ACK:
                return int(size)

    def close(self) -> None:
        """Say goodbye, after which the server ends."""
        with contextlib.suppress(OSError):
            self._connection.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        self._connection.close()


@contextlib.contextmanager
def served(path: Path, header: Header) -> Iterator[NbdDisk]:
    """The disk in the image at *path*. Raises Refusal, DiskUnreadable."""
    program = qemu.tool("qemu-nbd")
    directory = Path(tempfile.mkdtemp(prefix="fleetlift-image-"))
    try:
        place = directory / "nbd"
        server = subprocess.Popen(
            [program, "--read-only", f"--socket={place}", qemu.opened_as(path, header)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=qemu.ENVIRONMENT,
            preexec_fn=qemu.limited,
        )
        try:
            disk = NbdDisk(_connected(server, place))
            try:
                yield disk
            finally:
                disk.close()
        finally:
            server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=5)
            server.kill()
            server.communicate()
    finally:
        shutil.rmtree(directory)


def _connected(server: subprocess.Popen[bytes], place: Path) -> socket.socket:
    """Connect as soon as the server listens. Raises DiskUnreadable with what it said when it ends instead."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(str(place))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        if server.poll() is not None:
            said = server.stderr.read().decode("utf-8", "replace") if server.stderr else ""
            raise DiskUnreadable(said.strip().rpartition("': ")[2] or f"qemu-nbd ended with status {server.returncode}")
        if time.monotonic() > deadline:
            raise DiskUnreadable(f"qemu-nbd does not answer after {_START_SECONDS:.0f} s")
        time.sleep(0.01)
