# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests and answers checked against the SDK's own model classes.

The SDK states the type of every field in the docstring of each model's constructor
(":type InstanceIds: list of str"); the same text generates its documentation.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from typing import Any

from lab.cloud.errors import ApiError

JsonObject = dict[str, Any]

_FIELD = re.compile(r"^\s*:type (\w+): (.+?)\s*$", re.MULTILINE)
_SCALARS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


class ModelMismatch(Exception):
    """An answer has a field, or a type, that the SDK's model does not know."""


@functools.cache
def fields(service: str, model: str) -> Mapping[str, str]:
    """The fields of a model and their types as the SDK writes them: "str", "list of Filter", "Placement"."""
    cls = getattr(_models(service), model)
    found = _FIELD.findall(cls.__init__.__doc__ or "")
    return {name: text.rsplit(".", 1)[-1].rstrip("`") if text.startswith(":class:") else text for name, text in found}


def has_model(service: str, model: str) -> bool:
    """Whether the SDK has that model."""
    return hasattr(_models(service), model)


def check_request(service: str, action: str, required: list[str], given: Any) -> JsonObject:
    """The parameters without nulls (the same as absent), or the documented refusal."""
    if not isinstance(given, dict):
        raise ApiError("InvalidRequest", "The body of the request is not a JSON object.")
    parameters: JsonObject = _without_nulls(given)
    _check_object(service, f"{action}Request", parameters, "")
    for name in required:
        if name not in parameters:
            raise ApiError("MissingParameter", f"The request is missing a required parameter `{name}`.")
    return parameters


def check_response(service: str, action: str, answer: JsonObject) -> None:
    """Raise ModelMismatch for anything in an answer that the SDK's response model does not declare."""
    try:
        _check_object(service, f"{action}Response", _without_nulls(answer), "")
    except ApiError as error:
        raise ModelMismatch(f"{service} {action}: {error.message}") from error


def _check_object(service: str, model: str, value: JsonObject, path: str) -> None:
    known = fields(service, model)
    for name, item in value.items():
        where = f"{path}{name}"
        if name not in known:
            raise ApiError("UnknownParameter", f"The parameter `{where}` is not recognized.")
        _check_value(service, known[name], item, where)


def _check_value(service: str, declared: str, value: Any, where: str) -> None:
    if declared.startswith("list of "):
        if not isinstance(value, list):
            raise _wrong_type(where, declared)
        for index, item in enumerate(value):
            _check_value(service, declared.removeprefix("list of "), item, f"{where}.{index}")
    elif declared in _SCALARS:
        if not isinstance(value, _SCALARS[declared]) or (isinstance(value, bool) and declared != "bool"):
            raise _wrong_type(where, declared)
    else:
        if not isinstance(value, dict):
            raise _wrong_type(where, declared)
        _check_object(service, declared, value, f"{where}.")


def _wrong_type(where: str, declared: str) -> ApiError:
    return ApiError("InvalidParameter", f"The value type of parameter `{where}` is not valid, expected {declared}.")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


@functools.cache
def _models(service: str) -> Any:
    return importlib.import_module(f"tencentcloud.{service}.v20170312.models")
