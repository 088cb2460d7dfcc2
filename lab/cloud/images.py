# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CVM: images, and the import of image files that lie in COS.

An import that fails leaves an image in the state IMPORTFAILED and a notice in the account's Message Center; the
API's models have no field for the reason (SDK 3.1.195).
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from functools import partial
from urllib.parse import parse_qs, urlsplit

from lab.cloud.actions import Call, action, page
from lab.cloud.cloud import Cloud
from lab.cloud.errors import ApiError
from lab.cloud.filters import Filters
from lab.cloud.hypervisor import HypervisorError, ImageOrder, ImageRejected
from lab.cloud.parameters import JsonObject
from lab.cloud.store import IMAGE_ID, Image, Notice, Store

log = logging.getLogger(__name__)

LONGEST_NAME = 60
LONGEST_DESCRIPTION = 256
GIB = 1024**3
BOOT_MODES = ("Legacy BIOS", "UEFI")
LICENSES = ("TencentCloud", "BYOL")
# What DescribeImportImageOs lists: the systems of the vendor's page 213/17814 with versions of its API's example.
OPERATING_SYSTEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "AlmaLinux": (("8", "9"), ("x86_64", "arm_64")),
    "CentOS": (("5", "6", "7", "8"), ("x86_64", "i386", "arm_64")),
    "CentOS Stream": (("8", "9"), ("x86_64", "arm_64")),
    "CoreOS": (("7",), ("x86_64",)),
    "Debian": (("6", "7", "8", "9", "10", "11", "12"), ("x86_64", "i386", "arm_64")),
    "Fedora": (("28", "34", "36"), ("x86_64",)),
    "FreeBSD": (("10", "11", "12", "13"), ("x86_64", "i386")),
    "OpenSUSE": (("11", "12", "13", "15"), ("x86_64", "i386")),
    "Other Linux": (("-",), ("x86_64", "i386", "arm_64")),
    "Rocky Linux": (("8", "9"), ("x86_64", "arm_64")),
    "TencentOS": (("2", "3"), ("x86_64", "arm_64")),
    "Ubuntu": (("10", "12", "14", "16", "18", "20", "22", "24"), ("x86_64", "i386", "arm_64")),
}
TEXTS = {
    "InvalidUrl": "The image's COS link cannot be read.",
    "InvalidFormatSize": "The image's format or size does not meet the requirements.",
    "VirtioNotInstall": "The virtio drivers are not installed in the image.",
    "PartitionNotPresent": "No partition was found in the image.",
    "CloudInitNotInstalled": "cloud-init is not installed in the image.",
    "RootPartitionNotFound": "No root partition was found in the image.",
    "InternalError": "The import failed for another reason.",
}

IMAGE_FILTERS: Filters[Image] = Filters(
    {
        "image-id": lambda item: [item.image_id],
        "image-name": lambda item: [item.name],
        "image-type": lambda item: [item.kind],
        "platform": lambda item: [item.os_type],
    },
    lambda item: item.tags,
    unknown_name="InvalidFilter",
    too_many="InvalidFilterValue.LimitExceeded",
    part_of=frozenset({"image-name", "platform"}),
)


def find_image(store: Store, image_id: str) -> Image:
    """The image to make an instance of, or the refusal that RunInstances and ResetInstance document."""
    if not IMAGE_ID.fullmatch(image_id):
        raise ApiError("InvalidImageId.Malformed", f"The image id `{image_id}` is malformed.")
    image = _all(store).get(image_id)
    if image is None:
        raise ApiError("InvalidImageId.NotFound", f"The image `{image_id}` does not exist.")
    if image.state != "NORMAL":
        raise ApiError("InvalidParameterValue.InvalidImageState", f"`{image_id}` is in the state `{image.state}`.")
    return image


def check_disk(image: Image, size_gb: int) -> None:
    """Refuse a system disk that the image does not fit on; the vendor documents no code of its own for this."""
    if size_gb < image.size_gb:
        raise ApiError(
            "InvalidParameterValue",
            f"The system disk of {size_gb} GiB is smaller than the image `{image.image_id}` of {image.size_gb} GiB.",
        )


@action("cvm")
def describe_import_image_os(cloud: Cloud, call: Call) -> JsonObject:
    """What can be imported."""
    versions = [
        {"OsName": name, "OsVersions": list(versions), "Architecture": list(architectures)}
        for name, (versions, architectures) in OPERATING_SYSTEMS.items()
    ]
    return {
        "ImportImageOsListSupported": {"Linux": list(OPERATING_SYSTEMS), "Windows": []},
        "ImportImageOsVersionSet": versions,
    }


@action("cvm")
def describe_image_quota(cloud: Cloud, call: Call) -> JsonObject:
    """How many images of its own the account may have in the region."""
    return {"ImageNumQuota": cloud.store.site.image_quota}


