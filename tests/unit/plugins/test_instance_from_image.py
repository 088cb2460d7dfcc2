# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Instances of imported images against the lab's cloud: created once, reset once, refused where they cannot fit."""

from __future__ import annotations

import threading

import pytest
from ansible_collections.fleetlift.cvm.plugins.action import disk_from_object
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.errors import CloudError
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.instances import Instances
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.reinstall import Reinstall
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.modules import instance_from_image
from lab_fleet import REGION, WEB, seen_by, small_store

from lab.cloud.store import Image

IMAGE = "img-web00001"
SNAPSHOT = "snap-web00001"


@pytest.fixture
def store():
    store = small_store()
    disks = [{"snapshot_id": SNAPSHOT, "size_gb": 5}]
    store.images[IMAGE] = Image(IMAGE, "web1", "Debian", "Debian 12", size_gb=30, data_disks=disks)
    store.images["img-working1"] = Image("img-working1", "web2", "Debian", "Debian 12", state="IMPORTING")
    return store


def run(fleet, *, check_mode=False, **options):
    client = CloudClient(fleet.access())
    params = {
        "source": "web1",
        "migration": "web1",
        "state": "present",
        "image_id": IMAGE,
        "instance_id": None,
        "zone": "ap-guangzhou-3",
        "instance_type": "S5.MEDIUM4",
        "system_disk_size": None,
        "data_disks": [],
        "vpc_id": None,
        "subnet_id": None,
        "security_groups": ["sg-fleetlift"],
        "charge_type": "POSTPAID_BY_HOUR",
        "period": None,
        "system_disk_type": None,
        "data_disk_type": None,
        "bandwidth_out": 0,
        "instance_name": None,
        "tags": {},
        "address": "auto",
        "wait": True,
        "wait_timeout": 30,
        **options,
    }
    return instance_from_image.run(Instances(client, REGION), client, params, check_mode=check_mode)


def refused(function, *arguments, **options):
    with pytest.raises(Refusal) as caught:
        function(*arguments, **options)
    return caught.value.finding


def asked(fleet, action):
    return [entry["parameters"] for entry in fleet.requests(action)]


def test_instance_is_created_once_with_the_images_own_accounts_and_disks(fleet):
    disks = [{"size_gb": 10, "snapshot_id": SNAPSHOT}, {"size_gb": 20, "snapshot_id": None}]
    planned = run(fleet, data_disks=disks, check_mode=True)
    assert planned["changed"] and planned["instance_id"] == "" and run(fleet, state="found")["target"] is None
    made = run(fleet, data_disks=disks)
    assert made["changed"] and made["target"]["state"] == "RUNNING" and made["address"].startswith("10.97.")
    request = asked(fleet, "RunInstances")[-1]
    assert request["LoginSettings"] == {"KeepImageLogin": "TRUE"} and request["SystemDisk"]["DiskSize"] == 30
    assert request["DataDisks"] == [{"DiskSize": 10, "SnapshotId": SNAPSHOT}, {"DiskSize": 20}]
    again = run(fleet, data_disks=disks)
    assert (again["changed"], again["instance_id"]) == (False, made["instance_id"])
    assert run(fleet, state="found")["instance_id"] == made["instance_id"]


def test_instance_is_reset_once(fleet):
    assert run(fleet, instance_id=WEB, check_mode=True)["changed"]
    assert not asked(fleet, "ResetInstance")
    done = run(fleet, instance_id=WEB)
    assert done["changed"] and done["target"]["image_id"] == IMAGE and done["address"] == "203.0.113.11"
    assert not run(fleet, instance_id=WEB)["changed"]
    assert len(asked(fleet, "ResetInstance")) == 1


def test_reset_that_runs_already_is_waited_for(fleet):
    fleet.hypervisor.gate.clear()
    CloudClient(fleet.access()).call("cvm", "ResetInstance", {"InstanceId": WEB, "ImageId": IMAGE})
    done = []
    waiting = threading.Thread(target=lambda: done.append(run(fleet, instance_id=WEB)))
    waiting.start()
    seen_by(fleet, "DescribeInstances")
    fleet.hypervisor.gate.set()
    waiting.join(30)
    assert done[0]["changed"] and done[0]["target"]["state"] == "RUNNING"
    assert len(asked(fleet, "ResetInstance")) == 1


def test_failed_reset_is_explained_and_done_again(fleet):
    fleet.hypervisor.fail.add("reinstall")
    assert refused(run, fleet, instance_id=WEB).code == "TARGET_RESET_FAILED"
    fleet.hypervisor.fail.clear()
    assert run(fleet, instance_id=WEB)["target"]["state"] == "RUNNING"


def test_reset_that_does_not_end_is_not_begun_again(fleet):
    fleet.hypervisor.gate.clear()
    assert refused(run, fleet, instance_id=WEB, wait_timeout=1).code == "TARGET_RESET_TIMEOUT"
    fleet.hypervisor.gate.set()
    assert run(fleet, instance_id=WEB)["target"]["state"] == "RUNNING"
    assert len(asked(fleet, "ResetInstance")) == 1


def test_data_disk_that_is_no_raw_image_is_refused(tmp_path):
    file = tmp_path / "data.qcow2"
    file.write_bytes(b"QFI\xfb" + bytes(100))
    assert refused(disk_from_object.measured, file).code == "IMAGE_DATA_NOT_RAW"
    assert refused(disk_from_object.measured, tmp_path / "missing").code == "IMAGE_UNREADABLE"
    file.write_bytes(b"a disk")
    assert disk_from_object.measured(file)[0] == 6


class Losing(CloudClient):
    """Carries ResetInstance out and loses the answer."""

    def call(self, service, action, params, **options):
        answer = super().call(service, action, params, **options)
        if action == "ResetInstance":
            raise CloudError("ClientNetworkError", "connection reset", "", action)
        return answer


def test_lost_answer_to_a_reset_is_found_in_the_instance(fleet):
    client = Losing(fleet.access())
    image = instance_from_image.image_of(instance_from_image.Images(client), IMAGE)
    done = Reinstall(client, Instances(client, REGION), WEB, Waiter(30)).ensure(image)
    assert done.target.image_id == IMAGE and len(asked(fleet, "ResetInstance")) == 1


def test_disk_that_is_too_small_is_refused_before_anything(fleet):
    fleet.cloud.store.images[IMAGE].size_gb = 51
    for options in ({"instance_id": WEB}, {"system_disk_size": 50}):
        finding = refused(run, fleet, **options)
        assert (finding.code, finding.evidence["needed_gb"]) == ("TARGET_DISK_SMALLER", 51)
    assert fleet.changes() == []


def test_image_that_is_not_ready_is_refused(fleet):
    for image_id in ("img-working1", "img-missing1"):
        assert refused(run, fleet, image_id=image_id).code == "IMAGE_NOT_READY"
    assert fleet.changes() == []


def test_expired_instance_is_refused(fleet):
    fleet.cloud.set_instance(WEB, RestrictState="EXPIRED")
    for state in ("found", "present"):
        assert refused(run, fleet, instance_id=WEB, state=state).code == "TARGET_EXPIRED"
    assert fleet.changes() == []


def test_instance_to_reset_is_looked_at_first(fleet):
    assert run(fleet, instance_id=WEB, state="found")["target"]["disks"][0]["size_bytes"] == 50 << 30
    assert refused(run, fleet, instance_id="ins-missing1", state="found").code == "TARGET_NOT_FOUND"
