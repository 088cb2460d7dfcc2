# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Health checks against real sockets on loopback."""

from __future__ import annotations

import http.server
import os
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.plugin_utils import health_checks
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.health_checks import Outcome, Place, Unhealthy
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.remote_agent import RemoteShell


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers 503 twice, then 200; /private always 401."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(401 if self.path == "/private" else 503 if self.asked < 3 else 200)
        self.end_headers()
        self.wfile.write(b"Welcome to the shop")

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def web() -> Iterator[str]:
    Answers.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


HERE = Place("127.0.0.1", None)


def local(command: str, **options: Any) -> dict[str, Any]:
    """This machine's own shell in the place of a server's."""
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    return {"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def on(execute: Callable[..., dict[str, Any]]) -> Place:
    return Place("127.0.0.1", RemoteShell(execute))


def wait_for(place: Place, check: dict[str, Any], seconds: float = 30) -> Outcome:
    now = time.monotonic()
    return health_checks.run_check(place, check, now, now + seconds)


def test_a_url_is_tried_until_it_answers_as_it_should(web: str) -> None:
    outcome = wait_for(HERE, {"url": f"{web}/", "body": "Welcome"})
    assert (outcome.ok, outcome.tries, Answers.asked) == (True, 3, 3)


def test_an_expected_refusal_is_healthy(web: str) -> None:
    assert health_checks.attempt(HERE, {"url": f"{web}/private", "status": 401}) == "status 401"
    with pytest.raises(Unhealthy, match="status 401, not 200"):
        health_checks.attempt(HERE, {"url": f"{web}/private"})


def test_a_body_that_says_something_else_is_not_healthy(web: str) -> None:
    Answers.asked = 5
    with pytest.raises(Unhealthy, match="Welcome to the shop"):
        health_checks.attempt(HERE, {"url": f"{web}/", "body": "^Closed"})


def test_everything_is_tried_and_reported_with_the_way_back(web: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    checks = [{"port": port}, {"url": f"{web}/", "status": 503}, {"command": "exit 3"}]
    outcomes = health_checks.run_all(on(local), checks, timeout=0.1)
    assert [outcome.ok for outcome in outcomes] == [False, True, False]
    assert [outcome.tries for outcome in outcomes[1:]] == [1, 1]
    finding = health_checks.failure("127.0.0.1", outcomes).finding
    assert finding.code == "HEALTH_CHECK_FAILED"
    assert f"port {port}" in finding.cause and "1 others" in finding.cause
    assert "fleetlift.cvm.rollback" in finding.action and "VNC" in finding.action
    assert [item["check"] for item in finding.evidence["checks"]][2] == "command exit 3"


def test_an_open_port_is_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert wait_for(HERE, {"port": server.getsockname()[1]}, 5).ok


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIThisIsTheKeyOfTheSource"


class Banner(socketserver.BaseRequestHandler):
    """Introduces itself as an SSH server does."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.fixture
def ssh_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """An SSH server on loopback, and a ssh-keyscan that finds one key there."""
    scan = tmp_path / "ssh-keyscan"
    scan.write_text(f"#!/bin/sh\necho '# 127.0.0.1:22 SSH-2.0' >&2\necho \"[127.0.0.1]:$4 {KEY}\"\n")
    scan.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Banner) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_ssh_with_the_source_s_host_key_is_healthy(ssh_port: int) -> None:
    place = Place("127.0.0.1", None, [f"{KEY} root@source"])
    seen = health_checks.attempt(place, {"ssh": True, "ssh_port": ssh_port})
    assert seen == "SSH-2.0-OpenSSH_9.2; 1 host keys are the source's"


def test_ssh_of_another_server_is_not_healthy(ssh_port: int) -> None:
    place = Place("127.0.0.1", None, ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAnotherServersKey root@other"])
    with pytest.raises(Unhealthy, match="it is another server"):
        health_checks.attempt(place, {"ssh": True, "ssh_port": ssh_port})


@pytest.mark.parametrize(
    ("check", "seen"),
    [
        ({"command": "echo ready"}, "ready"),
        ({"command": "exit 3", "rc": 3}, "exit status 3"),
        ({"command": "echo 42 rows", "output": "[0-9]+ rows"}, "42 rows"),
    ],
)
def test_command_that_ends_as_it_should(check: dict[str, Any], seen: str) -> None:
    assert seen in health_checks.attempt(on(local), check)


@pytest.mark.parametrize(
    ("check", "seen"),
    [
        ({"command": "echo broken >&2; exit 1"}, "exit status 1: broken"),
        ({"command": "echo none", "output": "[0-9]+ rows"}, "nothing in the output"),
    ],
)
def test_command_that_does_not(check: dict[str, Any], seen: str) -> None:
    with pytest.raises(Unhealthy, match=seen):
        health_checks.attempt(on(local), check)


def systemd(state: str) -> Callable[..., dict[str, Any]]:
    def execute(command: str, **options: Any) -> dict[str, Any]:
        assert command.startswith("systemctl is-system-running")
        return {"rc": 0, "stdout": f"{state}\ncron.service loaded failed failed x\n", "stderr": ""}

    return execute


def test_degraded_system_is_healthy_for_those_who_say_so() -> None:
    assert health_checks.attempt(on(systemd("degraded")), {"systemd": ["running", "degraded"]})
    with pytest.raises(Unhealthy, match=r"degraded; failed units: cron\.service"):
        health_checks.attempt(on(systemd("degraded")), {"systemd": ["running"]})


def test_connection_that_is_refused_at_first_is_tried_again() -> None:
    answers = iter([AnsibleConnectionFailure("refused"), None])

    def execute(command: str, **options: Any) -> dict[str, Any]:
        error = next(answers)
        if error is not None:
            raise error
        return {"rc": 0, "stdout": "up\n", "stderr": ""}

    outcome = wait_for(on(execute), {"command": "true"})
    assert (outcome.ok, outcome.tries) == (True, 2)


@pytest.mark.parametrize("check", [{}, {"port": 22, "url": "http://x/"}, {"url": "http://x/", "body": "("}])
def test_check_that_is_none_is_refused(check: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="HEALTH_CHECK_INVALID"):
        health_checks.run_all(HERE, [check], 1)