@action("cvm")
def describe_images(cloud: Cloud, call: Call) -> JsonObject:
    """Images by ids or filters, the vendor's own and the account's. Unknown ids are left out."""
    ids, filters = call.get("ImageIds"), call.get("Filters")
    if ids and filters:
        raise ApiError(
            "InvalidParameter.InvalidParameterCoexistImageIdsFilters",
            "`ImageIds` and `Filters` cannot be given together.",
        )
    for name in ids or []:
        if not IMAGE_ID.fullmatch(name):
            raise ApiError("InvalidImageId.Malformed", f"The image id `{name}` is malformed.")
    with cloud.store.reading():
        images = _all(cloud.store)
        listed = [images[name] for name in dict.fromkeys(ids) if name in images] if ids else list(images.values())
        selected = IMAGE_FILTERS.select(listed, filters or [])
        shown = page(selected, call.get("Offset", 0), call.get("Limit", 20))
        return {"TotalCount": len(selected), "ImageSet": [_image(item) for item in shown]}


@action("cvm")
def import_image(cloud: Cloud, call: Call) -> JsonObject:
    """IMPORTING -> NORMAL or IMPORTFAILED. The international site's model has no data disks and answers no ImageId."""
    store, international = cloud.store, cloud.store.site.international
    data = call.get("ImportImageDataDiskList", [])
    if international and "ImportImageDataDiskList" in call.parameters:
        raise ApiError("UnknownParameter", "The parameter `ImportImageDataDiskList` is not recognized.")
    urls = [call.parameters["ImageUrl"], *(entry.get("ImageUrl", "") for entry in data)]
    _check_texts(call)
    _check_system(call, international)
    for url in urls:
        _check_url(url, store.site.region, force=bool(call.get("Force")))
    with store.changing():
        if any(item.name == call.parameters["ImageName"] for item in store.images.values()):
            raise ApiError("InvalidImageName.Duplicate", f"The name `{call.parameters['ImageName']}` is used already.")
        if len(store.images) >= store.site.image_quota:
            raise ApiError("ImageQuotaLimitExceeded", f"The account has {store.site.image_quota} images already.")
        if call.get("DryRun"):
            raise ApiError("DryRunOperation", "Request was a dry run: it would have succeeded.")
        image = Image(
            image_id=store.new_id("img"),
            name=call.parameters["ImageName"],
            os_type=call.parameters["OsType"],
            os_name=f"{call.parameters['OsType']} {call.parameters['OsVersion']}",
            architecture=call.parameters["Architecture"],
            description=call.get("ImageDescription", ""),
            boot_mode=call.get("BootMode", BOOT_MODES[0]),
            license_type=call.get("LicenseType", LICENSES[0]),
            family=call.get("ImageFamily", ""),
            tags=_tags(call),
            state="IMPORTING",
            request_id=call.request_id,
        )
        store.images[image.image_id] = image
    order = ImageOrder(
        image_id=image.image_id,
        urls=tuple(urls),
        boot_mode=image.boot_mode,
        force=bool(call.get("Force")),
        gpt_accepted=not international and image.boot_mode == "UEFI",
    )
    cloud.transitions.submit(image.image_id, partial(_import, cloud, order))
    return {} if international else {"ImageId": image.image_id}


@action("cvm")
def delete_images(cloud: Cloud, call: Call) -> JsonObject:
    """Images that nothing is being done with are forgotten at once; instances made from them stay."""
    ids = list(dict.fromkeys(call.parameters["ImageIds"]))
    if not ids:
        raise ApiError("MissingParameter", "`ImageIds` names no image.")
    with cloud.store.changing():
        for name in ids:
            if not IMAGE_ID.fullmatch(name):
                raise ApiError("InvalidImageId.Malformed", f"The image id `{name}` is malformed.")
            if name in cloud.store.site.images:
                raise ApiError("InvalidParameterValue.InvalidImageId", f"`{name}` is a public image.")
            if name not in cloud.store.images:
                raise ApiError("InvalidImageId.NotFound", f"The image `{name}` does not exist.")
            if cloud.store.images[name].state not in ("NORMAL", "IMPORTFAILED", "CREATEFAILED"):
                raise ApiError("InvalidImageId.IncorrectState", f"`{name}` is `{cloud.store.images[name].state}`.")
        if call.get("DryRun"):
            raise ApiError("DryRunOperation", "Request was a dry run: it would have succeeded.")
        for name in ids:
            del cloud.store.images[name]
    for name in ids:
        cloud.transitions.submit(name, cloud.hypervisor.delete_image, name)
    return {}


