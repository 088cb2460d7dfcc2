# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the cloud itself reads an object by a URL that a user gave it, as an image import does."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from lab.cos.blobs import CHUNK


class FetchError(Exception):
    """COS did not give the object; ``status`` is the HTTP status, 0 when nothing answered or the answer broke off."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def fetch(url: str, file: Path, connect: Callable[[], socket.socket], timeout: float = 60.0) -> int:
    """Store the object at ``url`` in ``file`` and return its size in bytes.

    ``connect`` returns a connection to COS, wherever the URL's host would lead: the lab has no name server.
    """
    parts = urlsplit(url)
    host = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    host.sock = connect()
    host.sock.settimeout(timeout)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        host.request("GET", target, headers={"Host": parts.netloc})
        answer = host.getresponse()
        if answer.status != 200:
            raise FetchError(answer.status, answer.read(CHUNK).decode("utf-8", "replace"))
        with file.open("wb") as stream:
            while piece := answer.read(CHUNK):
                stream.write(piece)
            return stream.tell()
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(0, f"{type(error).__name__}: {error}") from error
    finally:
        host.close()
