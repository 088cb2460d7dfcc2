# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleetlift_agent.errors import AgentError
from fleetlift_agent.services import (
    NullServiceManager,
    OpenRCServices,
    ServiceManager,
    SystemdServices,
    SysVServices,
    detect,
)

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import eventually

# A real daemon behind a real init script. It keeps the script's standard output open, as many daemons do.
SCRIPT = """#!/bin/sh
pidfile={directory}/{name}.pid
echo "$1 {name}" >> {directory}/journal
running() {{ [ -f $pidfile ] && kill -0 $(cat $pidfile) 2>/dev/null; }}
case "$1" in
  start) running || {{ sleep 1000 & echo $! > $pidfile; }} ;;
  stop) {stop} ;;
  status) running && exit 0; exit 3 ;;
  *) echo "Usage: $0 start|stop|status"; exit 2 ;;
esac
"""
STOP = "running && kill $(cat $pidfile); rm -f $pidfile"


class Host:
    """Services of which some run, with a record of what was asked of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scripts = directory / "etc/init.d"
        self.scripts.mkdir(parents=True)
        self.manager: ServiceManager = SysVServices(self.scripts)

    def add(self, name: str, *, stop: str = STOP, script: str = SCRIPT, running: bool = True) -> None:
        path = self.scripts / name
        path.write_text(script.format(directory=self.directory, name=name, stop=stop))
        path.chmod(0o755)
        if running:
            self.manager.start([name], 10)
        (self.directory / "journal").write_text("")

    def pid(self, name: str) -> int:
        return int((self.directory / f"{name}.pid").read_text())

    def changes(self) -> list[str]:
        lines = (self.directory / "journal").read_text().splitlines()
        return [line for line in lines if not line.startswith("status ")]

    def end(self) -> None:
        for pidfile in self.directory.glob("*.pid"):
            try:
                os.kill(int(pidfile.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    created = Host(tmp_path)
    yield created
    created.end()


def failure(action: Callable[[], object]) -> AgentError:
    with pytest.raises(AgentError) as caught:
        action()
    return caught.value


def test_running_services_stop_in_order_and_the_others_are_left_alone(host: Host) -> None:
    host.add("web")
    host.add("idle", running=False)
    host.add("db")
    pid = host.pid("db")
    assert host.manager.stop(["web", "idle", "db"], 10) == ["web", "db"]
    assert host.changes() == ["stop web", "stop db"]
    assert not host.manager.is_running("web")
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_services_start_in_reverse_order_and_running_ones_are_left_alone(host: Host) -> None:
    for name in ("web", "app", "db"):
        host.add(name, running=name == "app")
    host.manager.start(["web", "app", "db"], 10)
    assert host.changes() == ["start db", "start web"]
    assert all(host.manager.is_running(name) for name in ("web", "app", "db"))


def test_started_daemon_does_not_hold_the_agent_or_its_session(host: Host) -> None:
    started = time.monotonic()
    host.add("web")
    assert time.monotonic() - started < 5
    assert os.getsid(host.pid("web")) != os.getsid(0)


def test_unknown_service_is_refused_before_anything_stops(host: Host) -> None:
    host.add("web")
    error = failure(lambda: host.manager.stop(["web", "wbe"], 10))
    assert (error.code, error.subject) == ("SERVICE_UNKNOWN", "wbe")
    assert host.changes() == []
    assert host.manager.is_running("web")


@pytest.mark.parametrize("name", ["", "../web", "-h", "web;id", "a b", "web\n"])
def test_name_that_is_no_name_is_refused(host: Host, name: str) -> None:
    host.add("web", running=False)
    assert failure(lambda: host.manager.stop([name], 10)).code == "SERVICE_UNKNOWN"


def test_failure_restarts_what_was_stopped(host: Host) -> None:
    host.add("web")
    host.add("db", stop="echo disk full; exit 1")
    host.add("never")
    error = failure(lambda: host.manager.stop(["web", "db", "never"], 10))
    assert (error.code, error.subject) == ("SERVICE_STOP_FAILED", "db")
    assert error.evidence == {"status": 1, "output": "disk full", "restarted": ["web", "db"]}
    assert host.changes() == ["stop web", "stop db", "start web"]
    assert all(host.manager.is_running(name) for name in ("web", "db", "never"))


def test_script_that_hangs_is_ended_and_what_was_stopped_restarted(host: Host) -> None:
    host.add("web")
    host.add("db", stop="exec sleep 1000")
    started = time.monotonic()
    error = failure(lambda: host.manager.stop(["web", "db"], 0.5))
    assert time.monotonic() - started < 5
    assert error.code == "SERVICE_STOP_FAILED"
    assert "0.5 seconds" in error.cause
    assert host.manager.is_running("web")


def test_service_that_goes_on_running_has_not_stopped(host: Host) -> None:
    host.add("db", stop="exit 0")
    error = failure(lambda: host.manager.stop(["db"], 0.5))
    assert error.code == "SERVICE_STOP_FAILED"
    assert "0.5 seconds" in error.cause


def test_service_that_cannot_be_restarted_is_reported_with_the_first_error(host: Host) -> None:
    host.add("web", stop=f"{STOP}; sed -i 's/sleep 1000 &/exit 5 #/' $0")
    host.add("db", stop="exit 1")
    error = failure(lambda: host.manager.stop(["web", "db"], 5))
    assert error.subject == "db"
    assert error.evidence["restart"]["code"] == "SERVICE_START_FAILED"
    assert list(error.evidence["restart"]["evidence"]) == ["web"]


def test_one_service_that_does_not_start_keeps_no_other_from_starting(host: Host) -> None:
    host.add("web", running=False)
    host.add("db", running=False, script="#!/bin/sh\n[ $1 = status ] && exit 3\nexit 7\n")
    error = failure(lambda: host.manager.start(["web", "db"], 5))
    assert (error.code, list(error.evidence)) == ("SERVICE_START_FAILED", ["db"])
    assert host.manager.is_running("web")


@pytest.mark.parametrize("status", ["exit 4", "echo 'Usage: db {{start|stop}}'; exit 2", "exit 150"])
def test_script_that_tells_no_state_is_refused_before_anything_stops(host: Host, status: str) -> None:
    host.add("web")
    host.add("db", script=f"#!/bin/sh\n{status}\n", running=False)
    assert failure(lambda: host.manager.stop(["web", "db"], 5)).code == "SERVICE_STATE_UNKNOWN"
    assert host.changes() == []


def test_server_without_service_manager_refuses_names_only(tmp_path: Path) -> None:
    manager = detect(root=tmp_path, search_path=str(tmp_path))
    assert isinstance(manager, NullServiceManager)
    assert manager.stop([], 1) == []
    manager.start([], 1)
    for action in (
        lambda: manager.stop(["nginx"], 1),
        lambda: manager.start(["nginx"], 1),
        lambda: manager.is_running("nginx"),
    ):
        assert failure(action).code == "SERVICE_MANAGER_UNKNOWN"


def test_manager_that_runs_the_server_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "etc/init.d").mkdir(parents=True)
    assert isinstance(detect(root=tmp_path, search_path=""), SysVServices)
    (tmp_path / "rc-service").write_text("#!/bin/sh\n")
    (tmp_path / "rc-service").chmod(0o755)
    assert isinstance(detect(root=tmp_path, search_path=str(tmp_path)), OpenRCServices)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert isinstance(detect(root=tmp_path, search_path=str(tmp_path)), SystemdServices)


# The commands' documented interfaces (systemctl(1), rc-service(8)) in front of the same init scripts.
SYSTEMCTL = """#!/bin/sh
[ "$1" = --no-ask-password ] && shift
case "$1" in
  show) unit=${{4%.service}}
    case "$2" in
      --property=LoadState) [ -x {scripts}/$unit ] && echo LoadState=loaded || echo LoadState=not-found ;;
      --property=ActiveState) {scripts}/$unit status && echo ActiveState=active || echo ActiveState=inactive ;;
    esac ;;
  start|stop) [ "$2" = -- ] || exit 64; exec {scripts}/${{3%.service}} $1 ;;
  *) exit 64 ;;
