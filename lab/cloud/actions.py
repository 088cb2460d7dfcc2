# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of actions: which function answers which call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lab.cloud.cloud import Cloud
from lab.cloud.errors import ApiError
from lab.cloud.parameters import JsonObject


@dataclass(frozen=True)
class Call:
    """One admitted request: its parameters have the documented names and types."""

    action: str
    request_id: str
    parameters: JsonObject = field(repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter, or the default when it was not given."""
        return self.parameters.get(name, default)


Handler = Callable[[Cloud, Call], JsonObject]

HANDLERS: dict[tuple[str, str], Handler] = {}


def action(product: str) -> Callable[[Handler], Handler]:
    """Register a function as the answer to the action it is named after (start_instances -> StartInstances)."""

    def register(function: Handler) -> Handler:
        name = "".join(word.capitalize() for word in function.__name__.split("_"))
        HANDLERS[product, name] = function
        return function

    return register


def page(items: list[Any], offset: int, limit: int) -> list[Any]:
    """The part of a list that Offset and Limit ask for; Limit is 1 to 100 everywhere."""
    if offset < 0:
        raise ApiError("InvalidParameterValue", f"The value `{offset}` of `Offset` is negative.")
    if not 1 <= limit <= 100:
        raise ApiError("InvalidParameterValue", f"The value `{limit}` of `Limit` is not between 1 and 100.")
    return items[offset : offset + limit]
