# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan of a fleet: which source goes to which target, in which wave. Documents in, entries or problems out.

Everything is checked before anything is returned, and every mistake is named with its file, line and column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .window import parse_window

# Fields of an entry that a CSV plan has columns for. Columns and keys that begin with one of PREFIXES are variables.
FIELDS = (
    "name",
    "address",
    "port",
    "user",
    "target",
    "disks",
    "wave",
    "window",
    "bandwidth_share",
    "services",
    "health_checks",
)
REQUIRED = ("name", "address", "target", "disks")
PREFIXES = ("ansible_", "fleetlift_")
# Variables that a field sets.
SET_BY = {
    "ansible_host": "address",
    "ansible_port": "port",
    "ansible_user": "user",
    "fleetlift_target": "target",
    "fleetlift_target_name": "target",
    "fleetlift_target_tags": "target",
    "fleetlift_target_shape": "target",
    "fleetlift_disks": "disks",
    "fleetlift_wave": "wave",
    "fleetlift_window": "window",
    "fleetlift_bandwidth_share": "bandwidth_share",
    "fleetlift_services": "services",
    "fleetlift_health_checks": "health_checks",
}

CHARGE_TYPES = ("POSTPAID_BY_HOUR", "PREPAID")
# The shape of an instance to create, as the module target_instance takes it: name of the key, type, whether required.
SHAPE: Mapping[str, tuple[type, bool]] = {
    "zone": (str, True),
    "instance_type": (str, True),
    "image_id": (str, True),
    "vpc_id": (str, False),
    "subnet_id": (str, False),
    "security_groups": (list, False),
    "charge_type": (str, False),
    "period": (int, False),
    "system_disk_type": (str, False),
    "data_disk_type": (str, False),
    "bandwidth_out": (int, False),
    "instance_name": (str, False),
    "tags": (dict, False),
}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_INSTANCE = re.compile(r"ins-[a-z0-9]+")
_TARGET_DISK = re.compile(r"system|data[1-9][0-9]*|disk-[a-z0-9]+")
_SEPARATOR = re.compile(r"[;\s]+")
_KINDS: Mapping[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class Node:
    """A value and where it begins; lines and columns count from 1.

    ``value`` is a scalar, a list of nodes, or a mapping from key to a pair of nodes: the key's and the value's.
    """

    value: Any
    line: int
    column: int


@dataclass(frozen=True)
class Problem:
    """One mistake in a plan; ``where`` names the entry and field."""

    file: str
    line: int
    column: int
    where: str
    message: str

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.file}:{self.line}:{self.column}: {where}{self.message}"


@dataclass(frozen=True)
class Entry:
    """One source of a plan. ``target_id`` is empty for a target that has to be looked up or created."""

    name: str
    wave: int
    target_id: str
    variables: Mapping[str, Any] = field(default_factory=dict)


