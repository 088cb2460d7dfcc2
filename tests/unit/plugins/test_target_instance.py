# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Targets that are created: one for each source, whatever happens to the run that creates it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud import client as api_client
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.provision import disk_sizes
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.modules import target_instance
from hypothesis import given
from hypothesis import strategies as st
from lab_fleet import REGION, SECRET_ID, SECRET_KEY

GIB = 1 << 30
FACTS = {
    "disks": [
        {"path": "/dev/sda", "size": 41 * GIB, "serial": "S0", "mounted": ["/"]},
        {"path": "/dev/sdb", "size": 100 * GIB, "serial": "S1", "mounted": ["/srv"]},
    ]
}
OPTIONS = {
    "source": "web1",
    "migration": "web1",
    "source_facts": FACTS,
    "disks": [{"source": "/dev/sda", "target": "system"}, {"source": "S1", "target": "data1"}],
    "zone": "ap-guangzhou-3",
    "instance_type": "S5.MEDIUM4",
    "image_id": "img-debian12",
    "vpc_id": None,
    "subnet_id": None,
    "security_groups": ["sg-fleetlift"],
    "charge_type": "POSTPAID_BY_HOUR",
    "period": None,
    "system_disk_type": None,
    "data_disk_type": None,
    "bandwidth_out": 100,
    "instance_name": None,
    "tags": {"team": "shop"},
    "attempt": 1,
    "wait": True,
    "wait_timeout": 30,
}
ACCESS = {"secret_id": SECRET_ID, "secret_key": SECRET_KEY, "region": REGION}


class Relay:
    """Hands each request on to the cloud. The answers to the first *cut* to RunInstances never come back."""

    def __init__(self, endpoint, cut):
        url = urlsplit(endpoint)
        self._there = (url.hostname, url.port)
        self._cut = cut
        self.reached = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._hand_on, args=(here,), daemon=True).start()

    def _hand_on(self, here):
        with here, here.makefile("rb") as stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += stream.readline()
            length = int(next(line for line in head.lower().split(b"\r\n") if b"content-length" in line).split(b":")[1])
            body = stream.read(length)
            head = head.replace(b"keep-alive", b"close")
            with socket.create_connection(self._there) as there:
                there.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
                answer = there.makefile("rb").read()
            if b"RunInstances" in head and self._cut:
                self._cut -= 1
                self.reached.set()
                return
            here.sendall(answer)

    def close(self):
        self._listening.close()


def run(fleet, endpoint=None, check_mode=False, **changes):
    client = CloudClient(fleet.access(endpoint=endpoint or fleet.endpoint))
    return target_instance.run(Instances(client, REGION), client, {**OPTIONS, **changes}, check_mode=check_mode)


def refused(fleet, **changes):
    with pytest.raises(Refusal) as caught:
        run(fleet, **changes)
    return caught.value.finding


def made(fleet):
    return [name for name, each in fleet.cloud.store.instances.items() if each.tags.get("fleetlift-source") == "web1"]


def test_target_is_created_with_the_sources_sizes_and_its_name_in_the_tags(fleet):
    result = run(fleet)
    (name,) = made(fleet)
    assert (result["changed"], result["instance_id"], result["target"]["state"]) == (True, name, "RUNNING")
    assert [(disk["usage"], disk["size_gb"]) for disk in result["target"]["disks"]] == [("system", 50), ("data", 100)]
    stored = fleet.cloud.store.instances[name]
    assert stored.tags == {"fleetlift-source": "web1", "fleetlift-migration": "web1", "team": "shop"}
    assert stored.name == "web1"


def test_second_run_finds_the_target_and_changes_nothing(fleet):
    first = run(fleet)
    second = run(fleet, instance_type="S5.LARGE8")
    assert (second["changed"], second["instance_id"]) == (False, first["instance_id"])
    assert fleet.changes() == ["RunInstances"]


def test_each_source_has_its_own(fleet):
    names = {run(fleet, source=source, migration=source)["instance_id"] for source in ("web1", "web2", "web3")}
    assert len(names) == 3


def test_lost_answer_does_not_make_a_second_target(fleet, monkeypatch):
    monkeypatch.setattr(api_client, "RETRY_WAITS", (0.01, 0.01, 0.01))
    relay = Relay(fleet.endpoint, cut=2)
    try:
        result = run(fleet, endpoint=relay.endpoint)
    finally:
        relay.close()
    assert made(fleet) == [result["instance_id"]]
    assert fleet.changes() == ["RunInstances"] * 3


