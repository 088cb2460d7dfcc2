# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The API's request rates, kept by all processes of a controller together."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.request_rate import (
    LONGEST,
    REST,
    SharedPace,
    Unpaced,
    rate_of,
    shared_pace,
)
from lab_fleet import REGION, SECRET_ID, SECRET_KEY, Fleet

PROCESSES = 6
EACH = 4
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The controller's temporary directory."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)
    return directory


# One worker of many: says that it is ready, waits for the start, and asks.
WORKER = """
import json, sys
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import Access, CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.request_rate import Unpaced, shared_pace
given = json.loads(sys.argv[1])
pace = shared_pace("account") if given.pop("paced") else Unpaced()
count = given.pop("count")
client = CloudClient(Access(**given), pace=pace)
print("ready", flush=True)
sys.stdin.readline()
for _unused in range(count):
    client.call("cvm", "DescribeImageQuota", {})
"""


def ask_from_many(fleet: Fleet, directory: Path, *, paced: bool) -> list[str]:
    """The codes that the requests of several processes at once were answered with."""
    given = {
        "secret_id": SECRET_ID, "secret_key": SECRET_KEY, "region": REGION, "endpoint": fleet.endpoint,
        "paced": paced, "count": EACH,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(directory)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _unused in range(PROCESSES)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert [worker.wait(60) for worker in workers] == [0] * PROCESSES
    return [entry["code"] for entry in fleet.requests("DescribeImageQuota")]


def test_processes_together_stay_within_the_rate(fleet: Fleet, temporary: Path) -> None:
    codes = ask_from_many(fleet, temporary, paced=True)
    assert codes.count("OK") == PROCESSES * EACH
    # None, but a machine that is busy otherwise may bunch a few.
    assert codes.count("RequestLimitExceeded") <= 3


def test_processes_that_do_not_share_the_rate_are_turned_away(fleet: Fleet, temporary: Path) -> None:
    codes = ask_from_many(fleet, temporary, paced=False)
    assert codes.count("OK") == PROCESSES * EACH
    assert codes.count("RequestLimitExceeded") > PROCESSES


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pace(directory: Path, clock: Time, key: str = "account") -> SharedPace:
    return SharedPace(directory, key, clock=clock, sleep=clock.sleep)


def test_requests_are_spaced_by_the_rate_of_their_action_and_account(tmp_path: Path) -> None:
    clock = Time()
    for _unused in range(5):
        # Each is another process: nothing but the file is shared.
        pace(tmp_path, clock).wait("cvm", "RunInstances")
    assert sum(clock.slept) == pytest.approx(4 / rate_of("cvm", "RunInstances"))
    clock.slept.clear()
    pace(tmp_path, clock).wait("cvm", "DescribeInstances")
    pace(tmp_path, clock, "another account").wait("cvm", "RunInstances")
    assert clock.slept == []


def test_time_that_nobody_used_is_not_saved_up(tmp_path: Path) -> None:
    clock = Time()
    pace(tmp_path, clock).wait("cvm", "RunInstances")
    clock.now += 3600
    for _unused in range(3):
        pace(tmp_path, clock).wait("cvm", "RunInstances")
    assert sum(clock.slept) == pytest.approx(2 / rate_of("cvm", "RunInstances"))


def test_all_rest_after_one_was_turned_away(tmp_path: Path) -> None:
    clock = Time()
    pace(tmp_path, clock).refused("cvm", "RunInstances")
    pace(tmp_path, clock).wait("cvm", "RunInstances")
    assert clock.slept == [pytest.approx(REST)]


@pytest.mark.parametrize("left", [b"", b"abc", b"\xff" * 8])
def test_what_is_no_time_holds_nobody_back(tmp_path: Path, left: bytes) -> None:
    clock = Time()
    pace(tmp_path, clock).wait("cvm", "RunInstances")
    [path] = tmp_path.iterdir()
    path.write_bytes(left)
    pace(tmp_path, clock).wait("cvm", "RunInstances")
    assert clock.slept == []


def test_a_time_of_before_the_last_boot_holds_nobody_back(tmp_path: Path) -> None:
    clock = Time()
    pace(tmp_path, clock).wait("cvm", "RunInstances")
    clock.now -= LONGEST + 1
    pace(tmp_path, clock).wait("cvm", "RunInstances")
    assert clock.slept == []


def test_client_waits_before_each_request_and_tells_of_refusals(fleet: Fleet) -> None:
    noted: list[str] = []

    class Noting(Unpaced):
        def wait(self, service: str, action: str) -> None:
            noted.append("wait")

        def refused(self, service: str, action: str) -> None:
            noted.append("refused")

    client = CloudClient(fleet.access(), pace=Noting(), sleep=lambda seconds: threading.Event().wait(0.3) and None)
    for _unused in range(12):
        client.call("cvm", "DescribeImageQuota", {})
    codes = [entry["code"] for entry in fleet.requests("DescribeImageQuota")]
    assert noted.count("wait") == len(codes)
    assert noted.count("refused") == codes.count("RequestLimitExceeded") > 0


def test_the_directory_is_the_users_own(temporary: Path) -> None:
    assert isinstance(shared_pace("account"), SharedPace)
    [directory] = temporary.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    shared_pace("AKIDsecret").wait("cvm", "RunInstances")
    [path] = directory.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "AKID" not in path.name


def test_a_directory_of_somebody_else_is_not_used(temporary: Path) -> None:
    directory = temporary / f"fleetlift-{os.getuid()}"
    directory.mkdir()
    directory.chmod(0o777)
    assert type(shared_pace("account")) is Unpaced
    directory.rmdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)
    assert type(shared_pace("account")) is Unpaced


def test_no_rate_is_above_what_the_vendor_documents() -> None:
    documented = json.loads((REPOSITORY / "lab" / "cloud" / "documented.json").read_text())
    for service, content in documented.items():
        for action, about in content["actions"].items():
            assert 0 < rate_of(service, action) < about["requests_per_second"], action
