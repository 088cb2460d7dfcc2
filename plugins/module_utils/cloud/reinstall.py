# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An instance whose system disk becomes an image (ResetInstance).

What it did before is gone with the disk, so it is done once: an instance whose ImageId is the image already is left
alone. The vendor's page does not say which InstanceState is shown meanwhile; the operation is followed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..findings import Refusal, refuse
from .client import CloudClient
from .errors import CloudError
from .images import Image
from .instances import Instances
from .target import Target, standing_refusals
from .waiter import DummyWaiter, Waiter

ACTION = "ResetInstance"
# Seconds after which a reset whose answer was lost, and of which nothing shows, has not begun.
LOST_CALL_PATIENCE = 30.0


@dataclass(frozen=True)
class Reinstalled:
    """``changed`` says whether this run, or one that it continued, put the image there."""

    target: Target
    changed: bool


def check_fits(image: Image, subject: str, size_gb: int) -> None:
    """Refuse a system disk that the image does not fit on: the FAQ's "verification of the image file failed"."""
    if size_gb < image.size_gb:
        raise refuse(
            "TARGET_DISK_SMALLER",
            subject,
            f"The system disk of {size_gb} GiB is smaller than the {image.size_gb} GiB of the image {image.name}.",
            f"Give it at least {image.size_gb} GiB (in the console, or with system_disk_size), then run again.",
            size_gb=size_gb,
            needed_gb=image.size_gb,
        )


class Reinstall:
    """Takes one instance to an image."""

    def __init__(
        self, client: CloudClient, instances: Instances, instance_id: str, waiter: Waiter | DummyWaiter
    ) -> None:
        self._client = client
        self._instances = instances
        self._instance_id = instance_id
        self._waiter = waiter

    def ensure(self, image: Image, *, keep_image_login: bool = True, dry_run: bool = False) -> Reinstalled:
        """Have the instance run from *image*. Raises :class:`Refusal`."""
        (target,) = self._instances.by_ids([self._instance_id])
        for finding in standing_refusals(target):
            raise Refusal(finding)
        system = next((disk for disk in target.disks if disk.usage == "system"), None)
        check_fits(image, self._instance_id, system.size_gb if system else 0)
        operation = target.latest_operation
        running = operation.state == "OPERATING" and operation.name == ACTION
        there = target.image_id == image.image_id
        failed = operation.name == ACTION and operation.state == "FAILED"
        if there and not running and not failed:
            return Reinstalled(target, changed=False)
        if dry_run:
            return Reinstalled(target, changed=True)
        if not (there and running):
            target = self._begin(image, target, keep_image_login)
        return Reinstalled(self._settled(image, target), changed=True)

    def _begin(self, image: Image, before: Target, keep_image_login: bool) -> Target:
        params = {"InstanceId": self._instance_id, "ImageId": image.image_id}
        if keep_image_login:
            params["LoginSettings"] = {"KeepImageLogin": "TRUE"}  # type: ignore[assignment]
        asked = self._waiter.waited
        try:
            self._client.call("cvm", ACTION, params, idempotent=False)
        except CloudError as error:
            if not error.is_network:
                raise
            # Whether it was carried out shows in the instance.
            while True:
                target = self._instances.observe(self._instance_id)
                if target.latest_operation != before.latest_operation:
                    return target
                if self._waiter.waited - asked > LOST_CALL_PATIENCE or not self._waiter.pause():
                    raise
        self._waiter.hasten()
        return self._instances.observe(self._instance_id)

    def _settled(self, image: Image, target: Target) -> Target:
        while True:
            operation = target.latest_operation
            if operation.name == ACTION and operation.state == "FAILED":
                raise refuse(
                    "TARGET_RESET_FAILED",
                    self._instance_id,
                    f"The instance {self._instance_id} could not be made from {image.name}: {operation.error}.",
                    "Run again, which resets it again; if that fails too, look at the instance's console and give the"
                    " request id to the vendor's support.",
                    request_id=operation.request_id,
                    image_id=image.image_id,
                )
            if operation.state == "SUCCESS" and target.image_id == image.image_id and target.state == "RUNNING":
                return target
            if not self._waiter.patient:
                return target
            if not self._waiter.pause():
                raise refuse(
                    "TARGET_RESET_TIMEOUT",
                    self._instance_id,
                    f"After {self._waiter.waited:.0f} s the instance {self._instance_id} is {target.state}, its"
                    f" operation {operation.name} {operation.state}.",
                    "Run again to go on waiting; it is not reset twice.",
                    request_id=operation.request_id,
                )
            target = self._instances.observe(self._instance_id)
