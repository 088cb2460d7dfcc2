# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""COS on a socket: the bucket is in the host name, bodies are streamed, faults happen on the way."""

from __future__ import annotations

import logging
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from lab.cloud.request_log import RequestLog
from lab.cos import documents
from lab.cos.api import Answer, Api, Request
from lab.cos.errors import CosError
from lab.cos.faults import Faults
from lab.cos.signature import FIELDS
from lab.cos.store import Store

log = logging.getLogger(__name__)

APPID = "1250000000"
CHUNK = 1024 * 1024
# What is left of a refused request is read up to this many bytes, so that the client sees the answer.
MOST_DRAINED = 64 * 1024 * 1024
# x-cos-traffic-limit is in bit/s (vendor's page 436/40140).
TRAFFIC_LIMITS = (819_200, 838_860_800)


class CosServer:
    """Serves COS of one account and region on a listening socket, which may be in another network namespace.

    credentials maps secret ids to secret keys. clock gives epoch seconds for signatures. request_log names a file
    that gets a line of JSON for each request; no signature is in it.
    """

    def __init__(
        self,
        listening: socket.socket,
        directory: Path,
        credentials: Mapping[str, str],
        *,
        region: str,
        clock: Callable[[], float] = time.time,
        request_log: Path | None = None,
    ) -> None:
        self.store = Store(directory, APPID)
        self.faults = Faults()
        self.traffic = Traffic()
        self._log = RequestLog(request_log)
        self._http = _HttpServer(listening, self, Api(self.store, credentials, clock), region)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="cos", daemon=True)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more requests and close the socket; the files stay."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        self._log.close()

    def status(self) -> dict[str, Any]:
        """Buckets, traffic in bytes, and the faults that wait, for people and programs."""
        buckets = {}
        for name in self.store.bucket_names():
            objects = self.store.objects(name, "")
            buckets[name] = {
                "objects": len(objects),
                "bytes": sum(item.size for item in objects),
                "uploads": len(self.store.uploads(name, "")),
            }
        return {
            "buckets": buckets,
            **self.traffic.figures(),
            "faults": [asdict(fault) for fault in self.faults.waiting()],
        }

    def note(self, request: Request, operation: str, code: str, received: int, sent: int, seconds: float) -> None:
        """Count a request and put it into the log."""
        self.traffic.count(received, sent)
        query = {name: value for name, value in request.query.items() if name not in FIELDS and value}
        parameters = {"bucket": request.bucket, "key": request.key, **query, "received": received, "sent": sent}
        self._log.write(
            product="cos",
            action=operation,
            request_id=str(uuid.uuid4()),
            parameters=parameters,
            code=code,
            seconds=seconds,
        )


class Traffic:
    """How much has passed since the start, in requests and bytes of bodies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._received = self._sent = 0

    def count(self, received: int, sent: int) -> None:
        """Add one request."""
        with self._lock:
            self._requests += 1
            self._received += received
            self._sent += sent

    def figures(self) -> dict[str, int]:
        """The sums."""
        with self._lock:
            return {"requests": self._requests, "bytes_received": self._received, "bytes_sent": self._sent}


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, cos: CosServer, api: Api, region: str) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.cos = cos
        self.api = api
        self.host = re.compile(
            rf"(?P<bucket>[a-z0-9-]+)\.cos(-internal)?\.{re.escape(region)}\.(myqcloud\.com|tencentcos\.cn)(:\d+)?"
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only the connection itself can fail here; the client sees that too."""
        log.info("the connection from %s broke", client_address, exc_info=True)


