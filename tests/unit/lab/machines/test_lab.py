# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole lab by its command line: up, use, crash, down, and not a trace left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cli import controller_environment
from lab.command import run
from lab.ledger import Ledger
from lab.place import DEFAULT_DIRECTORY, Place
from lab.processes import is_alive

from .conftest import eventually, traces

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[4]
DESCRIPTION = """\
sources:
  - name: web
    address: 10.96.0.11
    disks:
      - {device: sda, serial: LAB-WEB-0, size_mib: 1024, filesystem: ext4, mount: /}
security_groups:
  - id: sg-test
    ingress: [{protocol: TCP, port: "22"}]
instances:
  - id: ins-test0001
    name: target
    private_address: 10.97.0.11
    public_address: 203.0.113.11
    image: none
    state: STOPPED
    system_disk: {id: disk-test0001, size_gb: 2}
    security_groups: [sg-test]
"""
RESCUE = """
import os, time
from tencentcloud.common import credential
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.cvm.v20170312 import cvm_client, models
profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint="10.98.0.10"))
account = credential.EnvironmentVariableCredential().get_credential()
client = cvm_client.CvmClient(account, os.environ["TENCENTCLOUD_REGION"], profile)
request = models.EnterRescueModeRequest()
request.InstanceId, request.Username, request.Password = "ins-test0001", "root", "Correct-Horse7"
client.EnterRescueMode(request)
request = models.DescribeInstancesRequest()
request.InstanceIds = ["ins-test0001"]
deadline = time.monotonic() + 30
while client.DescribeInstances(request).InstanceSet[0].InstanceState != "RESCUE_MODE":
    assert time.monotonic() < deadline
    time.sleep(0.05)
"""


class Lab:
    """A lab of the command line."""

    def __init__(self, place: Place, description: Path) -> None:
        self.place = place
        self.description = description

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lab", "--name", self.place.name, *words],
            cwd=REPOSITORY,
            env={**os.environ, "FLEETLIFT_LAB_DIR": str(self.place.base)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def status(self) -> dict[str, dict[str, object]]:
        machines = json.loads(self("status", "--json").stdout)["machines"]
        return {machine["name"]: machine for machine in machines}

    def daemon(self) -> int:
        """The daemon's process id: the first process that a lab takes."""
        return Ledger(self.place.ledger).read().processes[0].pid


@pytest.fixture
def lab(base_root: Path, tmp_path: Path) -> Iterator[Lab]:
    place = Place(Path(os.environ.get("FLEETLIFT_LAB_DIR") or DEFAULT_DIRECTORY), f"c{os.getpid()}")
    description = tmp_path / "lab.yml"
    description.write_text(DESCRIPTION)
    lab = Lab(place, description)
    try:
        yield lab
    finally:
        lab("down")
    assert not any(traces(place).values()), traces(place)


def test_lab_goes_up_is_used_and_goes_down(lab: Lab) -> None:
    started = lab("up", str(lab.description))
    assert started.returncode == 0, started.stdout + started.stderr
    again = lab("up", str(lab.description))
    assert again.returncode == 0 and "running already" in again.stdout
    assert lab("ssh", "web", "--", "hostname").stdout == "web\n"
    states = {name: (row["kind"], row["power"], row["state"]) for name, row in lab.status().items()}
    assert states == {"web": ("source", "running", "RUNNING"), "ins-test0001": ("instance", "off", "STOPPED")}
    for path in lab.place.directory.rglob("*"):
        assert not path.is_file() or path.name == "lab.json" or lab.place.directory.stat().st_mode & 0o077 == 0
    assert lab.place.credentials.stat().st_mode & 0o777 == 0o600

    environment = lab("run", "--", "env").stdout
    account = json.loads(lab.place.credentials.read_text())
    for line in (
        f"FLEETLIFT_LAB_NAME={lab.place.name}",
        f"FLEETLIFT_LAB_DIR={lab.place.base}",
        f"TENCENTCLOUD_SECRET_ID={account['secret_id']}",
        f"TENCENTCLOUD_SECRET_KEY={account['secret_key']}",
        "TENCENTCLOUD_REGION=ap-guangzhou",
        "NO_PROXY=*",
    ):
        assert line in environment.splitlines()
    assert lab("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert lab("run", "--", sys.executable, "-m", "lab", "--name", lab.place.name, "down").returncode == 1

    assert lab("machine", "stop", "web").returncode == 0
    assert lab.status()["web"]["power"] == "off"
    refused = lab("verify", "web", "target")
    assert refused.returncode == 1 and "holds no filesystem" in refused.stderr
    assert lab("machine", "start", "web").returncode == 0
    eventually(lambda: lab("ssh", "web", "--", "true").returncode == 0, "ssh")
    assert "--- power on" in lab("console", "web").stdout
    assert lab("machine", "stop", "target").returncode == 1

    assert lab("link", "down", "web").returncode == 0
    assert lab.status()["web"]["link"] == "down"
    assert lab("ssh", "web", "--", "true").returncode != 0
    assert lab("link", "up", "web").returncode == 0
    eventually(lambda: lab("ssh", "web", "--", "true").returncode == 0, "ssh")

    assert lab("instance", "set", "target", "RestrictState=EXPIRED").returncode == 0
    misspelt = lab("instance", "set", "target", "Nonsense=1")
    assert misspelt.returncode == 1 and "Nonsense" in misspelt.stderr
    unknown = lab("link", "up", "elsewhere")
    assert unknown.returncode == 1 and "no machine 'elsewhere'" in unknown.stderr

    assert lab("down").returncode == 0
    assert not any(traces(lab.place).values())
    assert "there is no lab" in lab("down").stdout


def test_killed_daemon_and_supervisor_leave_nothing_after_down(lab: Lab) -> None:
    assert lab("up", str(lab.description)).returncode == 0
    rescued = lab("run", "--", sys.executable, "-c", RESCUE)
    assert rescued.returncode == 0, rescued.stderr
    freeze = "import fcntl, os; fcntl.ioctl(os.open('/', os.O_RDONLY), 0xC0045877, 0)"
    # Writers that wait for a thaw, and nobody left who would thaw.
    lab("ssh", "web", "--", "(while :; do date >> /root/dates; done) > /dev/null 2>&1 & sleep 0.2")
    assert lab("ssh", "web", "--", f'python3 -c "{freeze}"').returncode == 0
    holdings = Ledger(lab.place.ledger).read()
    inside = run(["ip", "netns", "pids", f"fl-{lab.place.name}-web"]).split()
    for process in holdings.processes:
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not any(is_alive(process) for process in holdings.processes), "what was killed ends")
    left = traces(lab.place)
    assert left["namespaces"] and left["loops"]
    again = lab("up", str(lab.description))
    assert again.returncode == 1 and "left behind by a crash" in again.stderr
    assert lab("down").returncode == 0
    assert not any(traces(lab.place).values()), traces(lab.place)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), "their parent reaps them")


