# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An object becomes the content of a disk: streamed over HTTP, written, flushed, and read back.

Nothing is kept on the way. A transfer that breaks off is continued by a range request. The disk is the one with the
wanted serial and no other, and its own bytes tell whether the work was done already.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fleetlift_agent.devices import TargetDisk, find_target
from fleetlift_agent.errors import AgentError

CHUNK = 4 * 1024 * 1024
# linux/fs.h: forget what is cached of a block device.
BLKFLSBUF = 0x1261
# Seconds between attempts to continue, and how many there are without a byte in between.
PAUSE = 2.0
ATTEMPTS = 10
TIMEOUT = 60.0


@dataclass(frozen=True)
class Order:
    """What to write where. ``size`` in bytes, ``sha256`` of the whole object; the URL is a secret.

    ``connect`` is host and port to connect to in place of the URL's own, empty for that.
    """

    url: str = field(repr=False)
    serial: str
    size: int
    sha256: str
    connect: str = ""
    check: bool = False


def run(value: Mapping[str, Any]) -> dict[str, Any]:
    """Carry an order out; the result says whether something was written. Raises AgentError."""
    try:
        order = Order(**value)
    except TypeError as error:
        raise AgentError("ARGUMENT_INVALID", f"the order is not understood: {error}", "Use one version") from error
    started = time.monotonic()
    with find_target(order.serial, order.size) as disk:
        if digest_of(disk, order.size) == order.sha256:
            return {"ok": True, "changed": False, "seconds": round(time.monotonic() - started, 3)}
        if order.check:
            return {"ok": True, "changed": True, "seconds": 0.0}
        write(order, disk)
        if digest_of(disk, order.size) != order.sha256:
            raise AgentError(
                "DISK_READ_BACK_DIFFERS",
                f"the disk {order.serial} does not hold what was written to it",
                "Run again; if it happens again, replace the disk and report it to the vendor",
                subject=order.serial,
            )
    return {"ok": True, "changed": True, "seconds": round(time.monotonic() - started, 3)}


def digest_of(disk: TargetDisk, size: int) -> str:
    """The SHA-256 of the disk's first ``size`` bytes, past the cache."""
    fcntl.ioctl(disk.fd, BLKFLSBUF)
    digest, offset = hashlib.sha256(), 0
    while offset < size:
        piece = os.pread(disk.fd, min(CHUNK, size - offset), offset)
        if not piece:
            break
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def write(order: Order, disk: TargetDisk, sleep: Callable[[float], None] = time.sleep) -> None:
    """Stream the object onto the disk, and flush it. Raises AgentError."""
    digest, offset, failures = hashlib.sha256(), 0, 0
    while offset < order.size:
        before = offset
        try:
            for piece in pieces(order, offset):
                written = 0
                while written < len(piece):
                    written += os.pwrite(disk.fd, piece[written:], offset + written)
                digest.update(piece)
                offset += len(piece)
        except (OSError, http.client.HTTPException) as error:
            failures = 0 if offset > before else failures + 1
            if failures >= ATTEMPTS:
                raise AgentError(
                    "OBJECT_UNREACHABLE",
                    f"the object cannot be read from the landing: {type(error).__name__}: {error}",
                    "Let the landing reach COS (route, security group, DNS), then run again",
                    subject=order.serial,
                ) from error
            sleep(PAUSE)
    os.fsync(disk.fd)
    if digest.hexdigest() != order.sha256:
        raise AgentError(
            "OBJECT_DIFFERS",
            "what was read from COS is not the file that was uploaded",
            "Upload it again with fleetlift.cvm.cos_object, then run again",
            subject=order.serial,
        )


def pieces(order: Order, offset: int) -> Any:
    """The object's bytes from ``offset`` on. Raises OSError and HTTPException for a transfer that breaks off."""
    parts = urlsplit(order.url)
    host, _colon, port = (order.connect or parts.netloc).partition(":")
    secure = parts.scheme == "https"
    number = int(port) if port else (443 if secure else 80)
    if secure:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, number, timeout=TIMEOUT, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, number, timeout=TIMEOUT)
    try:
        headers = {"Host": parts.netloc, "Range": f"bytes={offset}-"}
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        answer = connection.getresponse()
        if answer.status != 206:
            # Its text would repeat the signature.
            raise AgentError(
                "OBJECT_REFUSED",
                f"COS answers the link with status {answer.status}",
                "Run again, which makes a new link; the object has to be in the bucket still",
                {"status": answer.status},
                subject=order.serial,
            )
        left = order.size - offset
        while left > 0:
            piece = answer.read(min(CHUNK, left))
            if not piece:
                raise ConnectionResetError("the answer ends early")
            left -= len(piece)
            yield piece
    finally:
        connection.close()
