# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images by their names through the real SDK against the lab's cloud: imported once, explained when that fails."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import cos_site
import lab_fleet
import pytest
import yaml
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud import image_import
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.client import CloudClient
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.errors import CloudError, meaning_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.image_import import Context, Importer, choose_system
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.images import Images, ImportRequest, Supported
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.evidence_file import write_evidence
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.import_failures import CODES, meaning_of_notice
from ansible_collections.fleetlift.cvm.plugins.module_utils.import_progress import ImportProgress, import_line
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import read_progress
from cos_site import BUCKET, CosSite
from lab_fleet import SECRET_KEY, seen_by

from lab.cloud.hypervisor import ImageRejected
from lab.cloud.images import TEXTS

URL = "https://images-1250000000.cos.ap-guangzhou.myqcloud.com/web1.qcow2"
CONTENT = "web1.qcow2 12345 bytes CRC64 678"


def images(fleet):
    return Images(CloudClient(fleet.access()))


def importer(fleet, *, timeout=20.0, name="web1", **options):
    return Importer(images(fleet), name, Waiter(timeout, sleep=lambda _: threading.Event().wait(0.05)), **options)


def request(content=CONTENT, **options):
    return ImportRequest(
        name="web1",
        url=URL,
        architecture="x86_64",
        os_type="Debian",
        os_version="12",
        description=content or "",
        **options,
    )


def present(fleet, *, content=CONTENT, force=False, make=None, **options):
    return importer(fleet, **options).present(make or (lambda: request(content)), content=content, force=force)


def refused(function, *arguments, **options):
    with pytest.raises(Refusal) as caught:
        function(*arguments, **options)
    return caught.value.finding


# By its name


def test_image_is_imported_once(fleet):
    seen = []
    outcome = present(fleet, tell=lambda state, waited: seen.append(state))
    assert (outcome.changed, outcome.image.state, outcome.image.size_gb) == (True, "NORMAL", 2)
    assert outcome.image.description == CONTENT
    assert seen[0] == "absent" and seen[-1] == "NORMAL"
    again = present(fleet, make=lambda: pytest.fail("a second import was begun"))
    assert (again.changed, again.image.image_id) == (False, outcome.image.image_id)
    assert len(fleet.requests("ImportImage")) == 1


def test_interrupted_import_is_waited_for(fleet):
    fleet.hypervisor.gate.clear()
    images(fleet).start_import(request())
    outcomes = []
    waiting = threading.Thread(target=lambda: outcomes.append(present(fleet)))
    waiting.start()
    seen_by(fleet, "DescribeImages")
    fleet.hypervisor.gate.set()
    waiting.join(20)
    assert outcomes[0].changed and outcomes[0].image.state == "NORMAL"
    assert len(fleet.requests("ImportImage")) == 1


def test_image_whose_name_only_contains_the_name_is_another(fleet):
    images(fleet).start_import(dataclasses.replace(request(), name="web10"))
    assert images(fleet).named("web1") is None
    assert present(fleet).image.name == "web1"


def test_image_of_another_object_is_not_taken_for_this_one(fleet):
    present(fleet)
    finding = refused(present, fleet, content="web1.qcow2 12345 bytes CRC64 999")
    assert finding.code == "IMAGE_NAME_TAKEN"
    assert fleet.changes().count("DeleteImages") == 0


def test_failed_image_is_deleted_and_imported_again(fleet):
    fleet.hypervisor.rejected = ImageRejected("VirtioNotInstall", "none")
    assert refused(present, fleet).blocks
    fleet.hypervisor.rejected = None
    assert present(fleet).image.state == "NORMAL"
    assert fleet.changes().count("ImportImage") == 2 and fleet.changes().count("DeleteImages") == 1


def test_international_site_is_asked_by_name(fleet):
    fleet.cloud.store.site = dataclasses.replace(fleet.cloud.store.site, international=True)
    outcome = present(fleet)
    assert outcome.image.image_id.startswith("img-") and outcome.image.state == "NORMAL"
    fleet.cloud.store.images.clear()
    finding = refused(present, fleet, make=lambda: request(data_urls=(URL,)))
    assert finding.code == "IMAGE_DATA_DISKS_UNSUPPORTED"