def test_run_killed_before_the_answer_is_continued_by_the_next(fleet):
    relay = Relay(fleet.endpoint, cut=99)
    options = {**OPTIONS, **ACCESS, "endpoint": relay.endpoint}
    command = [sys.executable, Path(__file__).with_name("run_module.py"), "target_instance"]
    environment = {"PYTHONPATH": ":".join(sys.path), "NO_PROXY": "*", "PATH": "/usr/bin:/bin"}
    victim = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        victim.stdin.write(json.dumps({key: value for key, value in options.items() if value is not None}).encode())
        victim.stdin.close()
        assert relay.reached.wait(60)
    finally:
        victim.kill()
        victim.wait()
        relay.close()
    assert len(made(fleet)) == 1
    assert made(fleet) == [run(fleet)["instance_id"]]


def test_token_alone_keeps_the_target_single_while_the_tags_are_not_seen_yet(fleet, monkeypatch):
    first = run(fleet)
    monkeypatch.setattr(Instances, "by_filters", lambda self, filters: [])
    assert run(fleet)["instance_id"] == first["instance_id"]
    assert len(made(fleet)) == 1


def test_check_mode_asks_for_a_dry_run_and_creates_nothing(fleet):
    result = run(fleet, check_mode=True)
    assert (result["changed"], result["instance_id"], made(fleet)) == (True, "", [])
    assert [disk["size_gb"] for disk in result["target"]["disks"]] == [50, 100]
    (request,) = fleet.requests("RunInstances")
    assert request["parameters"]["DryRun"] is True
    run(fleet)
    assert run(fleet, check_mode=True)["changed"] is False


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize(
    ("site", "changes", "code"),
    [
        ({"sold_out": ("S5.MEDIUM4",)}, {}, "TARGET_SOLD_OUT"),
        ({"solvent": False}, {}, "ACCOUNT_BALANCE_LOW"),
        ({}, {"instance_type": "S9.HUGE"}, "TARGET_SHAPE_INVALID"),
        ({}, {"image_id": "img-none0000"}, "TARGET_SHAPE_INVALID"),
        ({}, {"zone": "ap-guangzhou-9"}, "TARGET_SHAPE_INVALID"),
        ({}, {"security_groups": ["sg-nothere0"]}, "TARGET_SHAPE_INVALID"),
        ({}, {"disks": [{"source": "/dev/sda", "target": "data1"}]}, "TARGET_DISKS_INCOMPLETE"),
        ({}, {"disks": [{"source": "/dev/sdz", "target": "system"}]}, "DISK_UNKNOWN"),
    ],
)
def test_what_cannot_be_created_is_explained(fleet, site, changes, code, check_mode):
    fleet.cloud.store.site = replace(fleet.cloud.store.site, **site)
    finding = refused(fleet, check_mode=check_mode, **changes)
    assert finding.code == code
    assert finding.action
    assert not made(fleet)


def test_failed_launch_is_named_and_the_next_run_makes_another(fleet):
    fleet.hypervisor.fail.add("create")
    assert refused(fleet).code == "TARGET_LAUNCH_FAILED"
    fleet.hypervisor.fail.clear()
    result = run(fleet)
    assert result["target"]["state"] == "RUNNING"
    assert len(made(fleet)) == 2


def test_target_that_was_terminated_is_only_replaced_by_order(fleet):
    name = run(fleet)["instance_id"]
    with fleet.cloud.store.changing():
        del fleet.cloud.store.instances[name]
    # The cloud still answers with it, and it may only be late in showing it.
    assert refused(fleet, wait_timeout=0).code == "TARGET_NOT_VISIBLE"
    assert run(fleet, attempt=2)["changed"] is True


def test_two_instances_with_the_tags_are_refused(fleet):
    first = run(fleet)["instance_id"]
    second = run(fleet, source="web2")["instance_id"]
    fleet.cloud.store.instances[second].tags["fleetlift-source"] = "web1"
    finding = refused(fleet)
    assert (finding.code, sorted(finding.evidence["instance_ids"])) == ("TARGET_AMBIGUOUS", sorted([first, second]))


@given(st.lists(st.integers(1, 1 << 45), min_size=1, max_size=6))
def test_created_disks_hold_what_they_are_for(bytes_needed):
    names = ["system", *(f"data{number}" for number in range(1, len(bytes_needed)))]
    sizes = disk_sizes(dict(zip(names, bytes_needed)))
    assert all(size * GIB >= needed and size % 10 == 0 for size, needed in zip(sizes, bytes_needed))