class _Broken(Exception):
    """The connection was cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds an idle connection is kept
    # An answer's head and body leave in one segment, and without waiting for an acknowledgement.
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        self._serve()

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT

    def version_string(self) -> str:
        """What the Server header says."""
        return "tencent-cos"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the request log, not on standard error."""

    def _serve(self) -> None:
        server = cast(_HttpServer, self.server)
        started = time.monotonic()
        self._received = self._sent = 0
        operation, code = "", "OK"
        request = self._request(server)
        try:
            try:
                operation, answer = self._perform(server, request)
            except CosError as refusal:
                code, answer = refusal.code, _refusal(refusal, request)
            except (_Broken, ConnectionError, TimeoutError):
                raise
            except Exception:
                log.exception("%s %s ended unexpectedly", request.method, request.path)
                failure = CosError("InternalError", "We encountered an internal error. Please try again.")
                code, answer = failure.code, _refusal(failure, request)
            self._drain(request.length)
            self._send(server, answer)
        except (_Broken, ConnectionError, TimeoutError):
            code = "Disconnected"
            self._reset()
        finally:
            server.cos.note(request, operation, code, self._received, self._sent, time.monotonic() - started)

    def _request(self, server: _HttpServer) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        host = server.host.fullmatch(headers.get("host", ""))
        url = urlsplit(self.path)
        length = headers.get("content-length", "0")
        return Request(
            method=self.command,
            bucket=host["bucket"] if host else "",
            path=unquote(url.path),
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            headers=headers,
            length=int(length) if length.isdigit() else 0,
            chunks=self._chunks,
        )

    def _perform(self, server: _HttpServer, request: Request) -> tuple[str, Answer]:
        if "transfer-encoding" in request.headers:
            self.close_connection = True
            raise CosError("MissingContentLength", "You must provide the Content-Length HTTP header.")
        if not request.bucket:
            raise CosError("NoSuchBucket", "The host names no bucket of this region.")
        refusal = server.cos.faults.take_refusal(request.method)
        if refusal is not None:
            slow = refusal.kind == "slow_down"
            raise CosError("SlowDown" if slow else "InternalError", "Please try again later.")
        self._damage = server.cos.faults.take_damage(request.method, request.length)
        self._pace = _traffic_limit(request.headers.get("x-cos-traffic-limit"))
        self._length = request.length
        return server.api.answer(request)

    def _chunks(self) -> Iterator[memoryview]:
        """The rest of the request's body, with what befalls it on the way."""
        buffer = memoryview(bytearray(min(CHUNK, max(1, self._length))))
        started = time.monotonic()
        while self._received < self._length:
            count = self.rfile.readinto(buffer[: min(len(buffer), self._length - self._received)])
            if not count:
                raise ConnectionResetError("the body ends early")
            piece = buffer[:count]
            if self._damage is not None and self._damage.meets(self._received, count):
                if self._damage.kind == "cut":
                    raise _Broken
                piece = memoryview(self._damage.inverted(piece, self._received))
            self._received += count
            if self._pace:
                time.sleep(max(0.0, started + self._received * 8 / self._pace - time.monotonic()))
            yield piece

    def _drain(self, length: int) -> None:
        """Read what the request still holds, or give the connection up when that is much."""
        left = length - self._received
        if left > MOST_DRAINED:
            self.close_connection = True
            return
        while left > 0:
            piece = self.rfile.read(min(CHUNK, left))
            if not piece:
                raise ConnectionResetError("the body ends early")
            left -= len(piece)

    def _send(self, server: _HttpServer, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.length))
        self.send_header("x-cos-request-id", uuid.uuid4().hex)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        damage = server.cos.faults.take_damage(self.command, answer.length) if self.command == "GET" else None
        for piece in answer.pieces:
            if damage is not None and damage.meets(self._sent, len(piece)):
                if damage.kind == "cut":
                    # What came before the cut arrives, as on a real line.
                    self.wfile.write(piece[: damage.after - self._sent])
                    raise _Broken
                piece = bytes(damage.inverted(piece, self._sent))
            self.wfile.write(piece)
            self._sent += len(piece)

    def _reset(self) -> None:
        """Break the connection the hard way: the peer gets a reset, not an end."""
        self.close_connection = True
        try:
            self.wfile.flush()
        except OSError:
            return  # It is broken already.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _traffic_limit(text: str | None) -> int:
    """Bits per second, 0 for no limit. Raises CosError."""
    if text is None:
        return 0
    if not text.isdigit() or not TRAFFIC_LIMITS[0] <= int(text) <= TRAFFIC_LIMITS[1]:
        raise CosError("InvalidArgument", "x-cos-traffic-limit is out of its range.")
    return int(text)


def _refusal(error: CosError, request: Request) -> Answer:
    body = documents.document(
        "Error",
        {
            "Code": error.code,
            "Message": error.message,
            "Resource": f"{request.headers.get('host', '')}{request.path}",
            "RequestId": uuid.uuid4().hex,
            "TraceId": uuid.uuid4().hex,
        },
    )
    return Answer(HTTPStatus(error.status), {"Content-Type": "application/xml"}, [body], len(body))
