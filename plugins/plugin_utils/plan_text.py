# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""YAML and CSV as values that know the line and column they were written at."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import yaml

from ..module_utils.plan_document import Node, Problem


def read_yaml(text: str, file: str, problems: list[Problem]) -> Node | None:
    """The document in *text*; None, with a problem noted, when it is not YAML. A key given twice is a problem, too."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problems.append(Problem(file, line, column, "", f"not YAML: {error.problem or error.context}"))
        return None
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(Problem(file, 1, 1, "", f"not YAML: {str(error).splitlines()[0]}"))
        return None
    if root is None:
        return Node(None, 1, 1)
    return _placed(root, file, problems, ())


def _placed(node: yaml.Node, file: str, problems: list[Problem], above: tuple[yaml.Node, ...]) -> Node:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    if node in above:
        problems.append(Problem(file, line, column, "", "an alias that contains itself"))
        return Node(None, line, column)
    if isinstance(node, yaml.SequenceNode):
        return Node([_placed(item, file, problems, (*above, node)) for item in node.value], line, column)
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            key = _placed(key_node, file, problems, (*above, node))
            if isinstance(key.value, (list, dict)):
                problems.append(Problem(file, key.line, key.column, "", "a key is a word, not a list or a mapping"))
            elif str(key.value) in entries:
                problems.append(Problem(file, key.line, key.column, "", f"the key {key.value!r} is given twice"))
            else:
                entries[str(key.value)] = (key, _placed(value_node, file, problems, (*above, node)))
        return Node(entries, line, column)
    return Node(_scalar(node, file, problems), line, column)


def _scalar(node: yaml.Node, file: str, problems: list[Problem]) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        text = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        mark = node.start_mark
        problems.append(Problem(file, mark.line + 1, mark.column + 1, "", f"a value that cannot be read: {text}"))
        return None


def scalar_of(text: str) -> Any:
    """*text* as YAML would read it when it is a number or a truth value, else *text* itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def read_csv(text: str, file: str, problems: list[Problem]) -> list[list[Node]]:
    """The records in *text*, each a list of text nodes; empty records and those that begin with ``#`` are left out."""
    places = _cell_places(text)
    records: list[list[Node]] = []
    try:
        for values, cells in zip(csv.reader(io.StringIO(text, newline=""), strict=True), places):
            if not values or all(not value.strip() for value in values) or values[0].lstrip().startswith("#"):
                continue
            records.append([Node(value.strip(), *place) for value, place in zip(values, cells)])
    except csv.Error as error:
        line = records[-1][0].line + 1 if records else 1
        problems.append(Problem(file, line, 1, "", f"not CSV: {error}"))
    return records


def _cell_places(text: str) -> Iterator[list[tuple[int, int]]]:
    """Line and column of each cell of each record, by the rules of :mod:`csv` (RFC 4180, section 2)."""
    line, cells, column, quoted, start = 1, [(1, 1)], 1, False, True
    characters = text.replace("\r\n", "\n").replace("\r", "\n")
    for character in characters:
        if character == '"' and (quoted or start):
            # A doubled quote closes and opens again.
            quoted, start = not quoted, quoted
        elif character == "\n":
            line, column = line + 1, 0
            if not quoted:
                yield cells
                cells, start = [(line, 1)], True
        elif character == "," and not quoted:
            cells.append((line, column + 1))
            start = True
        else:
            start = False
        column += 1
    yield cells