class Losing(Images):
    """Loses the answer to ImportImage; ``arrives`` says whether the request came through."""

    arrives = True

    def start_import(self, request):
        if self.arrives:
            super().start_import(request)
        raise CloudError("ClientNetworkError", "connection reset", "", "ImportImage")


def test_lost_answer_is_looked_for_by_name(fleet, monkeypatch):
    service = Losing(CloudClient(fleet.access()))
    waiter = Waiter(20, sleep=lambda _: threading.Event().wait(0.02))
    outcome = Importer(service, "web1", waiter).present(request, content=CONTENT, force=False)
    assert outcome.image.state == "NORMAL" and len(fleet.requests("ImportImage")) == 1
    Losing.arrives = False
    monkeypatch.setattr(image_import, "UNSEEN_PATIENCE", 0.2)
    fleet.cloud.store.images.clear()
    finding = refused(
        Importer(service, "web1", Waiter(20, sleep=lambda _: None)).present, request, content=CONTENT, force=False
    )
    assert finding.code == "CLOUD_UNREACHABLE"


def test_no_waiting_leaves_the_import_running(fleet):
    fleet.hypervisor.gate.clear()
    outcome = Importer(images(fleet), "web1", DummyWaiter()).present(request, content=CONTENT, force=False)
    assert outcome.changed and outcome.image.state == "IMPORTING"


def test_import_that_does_not_end_can_be_waited_for_again(fleet):
    fleet.hypervisor.gate.clear()
    finding = refused(present, fleet, timeout=0.3)
    assert finding.code == "IMAGE_IMPORT_TIMEOUT"
    assert finding.evidence["history"][-1][1] == "IMPORTING"
    fleet.hypervisor.gate.set()
    assert present(fleet).image.state == "NORMAL"
    assert len(fleet.requests("ImportImage")) == 1


def test_absent_deletes_once_and_says_so_in_check_mode(fleet):
    present(fleet)
    assert importer(fleet).absent(check_mode=True).changed
    assert images(fleet).named("web1") is not None
    assert importer(fleet).absent().changed
    assert not importer(fleet).absent().changed


def test_dry_run_has_the_parameters_checked_and_nothing_done(fleet):
    images(fleet).check_import(request())
    bad = dataclasses.replace(request(), os_version="99")
    assert refused(images(fleet).check_import, bad).code == "IMAGE_OS_UNSUPPORTED"
    assert not fleet.cloud.store.images


def test_image_that_vanishes_or_changes_its_ways_is_reported(fleet, monkeypatch):
    fleet.hypervisor.gate.clear()
    images(fleet).start_import(request())
    (image,) = fleet.cloud.store.images.values()

    def vanish(state, waited):
        fleet.cloud.store.images.clear()

    assert refused(present, fleet, tell=vanish).code == "IMAGE_GONE"
    image.state = "HALFWAY"
    fleet.cloud.store.images[image.image_id] = image
    assert refused(present, fleet).code == "IMAGE_STATE_UNKNOWN"
    fleet.hypervisor.gate.set()


def test_name_that_the_api_would_refuse_is_refused_first(fleet):
    for name in ("", "x" * 61):
        assert refused(importer, fleet, name=name).code == "IMAGE_NAME_INVALID"
    assert fleet.requests() == []


# Why it failed


def test_every_documented_code_has_cause_and_next_step():
    assert set(CODES) == set(TEXTS)
    assert all(meaning.cause and meaning.action for meaning in CODES.values())