def _import(cloud: Cloud, order: ImageOrder) -> None:
    started = time.monotonic()
    sizes: tuple[int, ...] = ()
    refusal: ImageRejected | None = None
    try:
        _use_once(cloud.store, order)
        sizes = cloud.hypervisor.import_image(order)
    except ImageRejected as error:
        refusal = error
    except (HypervisorError, OSError) as error:
        log.exception("the import of %s ended unexpectedly", order.image_id)
        refusal = ImageRejected("InternalError", f"{type(error).__name__}: {error}")
    cloud.transitions.pause(started)
    with cloud.store.changing():
        image = cloud.store.images[order.image_id]
        if refusal is not None:
            image.state = "IMPORTFAILED"
            text = f"{TEXTS[refusal.code]} {refusal}"
            cloud.store.notices.append(Notice(image.image_id, image.name, refusal.code, text))
            log.warning("the import of %s (%s) failed: %s: %s", image.image_id, image.name, refusal.code, refusal)
            return
        image.state = "NORMAL"
        image.size_gb = -(-sizes[0] // GIB)
        image.data_disks = [
            {"snapshot_id": cloud.store.new_id("snap"), "size_gb": -(-size // GIB)} for size in sizes[1:]
        ]
        cloud.store.notices.append(Notice(image.image_id, image.name, "", "The image was imported."))


def _use_once(store: Store, order: ImageOrder) -> None:
    """A signed URL can be fetched once (vendor's page 213/4945); only its hash is kept."""
    signed = [url for url in order.urls if "q-signature" in parse_qs(urlsplit(url).query)]
    hashes = [hashlib.sha256(url.encode()).hexdigest() for url in signed]
    with store.changing():
        for one in hashes:
            if one in store.used_urls:
                raise ImageRejected("InvalidUrl", "The signed link was fetched before.")
        store.used_urls += hashes


def _check_texts(call: Call) -> None:
    for name, longest in (("ImageName", LONGEST_NAME), ("ImageDescription", LONGEST_DESCRIPTION)):
        if len(call.get(name, "")) > longest:
            raise ApiError("InvalidParameterValue.TooLarge", f"`{name}` has more than {longest} characters.")
    if not call.parameters["ImageName"]:
        raise ApiError("InvalidParameterValue", "`ImageName` is empty.")
    family = call.get("ImageFamily")
    if family and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", family):
        raise ApiError("InvalidParameterValue.InvalidImageFamily", "`ImageFamily` is malformed.")


def _check_system(call: Call, international: bool) -> None:
    system, version = call.parameters["OsType"], call.parameters["OsVersion"]
    if system not in OPERATING_SYSTEMS:
        raise ApiError("InvalidImageOsType.Unsupported", f"The operating system `{system}` is not supported.")
    versions, architectures = OPERATING_SYSTEMS[system]
    if version not in versions:
        raise ApiError("InvalidImageOsVersion.Unsupported", f"The version `{version}` of {system} is not supported.")
    architecture = call.parameters["Architecture"]
    if architecture not in architectures or (international and architecture == "arm_64"):
        raise ApiError("InvalidParameterValue", f"The architecture `{architecture}` is not supported for {system}.")
    if call.get("BootMode", BOOT_MODES[0]) not in BOOT_MODES:
        raise ApiError("InvalidParameterValue.InvalidBootMode", f"The boot mode `{call.get('BootMode')}` is unknown.")
    if call.get("LicenseType", LICENSES[0]) not in LICENSES:
        raise ApiError("InvalidParameterValue.InvalidLicenseType", f"`{call.get('LicenseType')}` is no license type.")


def _check_url(url: str, region: str, *, force: bool) -> None:
    parts = urlsplit(url)
    host = rf"[a-z0-9-]+-\d+\.cos(-internal)?\.{re.escape(region)}\.(myqcloud\.com|tencentcos\.cn)(:\d+)?"
    if parts.scheme not in ("http", "https") or not re.fullmatch(host, parts.netloc) or len(parts.path) < 2:
        raise ApiError(
            "InvalidParameter.InvalidParameterUrlError", f"The URL names no object of COS in the region {region}."
        )
    if parts.path.lower().endswith(".iso") and not force:
        raise ApiError("InvalidParameterValue.ISOMustImportByForce", "An ISO file can be imported by force only.")


def _tags(call: Call) -> dict[str, str]:
    return {
        tag.get("Key", ""): tag.get("Value", "")
        for specification in call.get("TagSpecification", [])
        if specification.get("ResourceType") == "image"
        for tag in specification.get("Tags", [])
    }


def _all(store: Store) -> dict[str, Image]:
    public = {
        image_id: Image(image_id, name=name, os_type=name.split()[0], os_name=name, kind="PUBLIC_IMAGE", size_gb=1)
        for image_id, name in store.site.images.items()
    }
    return public | store.images


def _image(item: Image) -> JsonObject:
    public = item.kind == "PUBLIC_IMAGE"
    return {
        "ImageId": item.image_id,
        "OsName": item.os_name,
        "ImageType": item.kind,
        "CreatedTime": item.created,
        "ImageName": item.name,
        "ImageDescription": item.description,
        "ImageSize": item.size_gb,
        "Architecture": item.architecture,
        "ImageState": item.state,
        "Platform": item.os_type,
        "ImageCreator": None if public else "100000000001",
        "ImageSource": "OFFICIAL" if public else "EXTERNAL_IMPORT",
        "SyncPercent": None,
        "IsSupportCloudinit": True,
        "SnapshotSet": [
            {"SnapshotId": disk["snapshot_id"], "DiskUsage": "DATA_DISK", "DiskSize": disk["size_gb"]}
            for disk in item.data_disks
        ],
        "Tags": [{"Key": key, "Value": value} for key, value in item.tags.items()],
        "LicenseType": item.license_type,
        "ImageFamily": item.family,
        "ImageDeprecated": False,
    }
