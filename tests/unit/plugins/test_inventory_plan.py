# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan as an inventory: hosts, variables and groups, or nothing at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import ansible_collections.fleetlift.cvm as cvm
import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.journal import journal_path, with_phase, write_journal

COLLECTIONS = Path(next(iter(cvm.__path__))).parents[2]
EXAMPLE = Path(__file__).parents[3] / "inventories" / "example-fleet" / "fleet.fleetlift.yml"
PLAN = """\
plugin: fleetlift.cvm.plan
state_dir: {state}
sources:
  - {{name: web1, address: 192.0.2.11, target: ins-web1, disks: [{{source: sda, target: system}}]}}
  - {{name: web2, address: 192.0.2.12, target: ins-web2, disks: [{{source: sda, target: system}}], wave: 2}}
  - {{name: db1, address: 192.0.2.13, target: {{name: db}}, disks: [{{source: sda, target: system}}], services: [pg]}}
"""


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def write(tmp_path, state, more="", plan=PLAN):
    path = tmp_path / "my.fleetlift.yml"
    path.write_text(plan.format(state=state) + more)
    return path


def read(path):
    """Variables of the hosts, members of the groups, and what was said."""
    command = [Path(sys.executable).parent / "ansible-inventory", "-i", path, "--list"]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Ansible marks what is no template.
    listing = json.loads(done.stdout, object_hook=lambda value: value.get("__ansible_unsafe", value))
    variables = listing.pop("_meta")["hostvars"]
    return variables, {name: group.get("hosts", []) for name, group in listing.items()}, done.stderr


def note(state, source, target, **phase):
    path = journal_path(str(state / "journal"), source)
    write_journal(path, with_phase(None, source=source, target=target, data={}, now=time.time(), **phase))


def test_plan_gives_hosts_their_variables_and_groups(tmp_path, state):
    variables, groups, _ = read(write(tmp_path, state))
    assert groups["sources"] == ["web1", "web2", "db1"]
    assert (groups["wave_1"], groups["wave_2"]) == (["web1", "db1"], ["web2"])
    assert groups["state_new"] == ["web1", "web2", "db1"]
    assert (variables["web2"]["ansible_host"], variables["web2"]["fleetlift_target"]) == ("192.0.2.12", "ins-web2")
    assert variables["web2"]["fleetlift_wave"] == 2


def test_journals_sort_the_sources_by_state(tmp_path, state):
    note(state, "web1", "ins-web1", phase="transfer", status="failed")
    note(state, "web2", "ins-web2", phase="transfer", status="ok")
    note(state, "db1", "ins-whatever", phase="landing", status="started")
    _, groups, _ = read(write(tmp_path, state))
    assert groups["state_failed"] == ["web1"]
    assert groups["state_transfer"] == ["web2"]
    assert groups["state_started"] == ["db1"]


def test_journal_of_another_target_is_of_another_migration(tmp_path, state):
    note(state, "web1", "ins-other", phase="finalize", status="ok")
    _, groups, _ = read(write(tmp_path, state))
    assert "web1" in groups["state_new"]


def test_journal_that_cannot_be_read_does_not_hide_the_source(tmp_path, state):
    note(state, "web1", "ins-web1", phase="transfer", status="ok")
    journal_path(str(state / "journal"), "web1").write_text("{")
    _, groups, _ = read(write(tmp_path, state))
    assert groups["state_unknown"] == ["web1"]


def test_constructed_features_see_the_plans_variables(tmp_path, state):
    more = """\
compose: {where: "ansible_host ~ '/' ~ fleetlift_state"}
groups: {databases: "'pg' in (fleetlift_services | default([]))"}
keyed_groups: [{prefix: wave_of, key: fleetlift_wave | string}]
"""
    variables, groups, _ = read(write(tmp_path, state, more))
    assert variables["db1"]["where"] == "192.0.2.13/new"
    assert groups["databases"] == ["db1"]
    assert groups["wave_of_2"] == ["web2"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  - {name: web3}\n", "address is missing"),
        # Only the second and third host have this group's rule fail: the first must not stay.
        ("strict: true\ngroups: {databases: fleetlift_services | length > 0}\n", "Could not add host"),
        ("plan: other.csv\n", "one of 'plan' and 'sources'"),
    ],
)
def test_plan_with_a_mistake_gives_no_host_at_all(tmp_path, state, more, said):
    variables, groups, why = read(write(tmp_path, state, more))
    assert said in why
    assert not variables
    assert set(groups) == {"all"}


def test_plan_file_that_is_not_there_is_named(tmp_path, state):
    path = write(tmp_path, state, plan="plugin: fleetlift.cvm.plan\nplan: gone.csv\n")
    _, _, why = read(path)
    assert "PLAN_UNREADABLE" in why
    assert "gone.csv" in why


def test_values_of_a_plan_are_no_templates(tmp_path, state):
    path = write(tmp_path, state)
    path.write_text(path.read_text().replace("}\n", ", fleetlift_note: '{{ 1 + 1 }}'}\n"))
    variables, _, _ = read(path)
    assert variables["web1"]["fleetlift_note"] == "{{ 1 + 1 }}"


def test_example_is_a_plan():
    variables, groups, _ = read(EXAMPLE)
    assert groups["databases"] == ["db1"]
    assert variables["web1"]["fleetlift_target_shape"]["instance_type"] == "S5.MEDIUM4"