@pytest.mark.parametrize(
    ("notice", "code"),
    [
        ("VirtioNotInstall", "IMAGE_NO_VIRTIO"),
        ("Your image img-1 failed: InvalidFormatSize.", "IMAGE_FORMAT_UNSUPPORTED"),
        ("이미지 파일 검증 실패", "TARGET_DISK_SMALLER"),
        ("'이미지 파일 메타데이터 획득 실패' 메시지", "IMAGE_CORRUPT"),
        ("작업 시간 초과", "IMAGE_IMPORT_FAILED"),
        ("System Error", "IMAGE_IMPORT_FAILED"),
        ("Failed to obtain the metadata of the image file", "IMAGE_CORRUPT"),
        ("The storage space of the target device is too small", "TARGET_DISK_SMALLER"),
        ("Failed to access the COS image file", "IMAGE_URL_REFUSED"),
    ],
)
def test_notice_is_understood(notice, code):
    assert meaning_of_notice(notice).code == code


def test_unknown_notice_is_not_guessed():
    assert meaning_of_notice("the weather was bad") is None


def test_notice_explains_the_failed_import_without_a_new_one(fleet):
    fleet.hypervisor.rejected = ImageRejected("RootPartitionNotFound", "none")
    listed = refused(present, fleet)
    assert listed.code == "IMAGE_IMPORT_FAILED" and set(listed.evidence["possible"]) == set(CODES)
    finding = refused(present, fleet, context=Context("RootPartitionNotFound"))
    assert finding.code == "IMAGE_NO_ROOT"
    assert fleet.changes().count("ImportImage") == 1


@pytest.mark.parametrize(
    ("facts", "force", "code"),
    [
        ({"virtio": False}, False, "IMAGE_NO_VIRTIO"),
        ({"partition_table": "none", "virtio": False}, False, "IMAGE_CORRUPT"),
        ({"consistency": {"ok": False}}, False, "IMAGE_CORRUPT"),
        ({"image": {"backing_file": "base.vmdk"}}, False, "IMAGE_FORMAT_UNSUPPORTED"),
        ({"root": None}, False, "IMAGE_NO_ROOT"),
        ({"root": None, "unread": [{"what": "/"}]}, False, "IMAGE_IMPORT_FAILED"),
        ({"cloud_init": False}, False, "IMAGE_NO_CLOUD_INIT"),
        ({"cloud_init": False}, True, "IMAGE_IMPORT_FAILED"),
        ({"virtio": None}, False, "IMAGE_IMPORT_FAILED"),
    ],
)
def test_what_is_known_of_the_image_points_to_the_cause(fleet, facts, force, code):
    fleet.hypervisor.rejected = ImageRejected("InternalError", "as it is")
    assert refused(present, fleet, force=force, context=Context(None, facts)).code == code


def test_refusals_of_the_api_have_meanings():
    for code in ("ImageQuotaLimitExceeded", "InvalidParameter.InvalidParameterUrlError",
                 "RegionAbilityLimit.UnsupportedToImportImage", "InvalidParameterValue.InvalidImageState"):  # fmt: skip
        assert meaning_of(code).code.startswith("IMAGE_")


# The operating system

SUPPORTED = [
    Supported("Debian", ("11", "12"), ("x86_64",)),
    Supported("Rocky Linux", ("8", "9"), ("x86_64",)),
    Supported("Other Linux", ("-",), ("x86_64", "i386")),
]


@pytest.mark.parametrize(
    ("os_type", "os_version", "architecture", "chosen"),
    [
        ("debian", "12", "x86_64", ("Debian", "12")),
        ("Rocky Linux", "9.3", "x86_64", ("Rocky Linux", "9")),
        ("Debian", "13", "x86_64", ("Other Linux", "-")),
        ("Debian", "12", "i386", ("Other Linux", "-")),
        ("", "", "x86_64", ("Other Linux", "-")),
    ],
)
def test_system_is_chosen_from_what_the_cloud_lists(os_type, os_version, architecture, chosen):
    found = choose_system(SUPPORTED, os_type=os_type, os_version=os_version, architecture=architecture, fallback=True)
    assert found == chosen


