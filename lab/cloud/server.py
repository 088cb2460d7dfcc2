# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The API over HTTP: signed JSON in, JSON out, always status 200."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from lab.cloud import (  # noqa: F401 - each registers its actions
    cbs,
    cvm,
    images,
    reset_instance,
    run_instances,
    snapshots,
    vpc,
)
from lab.cloud.actions import HANDLERS, Call
from lab.cloud.cloud import Cloud
from lab.cloud.documented import PRODUCTS, ActionFacts
from lab.cloud.errors import COMMON_CODES, ApiError
from lab.cloud.hypervisor import Hypervisor
from lab.cloud.limits import RateLimiter
from lab.cloud.parameters import JsonObject, check_request, check_response, has_model
from lab.cloud.request_log import RequestLog
from lab.cloud.signature import Caller, verify
from lab.cloud.store import Store

log = logging.getLogger(__name__)

MAXIMUM_BODY = 10 * 1024 * 1024
UIN = "100000000001"
REGIONLESS = frozenset({"DescribeRegions"})


class CloudServer:
    """Serves one cloud on a listening socket, which may have been bound in another network namespace.

    credentials maps secret ids to secret keys, all of one account. clock gives epoch seconds for signatures and
    rates. minimum_delay is the least time in seconds that an asynchronous operation takes. request_log names a
    file that gets a line of JSON for each request.
    """

    def __init__(
        self,
        listening: socket.socket,
        store: Store,
        hypervisor: Hypervisor,
        credentials: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.time,
        minimum_delay: float = 0.3,
        request_log: Path | None = None,
    ) -> None:
        self.cloud = Cloud(store, hypervisor, minimum_delay)
        self._api = Api(self.cloud, credentials, clock, RequestLog(request_log))
        self._http = _HttpServer(listening, self._api)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="cloud-api", daemon=True)

    def start(self) -> None:
        """Answer requests from now on. What an earlier run left half done ends first."""
        if self.cloud.store.restored:
            self.cloud.recover()
        self._thread.start()

    def close(self) -> None:
        """Answer no more requests, wait for the work under way, close the socket."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        self.cloud.close()
        self._api.close()


class Api:
    """From a request's headers and body to the answer."""

    def __init__(
        self, cloud: Cloud, credentials: Mapping[str, str], clock: Callable[[], float], request_log: RequestLog
    ) -> None:
        self._cloud = cloud
        self._credentials = credentials
        self._clock = clock
        self._limiter = RateLimiter(clock)
        self._log = request_log

    def close(self) -> None:
        """Close the request log."""
        self._log.close()

    def answer(self, headers: Mapping[str, str], body: bytes) -> JsonObject:
        """The envelope for a POST; header names in lower case."""
        request_id = str(uuid.uuid4())
        started = time.monotonic()
        code = "OK"
        seen: JsonObject = {"product": "", "parameters": None}
        try:
            response = self._perform(headers, body, request_id, seen)
        except ApiError as error:
            code = error.code
            response = {"Error": {"Code": error.code, "Message": error.message}}
        except Exception:
            log.exception("request %s ended unexpectedly", request_id)
            code = "InternalError"
            response = {"Error": {"Code": code, "Message": "An internal error has occurred. Retry your request."}}
        self._log.write(
            product=seen["product"],
            action=headers.get("x-tc-action", ""),
            request_id=request_id,
            parameters=seen["parameters"],
            code=code,
            seconds=time.monotonic() - started,
        )
        return {"Response": {**response, "RequestId": request_id}}

    def _perform(self, headers: Mapping[str, str], body: bytes, request_id: str, seen: JsonObject) -> JsonObject:
        caller = verify(headers, body, self._credentials, self._clock())
        seen["product"] = caller.service
        facts, action = _find_action(caller, headers)
        self._check_region(headers, action)
        self._limiter.admit(UIN, caller.service, action, facts.requests_per_second)
        seen["parameters"] = given = _parse(headers, body)
        parameters = check_request(caller.service, action, facts.required, given)
        try:
            response = HANDLERS[caller.service, action](self._cloud, Call(action, request_id, parameters))
        except ApiError as error:
            if error.code not in facts.errors | COMMON_CODES:
                raise AssertionError(f"{error.code} is not documented for {action}") from error
            raise
        check_response(caller.service, action, response)
        return response

    def _check_region(self, headers: Mapping[str, str], action: str) -> None:
        region = headers.get("x-tc-region")
        if not region:
            if action in REGIONLESS:
                return
            raise ApiError("MissingParameter", "The request is missing a required parameter `Region`.")
        if region != self._cloud.store.site.region:
            raise ApiError("UnsupportedRegion", f"The region `{region}` is not supported.")


def _find_action(caller: Caller, headers: Mapping[str, str]) -> tuple[ActionFacts, str]:
    product = PRODUCTS.get(caller.service)
    if product is None:
        raise ApiError("NoSuchProduct", f"The product `{caller.service}` does not exist.")
    action, version = headers.get("x-tc-action"), headers.get("x-tc-version")
    if not action:
        raise ApiError("MissingParameter", "The request is missing a required parameter `Action`.")
    if not version:
        raise ApiError("MissingParameter", "The request is missing a required parameter `Version`.")
    if version != product.version:
        raise ApiError("NoSuchVersion", f"The version `{version}` of `{caller.service}` does not exist.")
    facts = product.actions.get(action)
    if facts is None:
        if has_model(caller.service, f"{action}Request"):
            raise ApiError("InvalidAction", f"The action `{action}` exists, but the lab's cloud does not offer it.")
        raise ApiError("InvalidAction", f"The action `{action}` is invalid or not found.")
    return facts, action


def _parse(headers: Mapping[str, str], body: bytes) -> Any:
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError("InvalidRequest", "The content type of the request must be application/json.")
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError("InvalidRequest", f"The body of the request is not valid JSON: {error}.") from error


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, api: Api) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only the connection itself can fail here; the client sees that too."""
        log.info("the connection from %s broke", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds an idle connection is kept

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            self.close_connection = True
            self._send(_refusal("InvalidRequest", "The request has no Content-Length."))
            return
        if int(length) > MAXIMUM_BODY:
            self.close_connection = True
            self._send(_refusal("RequestSizeLimitExceeded", f"The request is larger than {MAXIMUM_BODY} bytes."))
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(cast(_HttpServer, self.server).api.answer(headers, body))

    def do_GET(self) -> None:
        self._send(_refusal("UnsupportedProtocol", "The lab's cloud takes POST requests only."))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the request log, not on standard error."""

    def _send(self, answer: JsonObject) -> None:
        data = json.dumps(answer, ensure_ascii=False).encode()
        self.send_response(200)
        # The SDK recognises errors only in an answer of exactly this type, without a charset.
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _refusal(code: str, message: str) -> JsonObject:
    return {"Response": {"Error": {"Code": code, "Message": message}, "RequestId": str(uuid.uuid4())}}