esac
"""
RC_SERVICE = """#!/bin/sh
[ "$1" = --exists ] && exec test -x {scripts}/$2
exec {scripts}/$1 $2
"""


@pytest.mark.parametrize(
    ("text", "kind"), [(SYSTEMCTL, SystemdServices), (RC_SERVICE, OpenRCServices)], ids=["systemd", "openrc"]
)
def test_other_managers_keep_the_same_promises(host: Host, text: str, kind: Callable[[str], ServiceManager]) -> None:
    command = host.directory / "command"
    command.write_text(text.format(scripts=host.scripts))
    command.chmod(0o755)
    host.add("web")
    host.add("idle", running=False)
    host.add("db")
    manager = kind(str(command))
    assert manager.is_running("web")
    assert not manager.is_running("idle")
    assert failure(lambda: manager.stop(["web", "wbe"], 10)).code == "SERVICE_UNKNOWN"
    assert manager.stop(["web", "idle", "db"], 10) == ["web", "db"]
    manager.start(["web", "db"], 10)
    assert host.changes() == ["stop web", "stop db", "start db", "start web"]
    host.add("db", stop="exit 1")
    assert failure(lambda: manager.stop(["web", "db"], 10)).evidence["restarted"] == ["web", "db"]
    assert manager.is_running("web")
