# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cloud's instances, as the modules use them: which API actions, in which batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..findings import Finding, Refusal, refuse
from ..security_groups import Rule, effective_ingress
from .client import CloudClient
from .errors import CloudError
from .target import Target, disk_ids_of, target_from_api

# Limits of the API: ids or entries in one call; values of one filter.
PAGE = 100
FILTER_VALUES = 5

T = TypeVar("T")


class Instances:
    """Reads instances of one region and puts them in and out of rescue mode."""

    def __init__(self, client: CloudClient, region: str) -> None:
        self._client = client
        self._region = region

    def observe(self, instance_id: str) -> Target:
        """The instance without its disks' states and security groups: one request, for polling."""
        for instance in self._by_ids([instance_id]):
            return target_from_api(instance, region=self._region)
        raise _not_found([instance_id], self._region)

    def by_ids(self, instance_ids: Sequence[str]) -> list[Target]:
        """The instances in the order of *instance_ids*, complete. Raises ``Refusal`` when one does not exist."""
        found = {str(instance["InstanceId"]): instance for instance in self._by_ids(instance_ids)}
        missing = [instance_id for instance_id in instance_ids if instance_id not in found]
        if missing:
            raise _not_found(missing, self._region)
        return self._complete([found[instance_id] for instance_id in dict.fromkeys(instance_ids)])

    def existing(self, instance_ids: Sequence[str]) -> tuple[list[Target], dict[str, Finding]]:
        """Those of *instance_ids* that exist, complete and in this order, and why each of the others was not found.

        One id that is unknown or malformed fails a whole request: it is found by halves.
        """
        found: dict[str, Mapping[str, Any]] = {}
        refused: dict[str, Finding] = {}
        for batch in _batches(list(dict.fromkeys(instance_ids)), PAGE):
            found.update({str(instance["InstanceId"]): instance for instance in self._existing(batch, refused)})
        for instance_id in instance_ids:
            if instance_id not in found and instance_id not in refused:
                refused[instance_id] = _not_found([instance_id], self._region).finding
        return self._complete([found[name] for name in dict.fromkeys(instance_ids) if name in found]), refused

    def _existing(self, batch: Sequence[str], refused: dict[str, Finding]) -> list[Mapping[str, Any]]:
        try:
            return list(self._by_ids(batch))
        except CloudError as error:
            if error.finding.code != "TARGET_NOT_FOUND":
                raise
            if len(batch) == 1:
                refused[batch[0]] = error.finding
                return []
        middle = len(batch) // 2
        return self._existing(batch[:middle], refused) + self._existing(batch[middle:], refused)

    def by_filters(self, filters: Mapping[str, Sequence[str]], *, complete: bool = True) -> list[Target]:
        """The instances that satisfy every one of *filters* (the API's own names), each with any of its values.

        Unless *complete*, without their disks' states and security groups: nothing else is asked.
        """
        found: dict[str, Mapping[str, Any]] = {}
        for alternative in _alternatives(filters):
            for instance in self._pages([{"Name": name, "Values": values} for name, values in alternative.items()]):
                found[str(instance["InstanceId"])] = instance
        if not complete:
            return [target_from_api(instance, region=self._region) for instance in found.values()]
        return self._complete(list(found.values()))

    def enter_rescue_mode(self, instance_id: str, *, username: str, password: str, stop_type: str) -> str:
        """Starts the change; returns the request id."""
        params = {"InstanceId": instance_id, "Username": username, "Password": password, "StopType": stop_type}
        return self._change("EnterRescueMode", params)

    def exit_rescue_mode(self, instance_id: str) -> str:
        """Starts the change, which leaves the instance STOPPED; returns the request id."""
        return self._change("ExitRescueMode", {"InstanceId": instance_id})

    def start(self, instance_id: str) -> str:
        """Starts the change; returns the request id."""
        return self._change("StartInstances", {"InstanceIds": [instance_id]})

    def stop(self, instance_id: str, *, stop_type: str) -> str:
        """Starts the change; returns the request id. The instance keeps its host, which rescue mode needs."""
        params = {"InstanceIds": [instance_id], "StopType": stop_type, "StoppedMode": "KEEP_CHARGING"}
        return self._change("StopInstances", params)

    def set_security_groups(self, instance_id: str, groups: Sequence[str]) -> str:
        """Starts the change, after which the instance has these groups and no other; returns the request id."""
        params = {"InstanceIds": [instance_id], "SecurityGroups": list(groups)}
        return self._change("ModifyInstancesAttribute", params)

    def _change(self, action: str, params: Mapping[str, Any]) -> str:
        return str(self._client.call("cvm", action, params, idempotent=False)["RequestId"])

    def _by_ids(self, instance_ids: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        for batch in _batches(list(dict.fromkeys(instance_ids)), PAGE):
            params = {"InstanceIds": batch, "Limit": PAGE}
            yield from self._client.call("cvm", "DescribeInstances", params, expect=("InstanceSet",))["InstanceSet"]

    def _pages(self, filters: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        offset = 0
        while True:
            params = {"Filters": list(filters), "Offset": offset, "Limit": PAGE}
            page = self._client.call("cvm", "DescribeInstances", params, expect=("TotalCount", "InstanceSet"))
            yield from page["InstanceSet"]
            offset += len(page["InstanceSet"])
            if not page["InstanceSet"] or offset >= page["TotalCount"]:
                return

    def ingress_of(self, groups: Sequence[str]) -> list[Rule]:
        """The rules for incoming connections of an instance in *groups*, in the order in which they apply."""
        return effective_ingress((group, self._policies(group)) for group in groups)

    def _complete(self, instances: Sequence[Mapping[str, Any]]) -> list[Target]:
        disks = self._disks([disk_id for instance in instances for disk_id in disk_ids_of(instance)])
        groups = dict.fromkeys(group for instance in instances for group in instance.get("SecurityGroupIds") or ())
        policies = {group: self._policies(group) for group in groups}

        def ingress(instance: Mapping[str, Any]) -> list[Rule]:
            return effective_ingress((group, policies[group]) for group in instance.get("SecurityGroupIds") or ())

        return [
            target_from_api(instance, region=self._region, disks=disks, ingress=ingress(instance))
            for instance in instances
        ]

    def _disks(self, disk_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        found = {}
        for batch in _batches(disk_ids, PAGE):
            params = {"DiskIds": batch, "Limit": PAGE}
            for disk in self._client.call("cbs", "DescribeDisks", params, expect=("DiskSet",))["DiskSet"]:
                found[str(disk["DiskId"])] = disk
        return found

    def _policies(self, group: str) -> list[Mapping[str, Any]]:
        answer = self._client.call(
            "vpc", "DescribeSecurityGroupPolicies", {"SecurityGroupId": group}, expect=("SecurityGroupPolicySet",)
        )
        return list(answer["SecurityGroupPolicySet"].get("Ingress") or ())


def _not_found(instance_ids: Sequence[str], region: str | None) -> Refusal:
    names = ", ".join(instance_ids)
    return refuse(
        "TARGET_NOT_FOUND",
        names,
        f"No such instance in region {region}: {names}.",
        "Check the instance id and region; an instance of another account is not found either.",
        region=region,
        instance_ids=list(instance_ids),
    )


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _alternatives(filters: Mapping[str, Sequence[str]]) -> Iterable[dict[str, list[str]]]:
    """*filters* as requests that each keep to the API's number of values in a filter."""
    requests: list[dict[str, list[str]]] = [{}]
    for name, values in filters.items():
        requests = [{**request, name: batch} for request in requests for batch in _batches(values, FILTER_VALUES)]
    return requests