def test_system_that_is_not_listed_is_refused_with_the_list():
    finding = refused(
        choose_system, SUPPORTED, os_type="Debian", os_version="13", architecture="x86_64", fallback=False
    )
    assert finding.code == "IMAGE_OS_UNSUPPORTED" and finding.evidence["supported"]["Debian"] == ["11", "12"]
    arm = refused(choose_system, SUPPORTED, os_type="Debian", os_version="12", architecture="arm_64", fallback=True)
    assert arm.code == "IMAGE_OS_UNSUPPORTED"


# Evidence and progress


def test_evidence_is_private_and_without_secrets(tmp_path):
    content = {
        "finding": {"cause": f"{URL}?q-signature=abc failed"},
        "secret_key": SECRET_KEY,
        "objects": [{"image_url": URL, "size": 1}],
    }
    file = Path(write_evidence(str(tmp_path / "new"), "web 1/ü", content))
    text = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "q-signature" not in text and SECRET_KEY not in text
    assert json.loads(text)["objects"] == [{"size": 1}]


def test_progress_is_told_in_words(tmp_path):
    ImportProgress(str(tmp_path / "p"), 7200).tell("IMPORTING", 61.2)
    state = read_progress(tmp_path / "p")
    assert import_line(state) == "being imported         1:01 of at most 2:00:00"
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == 0o600


# In a play


def play(fleet, cos, directory, tasks):
    book = directory / "play.yml"
    defaults = {
        "endpoint": fleet.endpoint,
        "cos_endpoint": cos.endpoint,
        "bucket": BUCKET,
        "os_type": "Debian",
        "os_version": "12",
        "evidence_dir": str(directory / "evidence"),
    }
    content = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {"fleetlift.cvm.image_import": defaults},
        "tasks": tasks,
    }
    book.write_text(yaml.safe_dump([content]))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": next(p for p in sys.path if Path(p, "ansible_collections/fleetlift").is_dir()),
        "ANSIBLE_LOCAL_TEMP": str(directory / "ansible"),
        "TENCENTCLOUD_SECRET_ID": lab_fleet.SECRET_ID,
        "TENCENTCLOUD_SECRET_KEY": lab_fleet.SECRET_KEY,
        "TENCENTCLOUD_REGION": lab_fleet.REGION,
        "NO_PROXY": "*",
    }
    command = [Path(sys.executable).with_name("ansible-playbook"), "-vvv", "-i", "localhost,", "-c", "local", book]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_object_becomes_an_image_and_its_link_is_never_shown(fleet, tmp_path, monkeypatch):
    monkeypatch.setattr(cos_site, "SECRET_ID", lab_fleet.SECRET_ID)
    monkeypatch.setattr(cos_site, "SECRET_KEY", lab_fleet.SECRET_KEY)
    cos = CosSite(tmp_path)
    try:
        cos.sdk().put_object(BUCKET, b"a disk", "images/web1.raw")
        task = {"fleetlift.cvm.image_import": {"name": "web1", "key": "images/web1.raw"}, "register": "done"}
        dry = {**task, "check_mode": True}
        show = {"ansible.builtin.debug": {"var": "done.image.description"}}
        once = {"ansible.builtin.assert": {"that": ["done is not changed"]}}
        status, output = play(fleet, cos, tmp_path, [dry, task, show, task, once])
        assert status == 0, output
        assert "web1.raw 6 bytes CRC64" in output
        fleet.hypervisor.rejected = ImageRejected("InternalError", "as it is")
        failing = {"fleetlift.cvm.image_import": {"name": "web2", "key": "images/web1.raw"}}
        status, told = play(fleet, cos, tmp_path, [failing])
        assert status != 0 and "IMAGE_IMPORT_FAILED" in told and "evidence_file" in told
        (evidence,) = (tmp_path / "evidence").iterdir()
        for text in (output, told, evidence.read_text(), fleet.log.read_text()):
            for secret in ("q-signature", "q-ak", lab_fleet.SECRET_KEY):
                assert secret not in text
        assert json.loads(evidence.read_text())["object"]["images/web1.raw"]["size"] == 6
        assert fleet.changes().count("ImportImage") == 3
    finally:
        cos.close()
