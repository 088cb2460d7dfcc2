# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Importing images, as far as the API goes: what it refuses at once, the states, the two sites' models."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tencentcloud.cvm.v20170312 import models

from lab.cloud.hypervisor import ImageRejected

from .conftest import CloudUnderTest, demo_store

URL = "https://images-1250000000.cos.ap-guangzhou.myqcloud.com/web1.qcow2"
SIGNED = f"{URL}?q-sign-algorithm=sha1&q-ak=AKID&q-signature=0123456789abcdef"
BASIC: dict[str, Any] = {
    "Architecture": "x86_64",
    "OsType": "Debian",
    "OsVersion": "12",
    "ImageUrl": URL,
    "ImageName": "web1",
}


def order(fleet: CloudUnderTest, **extra: Any) -> str:
    answer = fleet.call(fleet.cvm, "ImportImage", **{**BASIC, **extra})
    return str(answer["ImageId"])


def shown(fleet: CloudUnderTest, image_id: str) -> dict[str, Any]:
    (image,) = fleet.call(fleet.cvm, "DescribeImages", ImageIds=[image_id])["ImageSet"]
    found: dict[str, Any] = image
    return found


def settled(fleet: CloudUnderTest, image_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        image = shown(fleet, image_id)
        return image if image["ImageState"] != "IMPORTING" else None

    found: dict[str, Any] = fleet.until(look, "the end of the import")
    return found


def test_import_passes_through_its_state_and_the_image_can_be_bought(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    image_id = order(fleet, TagSpecification=[{"ResourceType": "image", "Tags": [{"Key": "wave", "Value": "1"}]}])
    assert shown(fleet, image_id)["ImageState"] == "IMPORTING"
    buying = {"ImageId": image_id, "Placement": {"Zone": "ap-guangzhou-3"}}
    assert fleet.refused(fleet.cvm, "RunInstances", **buying) == "InvalidParameterValue.InvalidImageState"
    assert fleet.refused(fleet.cvm, "DeleteImages", ImageIds=[image_id]) == "InvalidImageId.IncorrectState"
    fleet.hypervisor.gate.set()
    image = settled(fleet, image_id)
    assert (image["ImageState"], image["ImageSize"], image["ImageType"]) == ("NORMAL", 4, "PRIVATE_IMAGE")
    assert (image["ImageSource"], image["OsName"], image["Platform"]) == ("EXTERNAL_IMPORT", "Debian 12", "Debian")
    assert image["Tags"] == [{"Key": "wave", "Value": "1"}]
    small = {**buying, "SystemDisk": {"DiskSize": 3}}
    assert fleet.refused(fleet.cvm, "RunInstances", **small) == "InvalidParameterValue"
    (name,) = fleet.call(fleet.cvm, "RunInstances", **buying, SystemDisk={"DiskSize": 4})["InstanceIdSet"]
    assert fleet.settled("RUNNING", name)["OsName"] == "Debian 12"
    spec = next(call[2] for call in fleet.hypervisor.calls if call[:2] == ("create", name))
    assert spec.image_id == image_id
    fleet.call(fleet.cvm, "DeleteImages", ImageIds=[image_id])
    assert fleet.call(fleet.cvm, "DescribeImages", ImageIds=[image_id])["TotalCount"] == 0
    fleet.until(lambda: ("delete_image", image_id) in fleet.hypervisor.calls, "removal of the disks")


def test_sdk_imports_an_image_with_its_data_disks(fleet: CloudUnderTest) -> None:
    request = models.ImportImageRequest()
    for name, value in BASIC.items():
        setattr(request, name, value)
    disk = models.ImportImageDataDisk()
    disk.ImageUrl = URL.replace("web1", "data1")
    request.ImportImageDataDiskList = [disk]
    image_id = fleet.cvm.ImportImage(request).ImageId
    image = settled(fleet, image_id)
    assert [(item["DiskUsage"], item["DiskSize"]) for item in image["SnapshotSet"]] == [("DATA_DISK", 4)]
    made = next(call[2] for call in fleet.hypervisor.calls if call[:2] == ("import_image", image_id))
    assert made.urls == (URL, URL.replace("web1", "data1")) and URL not in repr(made)
    snapshot = image["SnapshotSet"][0]["SnapshotId"]
    buying = {"ImageId": image_id, "Placement": {"Zone": "ap-guangzhou-3"}}
    small = [{"DiskSize": 3, "SnapshotId": snapshot}]
    code = "FailedOperation.SnapshotSizeLargerThanDataSize"
    assert fleet.refused(fleet.cvm, "RunInstances", **buying, DataDisks=small) == code
    unknown = [{"DiskSize": 4, "SnapshotId": "snap-00000000"}]
    assert fleet.refused(fleet.cvm, "RunInstances", **buying, DataDisks=unknown) == "InvalidParameter.SnapshotNotFound"
    login = {"KeepImageLogin": "TRUE"}
    disks = [{"DiskSize": 4, "SnapshotId": snapshot}]
    (name,) = fleet.call(fleet.cvm, "RunInstances", **buying, DataDisks=disks, LoginSettings=login)["InstanceIdSet"]
    disk = fleet.settled("RUNNING", name)["DataDisks"][0]["DiskId"]
    assert ("fill_disk", disk, 4, image_id, 1) in fleet.hypervisor.calls
    both = {"KeepImageLogin": "TRUE", "Password": "Some-pass-42"}
    assert (
        fleet.refused(fleet.cvm, "RunInstances", **buying, LoginSettings=both) == "InvalidParameter.ParameterConflict"
    )


def test_failed_import_shows_its_state_and_the_reason_only_in_message_center(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.rejected = ImageRejected("VirtioNotInstall", "no virtio_blk")
    image_id = order(fleet)
    image = settled(fleet, image_id)
    assert image["ImageState"] == "IMPORTFAILED" and "Virtio" not in str(image)
    (notice,) = fleet.store.notices
    assert (notice.image_id, notice.image_name, notice.code) == (image_id, "web1", "VirtioNotInstall")
    assert fleet.refused(fleet.cvm, "ImportImage", **BASIC) == "InvalidImageName.Duplicate"
    fleet.call(fleet.cvm, "DeleteImages", ImageIds=[image_id])
    fleet.hypervisor.rejected = None
    assert settled(fleet, order(fleet))["ImageState"] == "NORMAL"


def test_hypervisor_failure_is_an_internal_error(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.fail.add("import_image")
    assert settled(fleet, order(fleet))["ImageState"] == "IMPORTFAILED"
    assert [notice.code for notice in fleet.store.notices] == ["InternalError"]


def test_signed_url_is_fetched_once(fleet: CloudUnderTest) -> None:
    assert settled(fleet, order(fleet, ImageUrl=SIGNED))["ImageState"] == "NORMAL"
    again = settled(fleet, order(fleet, ImageUrl=SIGNED, ImageName="web2"))
    assert (again["ImageState"], fleet.store.notices[-1].code) == ("IMPORTFAILED", "InvalidUrl")
    assert (
        SIGNED not in str(fleet.log_entries())
        and "q-signature" not in (fleet.log_path.parent / "cloud.json").read_text()
    )


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({"ImageName": "x" * 61}, "InvalidParameterValue.TooLarge"),
        ({"ImageDescription": "x" * 257}, "InvalidParameterValue.TooLarge"),
        ({"OsType": "Plan 9"}, "InvalidImageOsType.Unsupported"),
        ({"OsVersion": "99"}, "InvalidImageOsVersion.Unsupported"),
        ({"Architecture": "riscv"}, "InvalidParameterValue"),
        ({"BootMode": "OpenFirmware"}, "InvalidParameterValue.InvalidBootMode"),
        ({"LicenseType": "None"}, "InvalidParameterValue.InvalidLicenseType"),
        ({"ImageFamily": "a b"}, "InvalidParameterValue.InvalidImageFamily"),
        ({"ImageUrl": "ftp://x"}, "InvalidParameter.InvalidParameterUrlError"),
        ({"ImageUrl": URL.replace("guangzhou", "singapore")}, "InvalidParameter.InvalidParameterUrlError"),
        ({"ImageUrl": URL.replace("qcow2", "iso")}, "InvalidParameterValue.ISOMustImportByForce"),
        ({"ImageUrl": None}, "MissingParameter"),
        ({"ImageURL": URL}, "UnknownParameter"),
        ({"DryRun": True}, "DryRunOperation"),
    ],
)
def test_wrong_parameters_are_refused_at_once(fleet: CloudUnderTest, extra: dict[str, Any], code: str) -> None:
    assert fleet.refused(fleet.cvm, "ImportImage", **{**BASIC, **extra}) == code
    assert not fleet.store.images


def test_quota_is_kept(fleet: CloudUnderTest) -> None:
    fleet.store.site = dataclasses.replace(fleet.store.site, image_quota=1)
    assert fleet.call(fleet.cvm, "DescribeImageQuota")["ImageNumQuota"] == 1
    order(fleet)
    assert fleet.refused(fleet.cvm, "ImportImage", **{**BASIC, "ImageName": "web2"}) == "ImageQuotaLimitExceeded"


def test_international_site_answers_no_id_and_knows_no_data_disks(fleet: CloudUnderTest) -> None:
    fleet.store.site = dataclasses.replace(fleet.store.site, international=True)
    disks = {"ImportImageDataDiskList": [{"ImageUrl": URL}]}
    assert fleet.refused(fleet.cvm, "ImportImage", **BASIC, **disks) == "UnknownParameter"
    assert fleet.refused(fleet.cvm, "ImportImage", **{**BASIC, "Architecture": "arm_64"}) == "InvalidParameterValue"
    assert "ImageId" not in fleet.call(fleet.cvm, "ImportImage", **BASIC)
    names = [{"Name": "image-name", "Values": ["web1"]}]
    (image,) = fleet.call(fleet.cvm, "DescribeImages", Filters=names)["ImageSet"]
    assert image["ImageName"] == "web1"


def test_names_are_found_by_a_part_of_them(fleet: CloudUnderTest) -> None:
    order(fleet)
    order(fleet, ImageName="web10")
    names = [{"Name": "image-name", "Values": ["web1"]}, {"Name": "image-type", "Values": ["PRIVATE_IMAGE"]}]
    found = fleet.call(fleet.cvm, "DescribeImages", Filters=names)
    assert sorted(image["ImageName"] for image in found["ImageSet"]) == ["web1", "web10"]


def test_public_images_are_listed_and_not_deleted(fleet: CloudUnderTest) -> None:
    (image,) = fleet.call(fleet.cvm, "DescribeImages", ImageIds=["img-debian12"])["ImageSet"]
    assert (image["ImageType"], image["ImageState"]) == ("PUBLIC_IMAGE", "NORMAL")
    assert fleet.refused(fleet.cvm, "DeleteImages", ImageIds=["img-debian12"]) == "InvalidParameterValue.InvalidImageId"
    assert fleet.refused(fleet.cvm, "DeleteImages", ImageIds=["img-00000000"]) == "InvalidImageId.NotFound"
    both = {"ImageIds": ["img-debian12"], "Filters": [{"Name": "image-name", "Values": ["x"]}]}
    code = "InvalidParameter.InvalidParameterCoexistImageIdsFilters"
    assert fleet.refused(fleet.cvm, "DescribeImages", **both) == code


def test_what_can_be_imported_is_listed(fleet: CloudUnderTest) -> None:
    answer = fleet.call(fleet.cvm, "DescribeImportImageOs")
    assert "Debian" in answer["ImportImageOsListSupported"]["Linux"]
    (debian,) = [item for item in answer["ImportImageOsVersionSet"] if item["OsName"] == "Debian"]
    assert "12" in debian["OsVersions"] and "x86_64" in debian["Architecture"]


def test_import_interrupted_by_a_restart_has_failed(fleet: CloudUnderTest) -> None:
    fleet.hypervisor.gate.clear()
    image_id = order(fleet)
    # What is interrupted has begun, and writes nothing to the store's file at the same time.
    fleet.until(lambda: [call for call in fleet.hypervisor.calls if call[0] == "import_image"], "the import begins")
    restarted = demo_store(fleet.log_path.parent / "cloud.json")
    fleet.cloud.store = restarted
    fleet.cloud.recover()
    assert restarted.images[image_id].state == "IMPORTFAILED"
    assert restarted.notices[-1].code == "InternalError"
    fleet.cloud.store = fleet.store
