# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: plan
short_description: The plan of a fleet as an inventory
version_added: 0.1.0
description:
  - Reads which source goes to which target from a CSV or YAML file, and makes hosts with the variables that the roles
    read, in the group C(sources), a group for each wave (C(wave_1)) and one for what the journals say (C(state_new),
    C(state_failed), C(state_held), C(state_started), or C(state_) and the last phase that ended well, such
    as C(state_transfer)).
  - So C(--limit state_failed) tries again what has failed, and C(--limit wave_2) is the second wave.
  - A plan with a mistake gives no host at all. Every mistake is named with its file, line and column.
  - Values of a plan are taken as they are written; they are no templates. Use C(group_vars) for those.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - ansible.builtin.constructed
options:
  plugin:
    description: Marks the file as one for this plugin. The file's name ends in C(fleetlift.yml) or C(fleetlift.yaml).
    type: str
    required: true
    choices: [fleetlift.cvm.plan, plan]
  plan:
    description:
      - The file with the plan, relative to this one. Its name ends in C(.csv), C(.yml) or C(.yaml).
      - Its fields are explained in C(docs/fleet.md) of the collection.
    type: str
  sources:
    description:
      - The plan itself, in place of O(plan).
    type: list
    elements: dict
  shapes:
    description:
      - Named shapes of instances to create, for targets of the form C(create:NAME). Their keys are the options of
        the module C(target_instance).
    type: dict
    default: {}
  state_dir:
    description:
      - Where the controller keeps the journals; the same as the variable C(fleetlift_state_dir).
      - Without it and without the environment variable, C(~/.local/state/fleetlift).
    type: path
    env:
      - name: FLEETLIFT_STATE_DIR
"""

EXAMPLES = r"""
# fleet.fleetlift.yml: the plan is in a CSV file beside it
plugin: fleetlift.cvm.plan
plan: fleet.csv
keyed_groups:
  - prefix: target
    key: fleetlift_target
---
# The plan itself, with a target that is created
plugin: fleetlift.cvm.plan
shapes:
  web:
    zone: ap-guangzhou-3
    instance_type: S5.MEDIUM4
    image_id: img-xxxxxxxx
    security_groups: [sg-xxxxxxxx]
sources:
  - name: web1
    address: 192.0.2.11
    target: {create: web}
    disks:
      - {source: /dev/sda, target: system}
    wave: 1
    window: "22:00-05:00 Europe/Berlin"
    services: [nginx]
    health_checks: [{port: 22}, {url: "http://203.0.113.11/"}]
compose:
  ansible_user: "'root'"
groups:
  large: fleetlift_disks | length > 1
"""

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.journal import journal_path, read_journal
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan_document import (
    Entry,
    Node,
    Problem,
    document_entries,
    plan_entries,
    table_entries,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan_state import state_of
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.plan_text import read_csv, read_yaml

SUFFIXES = ("fleetlift.yml", "fleetlift.yaml")
GROUP = "sources"


class InventoryModule(BaseInventoryPlugin, Constructable):
    NAME = "fleetlift.cvm.plan"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(SUFFIXES)

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        problems: list[Problem] = []
        entries = self._entries(Path(path), problems)
        if problems:
            raise AnsibleParserError(plan_invalid(problems))
        # On an inventory of its own first: an expression that fails must not leave half of the fleet behind.
        for whole in (InventoryData(), inventory):
            self.inventory = whole
            for entry in entries:
                self._add(entry)

    def _entries(self, path: Path, problems: list[Problem]) -> list[Entry]:
        own = read_yaml(read_file(path), str(path), problems)
        shapes = _part(own, "shapes")
        inline, named = _part(own, "sources"), self.get_option("plan")
        if (inline is None) == (not named):
            at = inline or Node(None, 1, 1)
            problems.append(Problem(str(path), at.line, at.column, "", "has to have one of 'plan' and 'sources'"))
        if problems:
            return []
        if inline is not None:
            return plan_entries(inline, shapes, str(path), problems)
        file = path.parent / os.path.expanduser(named)
        if file.suffix == ".csv":
            return table_entries(read_csv(read_file(file), str(file), problems), shapes, str(file), problems)
        return document_entries(read_yaml(read_file(file), str(file), problems), shapes, str(file), problems)

    def _add(self, entry: Entry) -> None:
        state = f"state_{self._state(entry)}"
        for group in (GROUP, f"wave_{entry.wave}", state):
            self.inventory.add_host(entry.name, group=self.inventory.add_group(group))
        for name, value in entry.variables.items():
            self.inventory.set_variable(entry.name, name, value)
        variables = {**entry.variables, "fleetlift_state": state.partition("_")[2]}
        self.inventory.set_variable(entry.name, "fleetlift_state", variables["fleetlift_state"])
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, entry.name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, entry.name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, entry.name, strict=strict)

    def _state(self, entry: Entry) -> str:
        directory = self.get_option("state_dir") or os.path.expanduser("~/.local/state/fleetlift")
        try:
            journal = read_journal(journal_path(os.path.join(directory, "journal"), entry.name))
        except Refusal as refusal:
            self.display.warning(str(refusal))
            return "unknown"
        return state_of(journal, entry.target_id)


def plan_invalid(problems: list[Problem]) -> str:
    """The message about a plan with *problems*, in the order in which they stand in it."""
    lines = [str(problem) for problem in sorted(problems, key=lambda each: (each.file, each.line, each.column))]
    count = f"{len(lines)} mistakes" if len(lines) > 1 else "a mistake"
    return "\n".join(
        [f"PLAN_INVALID: the plan has {count}, and nothing of it is used. Next: correct what is listed.", *lines]
    )


def read_file(path: Path) -> str:
    """The text of *path*. Raises ``AnsibleParserError`` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnsibleParserError(
            f"PLAN_UNREADABLE: {path} cannot be read: {error}. Next: name a text file in UTF-8 that is there."
        ) from error


def _part(document: Node | None, name: str) -> Node | None:
    if document is None or not isinstance(document.value, dict) or name not in document.value:
        return None
    value: Any = document.value[name][1]
    return value if isinstance(value, Node) and value.value is not None else None
