# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the cloud itself reads an object by a URL that a user gave it, as an image import does."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from lab.cos.blobs import CHUNK


class FetchError(Exception):
    """COS did not give the object; ``status`` is the HTTP status, 0 when nothing answered or the answer broke off."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def fetch(url: str, file: Path, connect: Callable[[], socket.socket], timeout: float = 60.0, attempts: int = 3) -> int:
    """Store the object at ``url`` in ``file`` and return its size in bytes.

    A transfer that breaks off is continued where it was, ``attempts`` times in all. ``connect`` returns a connection
    to COS, wherever the URL's host would lead: the lab has no name server.
    """
    with file.open("wb") as stream:
        for attempt in range(1, attempts + 1):
            try:
                _read(url, stream, connect, timeout)
            except FetchError as error:
                if error.status or attempt == attempts:
                    raise
            else:
                return stream.tell()
    raise AssertionError("attempts is less than one")


def _read(url: str, stream: IO[bytes], connect: Callable[[], socket.socket], timeout: float) -> None:
    """Append what ``stream`` lacks of the object."""
    parts = urlsplit(url)
    host = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    have = stream.tell()
    try:
        host.sock = connect()
        host.sock.settimeout(timeout)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        headers = {"Host": parts.netloc, **({"Range": f"bytes={have}-"} if have else {})}
        host.request("GET", target, headers=headers)
        answer = host.getresponse()
        if answer.status != (206 if have else 200):
            raise FetchError(answer.status, answer.read(CHUNK).decode("utf-8", "replace"))
        while piece := answer.read(CHUNK):
            stream.write(piece)
        if answer.length:
            raise FetchError(0, f"{answer.length} bytes did not arrive")
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(0, f"{type(error).__name__}: {error}") from error
    finally:
        host.close()
