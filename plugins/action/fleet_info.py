# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.fleet_info: sorts the sources by whom to ask, and asks each once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..module_utils.findings import Finding
from ..modules.fleet_info import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        hostvars = variables["hostvars"]
        access = {source: dict(hostvars[source].get(arguments["access"]) or {}) for source in arguments["sources"]}
        landing = {source: str(known.pop("landing_address", "auto")) for source, known in access.items()}
        targets: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        request_ids: list[str] = []
        for group in groups(access):
            options = {**group["access"], "instance_ids": list(group["instances"].values()), "missing": "skip"}
            answer = self._execute_module("fleetlift.cvm.target_info", module_args=options, task_vars=variables)
            request_ids += answer.get("request_ids") or []
            found = {target["instance_id"]: target for target in answer.get("targets") or ()}
            for source, instance_id in group["instances"].items():
                if answer.get("failed"):
                    errors[source] = answer.get("finding") or unexplained(source, answer)
                elif instance_id in found:
                    targets[source] = found[instance_id]
                else:
                    errors[source] = answer["missing"][instance_id]
        planned = {source: hostvars[source] for source in arguments["plan"]}
        return {
            "changed": False,
            "targets": targets,
            "errors": errors,
            "addresses": {source: addresses(targets.get(source, {}), choice) for source, choice in landing.items()},
            "plan": {source: str(known.get("fleetlift_target") or "") for source, known in planned.items()},
            "bandwidth_shares": [int(known.get("fleetlift_bandwidth_share") or 1) for known in planned.values()],
            "request_ids": request_ids,
        }


def groups(access: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sources that can be asked for together: ``access`` is what they have in common, ``instances`` by source."""
    found: dict[str, dict[str, Any]] = {}
    for source, known in access.items():
        common = {key: value for key, value in known.items() if value and key != "instance_id"}
        if instance_id := known.get("instance_id"):
            group = found.setdefault(json.dumps(common, sort_keys=True), {"access": common, "instances": {}})
            group["instances"][source] = str(instance_id)
    return list(found.values())


def addresses(target: Mapping[str, Any], choice: str) -> list[str]:
    """Where the landing of *target* will be: *choice* is auto (public first), public, private, or an address."""
    public, private = list(target.get("public_addresses") or ()), list(target.get("private_addresses") or ())
    return {"auto": public + private, "public": public, "private": private}.get(choice, [choice])


def unexplained(source: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The finding for a failure that brought none with it, such as a library that is missing on the controller."""
    message = str(answer.get("msg") or "The module target_info failed.")
    return Finding(
        "TARGET_NOT_READ",
        "blocker",
        source,
        f"The target of {source} could not be looked at: {message}",
        "Make `ansible localhost -m fleetlift.cvm.target_info` work on the controller.",
    ).record()
