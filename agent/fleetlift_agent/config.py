# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config.json: what one daemon is to do. Everything is checked before anything is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetlift_agent.compression import COMPRESSION
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import MAX_DISK
from fleetlift_agent.proxy import Proxy
from fleetlift_agent.tls import TlsFiles

# Slower than this, a single extent would take a minute and heartbeats would starve.
MIN_BANDWIDTH = 16 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@dataclass(frozen=True)
class DiskConfig:
    """One disk. The sender knows its device, both know the target's serial. size: bytes of the source disk."""

    id: str
    size: int
    serial: str
    device: Path | None


@dataclass(frozen=True)
class Config:
    """A daemon's configuration; the path names in it are absolute."""

    migration: str
    role: str
    host: str
    port: int
    proxy: Proxy | None
    tls: TlsFiles
    disks: tuple[DiskConfig, ...]
    connections: int
    peer_timeout: float
    bandwidth_limit: int | None
    max_passes: int
    max_downtime: float
    change_tracking: bool
    audit: bool
    skip_free: bool
    # Paths of disks that are in use on the source and not migrated, on purpose.
    left_behind: tuple[str, ...]
    compression: str
    scrub_interval: float


def load_config(directory: Path) -> Config:
    """Read and check `directory`/config.json. Raises AgentError CONFIG_INVALID."""
    path = directory / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _invalid(f"{path} is not JSON: {error}") from error
    return parse_config(value, directory)


def parse_config(value: Any, directory: Path) -> Config:
    """The configuration in a JSON value; relative paths are below `directory`. Raises AgentError CONFIG_INVALID."""
    if not isinstance(value, dict):
        raise _invalid("config.json is not an object")
    if value.get("schema") != 1:
        raise _invalid(f"schema {value.get('schema')!r} is not known, this agent knows 1")
    role = value.get("role")
    if role not in ("sender", "receiver"):
        raise _invalid(f"role is {role!r} instead of sender or receiver")
    address = _object(value, "peer" if role == "sender" else "listen")
    tls = _object(value, "tls")
    return Config(
        migration=_name(value, "migration"),
        role=role,
        host=_text(address, "host"),
        port=_integer(address, "port", 0 if role == "receiver" else 1, 65535),
        proxy=_proxy(address.get("proxy")),
        tls=TlsFiles(
            directory / _text(tls, "certificate"),
            directory / _text(tls, "key"),
            directory / _text(tls, "peer_certificate"),
        ),
        disks=_disks(value.get("disks"), role),
        connections=_integer({"connections": 4, **value}, "connections", 1, 32),
        peer_timeout=_number({"peer_timeout": 60, **value}, "peer_timeout", 1, 3600),
        bandwidth_limit=parse_bandwidth(value.get("bandwidth_limit")),
        max_passes=_integer({"max_passes": 5, **value}, "max_passes", 1, 1000),
        max_downtime=_number({"max_downtime": 30, **value}, "max_downtime", 0, 86400),
        change_tracking=_boolean({"change_tracking": True, **value}, "change_tracking"),
        audit=_boolean({"audit": True, **value}, "audit"),
        skip_free=_boolean({"skip_free": True, **value}, "skip_free"),
        left_behind=_texts({"left_behind": [], **value}, "left_behind"),
        compression=_choice({"compression": "auto", **value}, "compression", COMPRESSION),
        scrub_interval=_number({"scrub_interval": 43200, **value}, "scrub_interval", 0, 31 * 86400),
    )


def _choice(value: dict[str, Any], key: str, choices: Sequence[str]) -> str:
    if value[key] not in choices:
        raise _invalid(f"{key} is {value[key]!r} instead of one of {', '.join(choices)}")
    return str(value[key])


def _proxy(value: Any) -> Proxy | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _invalid("proxy is not an object")
    return Proxy(_text(value, "host"), _integer(value, "port", 1, 65535))


def parse_bandwidth(value: Any) -> int | None:
    """A limit in bytes/s, or None for no limit."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < MIN_BANDWIDTH:
        raise _invalid(f"bandwidth_limit is {value!r} instead of null or at least {MIN_BANDWIDTH} bytes/s")
    return value


def _disks(value: Any, role: str) -> tuple[DiskConfig, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 256:
        raise _invalid("disks is not a list of 1 to 256 disks")
    disks = tuple(_disk(item, role) for item in value)
    for what, names in (("id", [disk.id for disk in disks]), ("serial", [disk.serial for disk in disks])):
        _unique(what, names)
    if role == "sender":
        _unique("device", [str(disk.device) for disk in disks])
    return disks


def _disk(value: Any, role: str) -> DiskConfig:
    if not isinstance(value, dict):
        raise _invalid("a disk is not an object")
    size = _integer(value, "size", 512, MAX_DISK)
    if size % 512:
        raise _invalid(f"a disk's size of {size} bytes is not made of whole sectors")
    return DiskConfig(
        id=_name(value, "id"),
        size=size,
        serial=_name(value, "target_serial" if role == "sender" else "serial"),
        device=Path(_text(value, "device")) if role == "sender" else None,
    )


def _unique(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _invalid(f"two disks have the same {what}: {', '.join(twice)}")


def _object(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    inner = value.get(name)
    if not isinstance(inner, dict):
        raise _invalid(f"{name} is missing or not an object")
    return inner


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text or "\0" in text:
        raise _invalid(f"{name} is missing or not a text")
    return text


def _texts(value: Mapping[str, Any], name: str) -> tuple[str, ...]:
    texts = value.get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _invalid(f"{name} is not a list of texts")
    return tuple(texts)


def _name(value: Mapping[str, Any], name: str) -> str:
    text = _text(value, name)
    if not _NAME.match(text):
        raise _invalid(f"{name} is {text!r}: 1 to 64 letters, digits, dots, dashes and underscores are allowed")
    return text


def _integer(value: Mapping[str, Any], name: str, low: int, high: int) -> int:
    number = value.get(name)
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise _invalid(f"{name} is {number!r} instead of a whole number from {low} to {high}")
    return number


def _boolean(value: Mapping[str, Any], name: str) -> bool:
    flag = value.get(name)
    if not isinstance(flag, bool):
        raise _invalid(f"{name} is {flag!r} instead of true or false")
    return flag


def _number(value: Mapping[str, Any], name: str, low: float, high: float) -> float:
    number = value.get(name)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not low <= number <= high:
        raise _invalid(f"{name} is {number!r} instead of a number from {low} to {high}")
    return float(number)


def _invalid(cause: str) -> AgentError:
    return AgentError(
        "CONFIG_INVALID",
        cause,
        "Correct the variables of this source and install the agent again",
        subject="config.json",
    )
