# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cloud's images, as the modules use them: which API actions, with which parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..redact import without_queries
from .client import CloudClient
from .errors import CloudError

# The API's limit for one page.
PAGE = 100
# What an action answers when it was only asked whether it would do something.
DRY_RUN_PASSED = "DryRunOperation"


@dataclass(frozen=True)
class Image:
    """An image. ``state`` is the API's ImageState; ``size_gb`` is in GiB, 0 until it is known.

    ``data_snapshots`` are the disks that belong to it besides the system disk, as snapshot id and size in GiB.
    """

    image_id: str
    name: str
    state: str
    size_gb: int = 0
    description: str = ""
    os_name: str = ""
    architecture: str = ""
    created: str = ""
    kind: str = ""
    data_snapshots: tuple[tuple[str, int], ...] = ()

    def record(self) -> dict[str, Any]:
        """The JSON form that modules return."""
        return {
            **asdict(self),
            "data_snapshots": [{"snapshot_id": name, "size_gb": size} for name, size in self.data_snapshots],
        }


@dataclass(frozen=True)
class Supported:
    """One operating system that can be imported, in the API's own words."""

    name: str
    versions: tuple[str, ...]
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class ImportRequest:
    """What ImportImage is asked for; the URLs are secrets."""

    name: str
    url: str = field(repr=False)
    architecture: str
    os_type: str
    os_version: str
    description: str = ""
    boot_mode: str | None = None
    force: bool = False
    license_type: str | None = None
    data_urls: tuple[str, ...] = field(default=(), repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """The action's parameters; what is not asked for is left out, because not every site knows it."""
        given: dict[str, Any] = {
            "ImageName": self.name,
            "ImageUrl": self.url,
            "Architecture": self.architecture,
            "OsType": self.os_type,
            "OsVersion": self.os_version,
            "ImageDescription": self.description,
        }
        if self.boot_mode:
            given["BootMode"] = self.boot_mode
        if self.force:
            given["Force"] = True
        if self.license_type:
            given["LicenseType"] = self.license_type
        if self.data_urls:
            given["ImportImageDataDiskList"] = [{"ImageUrl": url} for url in self.data_urls]
        if self.tags:
            listed = [{"Key": key, "Value": value} for key, value in sorted(self.tags.items())]
            given["TagSpecification"] = [{"ResourceType": "image", "Tags": listed}]
        return given


class Images:
    """Reads, imports and deletes the images of one region."""

    def __init__(self, client: CloudClient) -> None:
        self._client = client

    def by_ids(self, image_ids: Sequence[str]) -> list[Image]:
        """The images that exist among *image_ids*."""
        return [
            image
            for start in range(0, len(image_ids), PAGE)
            for image in self._pages({"ImageIds": list(image_ids[start : start + PAGE])})
        ]

    def named(self, name: str) -> Image | None:
        """The account's own image of exactly this *name*; the API's filter also finds names that contain it."""
        filters = [{"Name": "image-name", "Values": [name]}, {"Name": "image-type", "Values": ["PRIVATE_IMAGE"]}]
        return next((image for image in self._pages({"Filters": filters}) if image.name == name), None)

    def own(self) -> list[Image]:
        """Every image of the account."""
        return list(self._pages({"Filters": [{"Name": "image-type", "Values": ["PRIVATE_IMAGE"]}]}))

    def supported(self) -> list[Supported]:
        """What can be imported."""
        answer = self._client.call("cvm", "DescribeImportImageOs", {}, expect=("ImportImageOsVersionSet",))
        return [
            Supported(
                str(entry["OsName"]),
                tuple(str(version) for version in entry.get("OsVersions") or ()),
                tuple(str(architecture) for architecture in entry.get("Architecture") or ()),
            )
            for entry in answer["ImportImageOsVersionSet"]
        ]

    def start_import(self, request: ImportRequest) -> str | None:
        """Begin an import; its image id, which the international site does not tell. Raises :class:`CloudError`."""
        with _without_urls():
            answer = self._client.call("cvm", "ImportImage", request.parameters(), idempotent=False)
        return str(answer["ImageId"]) if answer.get("ImageId") else None

    def check_import(self, request: ImportRequest) -> None:
        """Have the cloud check an import's parameters, and nothing more. Raises :class:`CloudError`."""
        try:
            with _without_urls():
                self._client.call("cvm", "ImportImage", {**request.parameters(), "DryRun": True})
        except CloudError as error:
            if error.code != DRY_RUN_PASSED:
                raise

    def delete(self, image_id: str) -> None:
        """Delete an image. Instances that were made of it stay."""
        self._client.call("cvm", "DeleteImages", {"ImageIds": [image_id]})

    def _pages(self, params: Mapping[str, Any]) -> Iterator[Image]:
        offset = 0
        while True:
            asked = {**params, "Offset": offset, "Limit": PAGE}
            page = self._client.call("cvm", "DescribeImages", asked, expect=("TotalCount", "ImageSet"))
            yield from map(image_from_api, page["ImageSet"])
            offset += len(page["ImageSet"])
            if not page["ImageSet"] or offset >= page["TotalCount"]:
                return


def image_from_api(entry: Mapping[str, Any]) -> Image:
    """The image in *entry*, one of ImageSet of DescribeImages."""
    snapshots = [item for item in entry.get("SnapshotSet") or () if item.get("DiskUsage") == "DATA_DISK"]
    return Image(
        image_id=str(entry["ImageId"]),
        name=str(entry.get("ImageName") or ""),
        state=str(entry.get("ImageState") or "UNKNOWN"),
        size_gb=int(entry.get("ImageSize") or 0),
        description=str(entry.get("ImageDescription") or ""),
        os_name=str(entry.get("OsName") or ""),
        architecture=str(entry.get("Architecture") or ""),
        created=str(entry.get("CreatedTime") or ""),
        kind=str(entry.get("ImageType") or ""),
        data_snapshots=tuple((str(item["SnapshotId"]), int(item["DiskSize"])) for item in snapshots),
    )


class _without_urls:
    """Takes the queries of URLs out of what the API says about them."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CloudError):
            text = without_queries(error.message)
            raise CloudError(error.code, text, error.request_id, error.action) from None
