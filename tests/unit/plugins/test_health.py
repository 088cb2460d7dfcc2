# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Health checks against real sockets on loopback."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.modules import health


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers 503 twice, then 200; /private always 401."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(401 if self.path == "/private" else 503 if self.asked < 3 else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def web() -> Iterator[str]:
    Answers.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(**given: Any) -> dict[str, Any]:
    return {"port": None, "url": None, "status": 200, **given}


def test_a_url_is_tried_until_it_answers_as_it_should(web: str) -> None:
    health.wait_for("127.0.0.1", check(url=f"{web}/"), time.monotonic() + 30)
    assert Answers.asked == 3


def test_an_expected_refusal_is_healthy(web: str) -> None:
    health.attempt("127.0.0.1", check(url=f"{web}/private", status=401))
    with pytest.raises(OSError, match="status 401, not 200"):
        health.attempt("127.0.0.1", check(url=f"{web}/private"))


def test_a_closed_port_ends_in_a_finding_with_the_way_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Refusal, match="HEALTH_CHECK_FAILED") as caught:
        health.wait_for("127.0.0.1", check(port=port), time.monotonic() - 1)
    assert "power the source on" in caught.value.finding.action
    assert caught.value.finding.evidence["check"] == f"port {port}"


def test_an_open_port_is_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        health.wait_for("127.0.0.1", check(port=server.getsockname()[1]), time.monotonic() + 5)
