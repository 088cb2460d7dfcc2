# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the Describe actions: names are ANDed, the values of one name are ORed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from lab.cloud.errors import ApiError
from lab.cloud.parameters import JsonObject

MAXIMUM_FILTERS = 10
MAXIMUM_VALUES = 5

Item = TypeVar("Item")


class Filters(Generic[Item]):
    """The filters that an action knows: name -> the values an item has under it. tags serves tag-key,
    tag:KEY...; it is None for an action without such filters.

    unknown_name and too_many are the codes that the action documents for them; part_of names the filters whose values
    need only be a part of what an item has.
    """

    def __init__(
        self,
        getters: Mapping[str, Callable[[Item], list[str]]],
        tags: Callable[[Item], Mapping[str, str]] | None,
        *,
        unknown_name: str,
        too_many: str,
        part_of: frozenset[str] = frozenset(),
    ) -> None:
        self._tags = tags
        self._getters = dict(getters)
        if tags is not None:
            self._getters["tag-key"] = lambda item: list(tags(item))
            self._getters["tag-value"] = lambda item: list(tags(item).values())
        self._unknown_name = unknown_name
        self._too_many = too_many
        self._part_of = part_of

    def select(self, items: list[Item], given: list[JsonObject]) -> list[Item]:
        """The items that pass every filter."""
        if len(given) > MAXIMUM_FILTERS:
            raise ApiError(self._too_many, f"More than {MAXIMUM_FILTERS} filters.")
        for entry in given:
            name, values = entry.get("Name"), entry.get("Values")
            if not name or not values:
                raise ApiError(self._unknown_name, "A filter needs both `Name` and `Values`.")
            if len(values) > MAXIMUM_VALUES:
                raise ApiError(self._too_many, f"More than {MAXIMUM_VALUES} values in the filter `{name}`.")
            wanted = set(values)
            getter = self._getter(name)
            if name in self._part_of:
                items = [item for item in items if any(part in text for part in wanted for text in getter(item))]
            else:
                items = [item for item in items if not wanted.isdisjoint(getter(item))]
        return items

    def _getter(self, name: str) -> Callable[[Item], list[str]]:
        tags = self._tags
        if name.startswith("tag:") and tags is not None:
            key = name.removeprefix("tag:")
            return lambda item: [tags(item)[key]] if key in tags(item) else []
        if name not in self._getters:
            raise ApiError(self._unknown_name, f"The filter `{name}` is not supported.")
        return self._getters[name]