class _Document:
    """Collects the problems of one file; what cannot be read becomes None and is left out of further checks."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems

    def note(self, node: Node, where: str, message: str) -> None:
        self.problems.append(Problem(self.file, node.line, node.column, where, message))

    def text(self, node: Node, where: str) -> str | None:
        value = node.value
        # A number is text that YAML took for one.
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            self.note(node, where, f"is {_shown(value)}, and has to be text")
            return None
        return value.strip()

    def whole(self, node: Node, where: str, least: int, most: int) -> int | None:
        value = node.value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.note(node, where, f"is {_shown(value)}, and has to be a whole number from {least} to {most}")
            return None
        return value

    def items(self, node: Node, where: str) -> list[Node]:
        if not isinstance(node.value, list):
            self.note(node, where, f"is {_shown(node.value)}, and has to be a list")
            return []
        return node.value

    def mapping(
        self, node: Node, where: str, known: Sequence[str], required: Sequence[str] = (), prefixes: tuple[str, ...] = ()
    ) -> dict[str, Node]:
        """The values of a mapping; keys that are not *known* are noted, and *required* ones that are missing."""
        if not isinstance(node.value, dict):
            self.note(node, where, f"is {_shown(node.value)}, and has to be a mapping of {', '.join(known)}")
            return {}
        values: dict[str, Node] = {}
        for name, (key, value) in node.value.items():
            if name in known or (prefixes and name.startswith(prefixes)):
                values[name] = value
            else:
                self.note(key, where, f"{name!r} is not known here; known are {', '.join(known)}")
        for name in required:
            if name not in values:
                self.note(node, where, f"{name} is missing")
        return values


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    kind = next((kind for python, kind in ((dict, "a mapping"), (list, "a list")) if isinstance(value, python)), "")
    return kind or repr(value)


def plan_entries(root: Node | None, shapes: Node | None, file: str, problems: list[Problem]) -> list[Entry]:
    """The entries of the list *root*, in its order. Every mistake is added to *problems*; the result
    counts only without any.

    *shapes* are named shapes of instances to create, for targets of the form ``{create: NAME}``.
    """
    document = _Document(file, problems)
    known_shapes = _shapes(document, shapes)
    if root is None or root.value is None:
        document.note(root or Node(None, 1, 1), "sources", "there is no source in this plan")
        return []
    read = [
        _entry(document, node, f"sources[{index}]", known_shapes)
        for index, node in enumerate(document.items(root, "sources"))
    ]
    _once(document, [(entry.name, node, "name") for entry, node in read if entry], "{0!r} is also the name of line {1}")
    _once(
        document,
        [
            ((entry.variables["ansible_host"], entry.variables.get("ansible_port", 22)), node, entry.name)
            for entry, node in read
            if entry
        ],
        "{0[0]} port {0[1]} is also the address of line {1}: one server cannot be moved twice",
    )
    _once(
        document,
        [(key, node, entry.name) for entry, node in read if entry for key in _target_keys(entry)],
        "the target {0} is also the one of line {1}, and one would overwrite the other",
    )
    return [entry for entry, _node in read if entry]


def document_entries(root: Node | None, shapes: Node | None, file: str, problems: list[Problem]) -> list[Entry]:
    """The entries of a YAML plan: a mapping with ``sources`` and, where targets are created, ``shapes``."""
    if root is None:
        return []
    document = _Document(file, problems)
    values = document.mapping(root, "", ("sources", "shapes"), ("sources",))
    if "sources" not in values:
        return []
    return plan_entries(values["sources"], values.get("shapes", shapes), file, problems)


def table_entries(
    records: Sequence[list[Node]], shapes: Node | None, file: str, problems: list[Problem]
) -> list[Entry]:
    """The entries of a CSV plan, whose first record names the columns. *shapes* are those of the inventory source."""
    document = _Document(file, problems)
    if not records:
        document.note(Node(None, 1, 1), "", f"the file is empty; its first line names the columns: {','.join(FIELDS)}")
        return []
    header, rows = records[0], records[1:]
    names = [str(cell.value) for cell in header]
    for cell in header:
        if cell.value not in FIELDS and not str(cell.value).startswith(PREFIXES):
            message = f"the column {cell.value!r} is not known; known are {', '.join(FIELDS)} and variables"
            document.note(cell, "", f"{message} that begin with {' or '.join(PREFIXES)}")
        elif names.count(str(cell.value)) > 1:
            document.note(cell, "", f"the column {cell.value!r} is there twice")
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        document.note(header[0], "", f"the column {' and the column '.join(missing)} is missing")
    for row in rows:
        if len(row) != len(header):
            at = row[len(header)] if len(row) > len(header) else row[-1]
            document.note(at, "", f"this line has {len(row)} cells, the first line names {len(header)} columns")
    if problems:
        return []
    entries = [
        Node(
            {
                name: (heading, _from_cell(name, cell))
                for name, heading, cell in zip(names, header, row)
                if cell.value != ""
            },
            row[0].line,
            row[0].column,
        )
        for row in rows
    ]
    return plan_entries(Node(entries, header[0].line, 1), shapes, file, problems)


def _listed(cell: Node) -> list[Node]:
    """The entries of the list in a cell, separated by semicolons or white space."""
    return [Node(text, cell.line, cell.column) for text in _SEPARATOR.split(cell.value) if text]


def _pair(cell: Node, keys: tuple[str, str]) -> Node:
    """``A=B`` as a mapping of two *keys*; the second is missing when there is no equals sign."""
    left, _equals, right = cell.value.partition("=")
    entries = {key: (cell, Node(text, cell.line, cell.column)) for key, text in zip(keys, (left, right)) if text}
    return Node(entries, cell.line, cell.column)


def _from_cell(name: str, cell: Node) -> Node:
    """A cell in the form that YAML has for the field *name*."""
    if name == "disks":
        return Node([_pair(entry, ("source", "target")) for entry in _listed(cell)], cell.line, cell.column)
    if name == "services":
        return Node(_listed(cell), cell.line, cell.column)
    if name == "health_checks":
        checks = []
        for entry in _listed(cell):
            key = "port" if re.fullmatch("[0-9]+", entry.value) else "url"
            checks.append(Node({key: (entry, entry)}, cell.line, cell.column))
        return Node(checks, cell.line, cell.column)
    if name == "target":
        kind, colon, rest = cell.value.partition(":")
        value = Node(rest.strip(), cell.line, cell.column)
        if colon and kind in ("name", "create"):
            return Node({kind: (cell, value)}, cell.line, cell.column)
        if colon and kind == "tag":
            tags = {}
            for entry in _listed(value):
                key, _equals, text = entry.value.partition("=")
                tags[key] = (entry, Node(text, cell.line, cell.column))
            return Node({"tags": (cell, Node(tags, cell.line, cell.column))}, cell.line, cell.column)
    if name.startswith(PREFIXES):
        return Node(_literal(cell.value), cell.line, cell.column)
    return cell


def _literal(text: str) -> Any:
    """A number or a truth value for text that is one, as YAML reads it; else the text."""
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def plain(node: Node) -> Any:
    """The value of *node* without places."""
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(value) for key, (_key, value) in node.value.items()}
    return node.value


def _entry(
    document: _Document, node: Node, where: str, shapes: Mapping[str, dict[str, Any]]
) -> tuple[Entry | None, Node]:
    before = len(document.problems)
    values = document.mapping(node, where, FIELDS, REQUIRED, PREFIXES)
    name = _named(document, values["name"], where) if "name" in values else None
    where = name or where
    variables: dict[str, Any] = {}
    for key, value in values.items():
        if key in SET_BY:
            document.note(value, where, f"{key} is set by the field {SET_BY[key]}; give that instead")
        elif key.startswith(PREFIXES):
            variables[key] = plain(value)
    readers: Mapping[str, Callable[[Node, str], Mapping[str, Any]]] = {
        "address": lambda value, at: {"ansible_host": _address(document, value, at)},
        "port": lambda value, at: {"ansible_port": document.whole(value, at, 1, 65535)},
        "user": lambda value, at: {"ansible_user": document.text(value, at)},
        "target": lambda value, at: _target(document, value, at, shapes),
        "disks": lambda value, at: {"fleetlift_disks": _disks(document, value, at)},
        "wave": lambda value, at: {"fleetlift_wave": document.whole(value, at, 1, 9999)},
        "window": lambda value, at: {"fleetlift_window": _window(document, value, at)},
        "bandwidth_share": lambda value, at: {"fleetlift_bandwidth_share": document.whole(value, at, 1, 1000)},
        "services": lambda value, at: {
            "fleetlift_services": [document.text(item, at) for item in document.items(value, at)]
        },
        "health_checks": lambda value, at: {"fleetlift_health_checks": _checks(document, value, at)},
    }
    for key, read in readers.items():
        if key in values:
            variables.update(read(values[key], f"{where}.{key}"))
    if len(document.problems) > before or name is None:
        return None, node
    variables.setdefault("fleetlift_wave", 1)
    return Entry(name, variables["fleetlift_wave"], str(variables.get("fleetlift_target", "")), variables), node


def _named(document: _Document, node: Node, where: str) -> str | None:
    name = document.text(node, f"{where}.name")
    if name and not _NAME.fullmatch(name):
        document.note(node, f"{where}.name", f"{name!r} is not made of letters, digits, dots, hyphens, underscores")
        return None
    return name


def _address(document: _Document, node: Node, where: str) -> str | None:
    address = document.text(node, where)
    if address and (re.search(r"[\s/,]", address) or address.startswith("-")):
        document.note(node, where, f"{address!r} is not an address or a host name")
    return address


def _window(document: _Document, node: Node, where: str) -> str | None:
    text = document.text(node, where)
    if text:
        try:
            parse_window(text)
        except ValueError as error:
            document.note(node, where, str(error))
    return text


def _target(document: _Document, node: Node, where: str, shapes: Mapping[str, dict[str, Any]]) -> Mapping[str, Any]:
    """By id (text), or a mapping with one of ``name``, ``tags`` and ``create``."""
    kinds = ("name", "tags", "create")
    if not isinstance(node.value, dict):
        text = document.text(node, where)
        if text and not _INSTANCE.fullmatch(text):
            document.note(
                node, where, f"{text!r} is not an instance id (ins-…); for others say name:, tag: or create: first"
            )
        return {"fleetlift_target": text}
    values = document.mapping(node, where, kinds)
    if len(values) != 1:
        document.note(node, where, f"has to have exactly one of {', '.join(kinds)}")
        return {}
    ((kind, value),) = values.items()
    if kind == "name":
        return {"fleetlift_target_name": document.text(value, where)}
    if kind == "tags":
        return {"fleetlift_target_tags": _tags(document, value, where)}
    if isinstance(value.value, dict):
        return {"fleetlift_target_shape": _shape(document, value, where)}
    name = document.text(value, where)
    if name and name not in shapes:
        document.note(value, where, f"there is no shape {name!r}; there is {', '.join(shapes) or 'none'}")
    return {"fleetlift_target_shape": shapes.get(name or "", {})}


def _tags(document: _Document, node: Node, where: str) -> dict[str, str]:
    if not isinstance(node.value, dict) or not node.value:
        document.note(node, where, "has to be a mapping of tag keys to values")
        return {}
    return {key: document.text(value, f"{where}.{key}") or "" for key, (_key, value) in node.value.items()}


def _shapes(document: _Document, node: Node | None) -> dict[str, dict[str, Any]]:
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        document.note(node, "shapes", "has to be a mapping of names to shapes")
        return {}
    return {name: _shape(document, shape, f"shapes.{name}") for name, (_key, shape) in node.value.items()}


def _shape(document: _Document, node: Node, where: str) -> dict[str, Any]:
    values = document.mapping(node, where, list(SHAPE), [name for name, (_kind, required) in SHAPE.items() if required])
    shape: dict[str, Any] = {}
    for name, value in values.items():
        at, kind = f"{where}.{name}", SHAPE[name][0]
        if name == "tags":
            shape[name] = _tags(document, value, at)
        elif kind is list:
            shape[name] = [document.text(item, at) for item in document.items(value, at)]
        elif kind is int:
            shape[name] = document.whole(value, at, 0, 10000)
        else:
            shape[name] = document.text(value, at)
    if shape.get("charge_type") not in (None, *CHARGE_TYPES):
        document.note(values["charge_type"], f"{where}.charge_type", f"has to be one of {', '.join(CHARGE_TYPES)}")
    if shape.get("charge_type") == "PREPAID" and "period" not in shape:
        document.note(node, where, "period (in months) is missing, which PREPAID needs")
    return shape


def _disks(document: _Document, node: Node, where: str) -> list[dict[str, str | None]]:
    disks = []
    for item in document.items(node, where):
        values = document.mapping(item, where, ("source", "target"), ("source", "target"))
        disk = {key: document.text(value, f"{where}.{key}") for key, value in values.items()}
        if disk.get("target") and not _TARGET_DISK.fullmatch(disk["target"] or ""):
            document.note(
                values["target"], where, f"{disk['target']!r} is not system, data1, data2, … or the id of a disk"
            )
        disks.append(disk)
    for key in ("source", "target"):
        names = [disk.get(key) for disk in disks]
        for name in dict.fromkeys(names):
            if name and names.count(name) > 1:
                document.note(node, where, f"the {key} disk {name} is there twice")
    if not disks and isinstance(node.value, list):
        document.note(node, where, "is empty: without a disk there is nothing to move")
    return disks


def _checks(document: _Document, node: Node, where: str) -> list[dict[str, Any]]:
    checks = []
    for item in document.items(node, where):
        values = document.mapping(item, where, ("port", "url", "status"))
        check: dict[str, Any] = {}
        if ("port" in values) == ("url" in values):
            document.note(item, where, "a check has either a port or a url")
        if "port" in values:
            check["port"] = document.whole(values["port"], f"{where}.port", 1, 65535)
        if "url" in values:
            check["url"] = document.text(values["url"], f"{where}.url")
            if check["url"] and not re.match(r"https?://[^/\s]", check["url"]):
                document.note(values["url"], where, f"{check['url']!r} is not a port or a URL (http://… or https://…)")
        if "status" in values:
            check["status"] = document.whole(values["status"], f"{where}.status", 100, 599)
        checks.append(check)
    return checks


def _target_keys(entry: Entry) -> list[str]:
    """What must be one source's alone; a created target is by its nature."""
    tags = entry.variables.get("fleetlift_target_tags") or {}
    keys = [entry.target_id, str(entry.variables.get("fleetlift_target_name") or "")]
    return [key for key in (*keys, " ".join(f"{key}={value}" for key, value in sorted(tags.items()))) if key]


def _once(document: _Document, keys: Sequence[tuple[Any, Node, str]], message: str) -> None:
    """Note each key after the first of its kind; *message* is filled with the key and the first one's line."""
    first: dict[Any, Node] = {}
    for key, node, where in keys:
        if key in first:
            document.note(node, where, message.format(key, first[key].line))
        first.setdefault(key, node)
