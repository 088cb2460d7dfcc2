#!/usr/bin/python
# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_import
short_description: Make an image of the account from an object in COS
version_added: 0.1.0
description:
  - Has the cloud import a disk image that lies in COS, waits until the image can be used, and shows how far it is.
  - The image's name is what identifies it, because the API's ImportImage has no token for repeated requests. An import
    that an interrupted run began is waited for, and an image that is there is left alone. One whose import failed is
    deleted and imported again. An image of the same name that was made of another object is refused.
  - The link that the cloud reads the object by is signed inside the module, used once, and never shown.
  - What the API leaves open is handled both ways. The international site answers no image id and takes no data disks;
    the image is then found by its name, and data disks are refused with a finding.
  - When an import fails, the API shows no reason. The finding names the cause from O(notice), from O(image_facts), or
    lists every documented one; the evidence for the vendor's support is written to a file.
  - In check mode, the cloud checks the parameters (C(DryRun)) and nothing is changed.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.cos
  - fleetlift.cvm.attributes
options:
  endpoint:
    description:
      - URL of a server that answers for every service of the API, such as V(http://10.98.0.10:80).
      - If not set, the vendor's own host of each service is used.
    type: str
  endpoint_domain:
    description:
      - Root domain of the vendor's hosts, such as V(intl.tencentcloudapi.com) for an international account.
      - Has no effect together with O(endpoint).
    type: str
  bucket:
    description:
      - The bucket of O(key) and O(data_keys), in the same region. Required with them.
    required: false
  name:
    description: The image's name, at most 60 characters. It is unique among the account's images of the region.
    type: str
    required: true
  state:
    description:
      - With V(present) there is such an image.
      - With V(absent) there is none. Instances that were made of it stay.
    type: str
    choices: [present, absent]
    default: present
  key:
    description: The object's key. Either this or O(image_url) is required when O(state=present).
    type: str
  data_keys:
    description:
      - The keys of images of data disks that are to belong to the image, in their order. The API of the China site
        only takes them.
    type: list
    elements: str
    default: []
  image_url:
    description:
      - A link by which the cloud can read the image, instead of an object of this account. A secret if it is signed.
    type: str
  url_life:
    description: How long the links that the module signs are valid, in seconds. The image has to be read by then.
    type: int
    default: 86400
  os_type:
    description: The operating system, by the names that M(fleetlift.cvm.cloud_image_info) lists.
    type: str
    default: ""
  os_version:
    description:
      - Its version by the same list. Of a version such as V(12.4), the part before the dot is tried too.
    type: str
    default: ""
  other_linux:
    description: Whether a system or version that is not in the list is imported as V(Other Linux).
    type: bool
    default: true
  architecture:
    description: The architecture. V(arm_64) is known to the China site only.
    type: str
    choices: [x86_64, i386, arm_64]
    default: x86_64
  boot_mode:
    description:
      - How instances of the image boot. The API's default if not set, which is V(Legacy BIOS).
    type: str
    choices: [Legacy BIOS, UEFI]
  force:
    description:
      - Import an image without cloud-init. Its instances get their address by DHCP only, so that
        M(fleetlift.cvm.image_prepare) has to come first.
    type: bool
    default: false
  license_type:
    description: The license by which the operating system is activated. The API's default if not set.
    type: str
    choices: [TencentCloud, BYOL]
  description:
    description: A text to add to the image's description. What the image is made of comes before it.
    type: str
    default: ""
  tags:
    description: Tags of the image.
    type: dict
    default: {}
  notice:
    description:
      - The code or the text of a notice in the console's Message Center, or of the console's task list, about the last
        import of the name. A failed import is then explained by it, and not begun again.
    type: str
  image_facts:
    description: What M(fleetlift.cvm.image_info) returned about the image file. It explains failures.
    type: dict
    default: {}
  evidence_dir:
    description:
      - A directory on the controller. When the import fails or does not end, a file with what the vendor's support
        asks for is written there, readable by its owner only and without secrets.
    type: path
  wait:
    description:
      - Whether to wait until the image can be used.
      - If V(false), the module begins the import and returns.
    type: bool
    default: true
  wait_timeout:
    description: Seconds to wait.
    type: int
    default: 7200
  progress_file:
    description:
      - A file that is replaced with the import's state, as JSON. Set by this collection itself to show the progress;
        not needed in a playbook.
    type: path
attributes:
  action:
    description: Has a corresponding action plugin, which shows the progress.
    support: full
seealso:
  - module: fleetlift.cvm.cloud_image_info
  - module: fleetlift.cvm.cos_object
"""

EXAMPLES = r"""
- name: Make an image of an uploaded file
  fleetlift.cvm.image_import:
    name: web1
    bucket: images-1250000000
    key: images/web1.qcow2
    os_type: Debian
    os_version: "12"
  delegate_to: localhost
  register: imported

- name: Find out why the last import failed, by the notice in the console
  fleetlift.cvm.image_import:
    name: web1
    bucket: images-1250000000
    key: images/web1.qcow2
    os_type: Debian
    os_version: "12"
    notice: VirtioNotInstall
  delegate_to: localhost

- name: Delete the image, now that its instances run
  fleetlift.cvm.image_import:
    name: web1
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
image:
  description: The image; null when there is none.
  returned: success
  type: dict
  contains:
    image_id:
      description: Its id.
      type: str
      sample: img-0a1b2c3d
    name:
      description: Its name.
      type: str
    state:
      description: The API's C(ImageState).
      type: str
      sample: NORMAL
    size_gb:
      description: The smallest system disk that it fits on, in GiB.
      type: int
    description:
      description: What it was made of.
      type: str
    os_name:
      description: The API's C(OsName).
      type: str
    architecture:
      description: The architecture.
      type: str
    created:
      description: When the import began.
      type: str
    kind:
      description: The API's C(ImageType).
      type: str
    data_snapshots:
      description: The data disks that belong to it, each with snapshot_id and size_gb.
      type: list
      elements: dict
os_type:
  description: The operating system as it was given to the cloud.
  returned: when O(state=present)
  type: str
os_version:
  description: Its version as it was given to the cloud.
  returned: when O(state=present)
  type: str
history:
  description: The states that were seen, each with the seconds since the beginning.
  returned: success
  type: list
  elements: list
  sample: [[0.0, absent], [1.2, IMPORTING], [63.9, NORMAL]]
waited_seconds:
  description: Seconds from the first look to the result.
  returned: success
  type: float
request_ids:
  description: Ids of the API requests, for the vendor's support.
  returned: success
  type: list
  elements: str
evidence_file:
  description: The file for the vendor's support.
  returned: when the import failed or did not end, and O(evidence_dir) is set
  type: str
finding:
  description: What went wrong, with its code, cause and next step.
  returned: failure
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.image_import import (
    LONGEST_DESCRIPTION,
    Context,
    Importer,
    Outcome,
    choose_system,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.images import Images, ImportRequest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.module import (
    client_for,
    cloud_argument_spec,
    cos_client_for,
    reported,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.waiter import DummyWaiter, Waiter
from ansible_collections.fleetlift.cvm.plugins.module_utils.evidence_file import write_evidence
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal, refuse
from ansible_collections.fleetlift.cvm.plugins.module_utils.import_progress import ImportProgress

SUPPORT_CODES = ("IMAGE_IMPORT_FAILED", "IMAGE_IMPORT_TIMEOUT", "CLOUD_INTERNAL_ERROR")


class Run:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self._params = module.params
        self._check_mode = module.check_mode
        self.client = client_for(module)
        self._images = Images(self.client)
        keys = [*([module.params["key"]] if module.params["key"] else []), *module.params["data_keys"]]
        self._cos = cos_client_for(module) if keys else None
        self._waiter = Waiter(module.params["wait_timeout"]) if module.params["wait"] else DummyWaiter()
        self._system = ("", "")
        self._content: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        """What the module returns. Raises ``Refusal``."""
        params = self._params
        progress = ImportProgress(params["progress_file"], params["wait_timeout"])
        context = Context(params["notice"], params["image_facts"])
        importer = Importer(self._images, params["name"], self._waiter, context=context, tell=progress.tell)
        if params["state"] == "absent":
            return self._answer(importer.absent(check_mode=self._check_mode))
        self._system = choose_system(
            self._images.supported(),
            os_type=params["os_type"],
            os_version=params["os_version"],
            architecture=params["architecture"],
            fallback=params["other_linux"],
        )
        content = self._describe_objects()
        if self._check_mode:
            found = self._images.named(params["name"])
            if found is None:
                self._images.check_import(self._request(content))
            return {**self._answer(Outcome(found, found is None)), **self._system_record()}
        outcome = importer.present(lambda: self._request(content), content=content, force=params["force"])
        return {**self._answer(outcome), **self._system_record()}

    def evidence(self, refusal: Refusal) -> str | None:
        """Write the file for the vendor's support, where that is wanted; its path."""
        directory = self._params["evidence_dir"]
        if directory is None or refusal.finding.code not in SUPPORT_CODES:
            return None
        return write_evidence(
            directory,
            self._params["name"],
            {
                "finding": refusal.finding.record(),
                "region": self._params["region"],
                "object": {"bucket": self._params["bucket"], **self._content},
                "parameters": {
                    "architecture": self._params["architecture"],
                    "os_type": self._system[0],
                    "os_version": self._system[1],
                    "boot_mode": self._params["boot_mode"],
                    "force": self._params["force"],
                },
                "request_ids": self.client.request_ids,
                "image_file": self._params["image_facts"],
            },
        )

    def _describe_objects(self) -> str | None:
        """What the image is made of, in words that tell two objects apart; None for a link."""
        if self._cos is None:
            return None
        texts = []
        for key in [self._params["key"], *self._params["data_keys"]]:
            head = self._cos.head(self._params["bucket"], key)
            if head is None and not self._check_mode:
                raise _object_missing(self._params["bucket"], key)
            self._content[key] = None if head is None else {"size": head.size, "crc64": str(head.crc)}
            texts.append(f"{key.rpartition('/')[2]} {head.size} bytes CRC64 {head.crc}" if head else key)
        return "; ".join(texts)[: LONGEST_DESCRIPTION - 1]

    def _request(self, content: str | None) -> ImportRequest:
        params, bucket, life = self._params, self._params["bucket"], self._params["url_life"]
        url = params["image_url"] or ""
        if self._cos is not None and params["key"]:
            url = self._cos.presign(bucket, params["key"], life)
        description = " ".join(text for text in (content, params["description"]) if text)
        return ImportRequest(
            name=params["name"],
            url=url,
            architecture=params["architecture"],
            os_type=self._system[0],
            os_version=self._system[1],
            description=description[:LONGEST_DESCRIPTION],
            boot_mode=params["boot_mode"],
            force=params["force"],
            license_type=params["license_type"],
            data_urls=tuple(self._cos.presign(bucket, key, life) for key in params["data_keys"]) if self._cos else (),
            tags={str(key): str(value) for key, value in params["tags"].items()},
        )

    def _system_record(self) -> dict[str, str]:
        return {"os_type": self._system[0], "os_version": self._system[1]}

    def _answer(self, outcome: Outcome) -> dict[str, Any]:
        return {
            "changed": outcome.changed,
            "image": None if outcome.image is None or self._params["state"] == "absent" else outcome.image.record(),
            "history": [list(entry) for entry in outcome.history],
            "waited_seconds": round(self._waiter.waited, 1),
            "request_ids": self.client.request_ids,
        }


def _object_missing(bucket: str, key: str) -> Refusal:
    return refuse(
        "COS_OBJECT_NOT_FOUND",
        key,
        f"There is no object {key} in {bucket}.",
        "Upload it with fleetlift.cvm.cos_object, then run again.",
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **cloud_argument_spec(),
            "cos_endpoint": {"type": "str"},
            "bucket": {"type": "str"},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "key": {"type": "str", "no_log": False},
            "data_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "image_url": {"type": "str", "no_log": True},
            "url_life": {"type": "int", "default": 86400},
            "os_type": {"type": "str", "default": ""},
            "os_version": {"type": "str", "default": ""},
            "other_linux": {"type": "bool", "default": True},
            "architecture": {"type": "str", "choices": ["x86_64", "i386", "arm_64"], "default": "x86_64"},
            "boot_mode": {"type": "str", "choices": ["Legacy BIOS", "UEFI"]},
            "force": {"type": "bool", "default": False},
            "license_type": {"type": "str", "choices": ["TencentCloud", "BYOL"]},
            "description": {"type": "str", "default": ""},
            "tags": {"type": "dict", "default": {}},
            "notice": {"type": "str"},
            "image_facts": {"type": "dict", "default": {}},
            "evidence_dir": {"type": "path"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 7200},
            "progress_file": {"type": "path"},
        },
        mutually_exclusive=[("key", "image_url"), ("data_keys", "image_url")],
        required_by={"key": "bucket"},
        required_if=[("state", "present", ["key", "image_url"], True)],
        supports_check_mode=True,
    )
    with reported(module):
        run = Run(module)
        try:
            result = run.result()
        except Refusal as refusal:
            evidence = run.evidence(refusal)
            extra = {"evidence_file": evidence} if evidence else {}
            module.fail_json(msg=str(refusal), finding=refusal.finding.record(), **extra)
        module.exit_json(**result)


if __name__ == "__main__":
    main()