def test_daemon_that_dies_takes_its_machines_with_it(lab: Lab) -> None:
    assert lab("up", str(lab.description)).returncode == 0
    os.kill(lab.daemon(), signal.SIGKILL)
    name = f"fl-{lab.place.name}-web"
    eventually(lambda: run(["ip", "netns", "pids", name]) == "", "machines end")


def test_lab_that_cannot_start_says_why_and_leaves_nothing(lab: Lab) -> None:
    name = f"fl-{lab.place.name}-web"
    run(["ip", "netns", "add", name])
    try:
        failed = lab("up", str(lab.description))
        assert failed.returncode == 1
        assert f"a network namespace {name} exists already" in failed.stderr
        assert "what to do" in failed.stderr
        assert name in run(["ip", "netns"])
    finally:
        run(["ip", "netns", "delete", name])
    assert not any(traces(lab.place).values()), traces(lab.place)


def test_directory_of_someone_else_is_never_touched(lab: Lab) -> None:
    lab.place.directory.mkdir()
    (lab.place.directory / "precious").write_text("mine")
    try:
        for words in (("up", str(lab.description)), ("down",), ("status",)):
            refused = lab(*words)
            assert refused.returncode == 1
        assert (lab.place.directory / "precious").read_text() == "mine"
    finally:
        (lab.place.directory / "precious").unlink()
        lab.place.directory.rmdir()


def test_connections_that_ansible_shares_are_the_labs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETLIFT_LAB_DIR", str(tmp_path))
    paths = []
    for name in ("one", "two"):
        place = Place.of(name)
        place.directory.mkdir()
        place.credentials.write_text('{"secret_id": "i", "secret_key": "k", "region": "r"}', encoding="ascii")
        paths.append(controller_environment(place)["ANSIBLE_SSH_CONTROL_PATH_DIR"])
    assert len(set(paths)) == 2 and all(str(tmp_path) in path for path in paths)
