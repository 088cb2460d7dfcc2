# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan's files: what they become, and where each mistake is said to be."""

from __future__ import annotations

import csv
import io

import pytest
import yaml
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan_document import (
    FIELDS,
    Node,
    document_entries,
    plain,
    table_entries,
)
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.plan_text import read_csv, read_yaml
from hypothesis import given
from hypothesis import strategies as st

SHAPE = {"zone": "z", "instance_type": "S5.SMALL1", "image_id": "img-12345678"}
WEB = """\
sources:
  - name: web1
    address: 192.0.2.11
    target: ins-web1
    disks: [{source: /dev/sda, target: system}]
"""
MORE = WEB.partition("\n")[2]


def from_yaml(text):
    problems = []
    entries = document_entries(read_yaml(text, "plan.yml", problems), None, "plan.yml", problems)
    return entries, [str(problem) for problem in problems]


def from_csv(text, shapes=None):
    problems = []
    node = read_yaml(yaml.safe_dump(shapes), "shapes", problems) if shapes else None
    entries = table_entries(read_csv(text, "plan.csv", problems), node, "plan.csv", problems)
    return entries, [str(problem) for problem in problems]


def test_csv_and_yaml_say_the_same():
    table, none = from_csv(
        "name,address,port,user,target,disks,wave,window,bandwidth_share,services,health_checks,fleetlift_max_downtime\n"
        "db1,192.0.2.12,2222,admin,name:db1-cvm,/dev/sda=system; S3Z8=data1,2,22:00-05:00 Europe/Berlin,4,"
        '"myapp;postgresql","22 5432;https://db1/",60\n'
    )
    assert not none
    document, none = from_yaml("""\
sources:
  - name: db1
    address: 192.0.2.12
    port: 2222
    user: admin
    target: {name: db1-cvm}
    disks: [{source: /dev/sda, target: system}, {source: S3Z8, target: data1}]
    wave: 2
    window: 22:00-05:00 Europe/Berlin
    bandwidth_share: 4
    services: [myapp, postgresql]
    health_checks: [{port: 22}, {port: 5432}, {url: "https://db1/"}]
    fleetlift_max_downtime: 60
""")
    assert not none
    assert table == document
    (entry,) = table
    assert (entry.name, entry.wave, entry.target_id) == ("db1", 2, "")
    assert entry.variables == {
        "ansible_host": "192.0.2.12",
        "ansible_port": 2222,
        "ansible_user": "admin",
        "fleetlift_target_name": "db1-cvm",
        "fleetlift_disks": [{"source": "/dev/sda", "target": "system"}, {"source": "S3Z8", "target": "data1"}],
        "fleetlift_wave": 2,
        "fleetlift_window": "22:00-05:00 Europe/Berlin",
        "fleetlift_bandwidth_share": 4,
        "fleetlift_services": ["myapp", "postgresql"],
        "fleetlift_health_checks": [{"port": 22}, {"port": 5432}, {"url": "https://db1/"}],
        "fleetlift_max_downtime": 60,
    }


@pytest.mark.parametrize(
    ("cell", "variables"),
    [
        ("ins-web1", {"fleetlift_target": "ins-web1"}),
        ("name:web1 cvm", {"fleetlift_target_name": "web1 cvm"}),
        ("tag:role=web;env=prod", {"fleetlift_target_tags": {"role": "web", "env": "prod"}}),
        ("create:small", {"fleetlift_target_shape": SHAPE}),
    ],
)
def test_target_is_named_by_id_name_tag_or_shape(cell, variables):
    (entry,), problems = from_csv(f"name,address,target,disks\nw,192.0.2.1,{cell},/dev/sda=system\n", {"small": SHAPE})
    assert not problems
    assert entry.variables.items() >= variables.items()
    assert entry.target_id == variables.get("fleetlift_target", "")


def test_every_mistake_is_named_with_its_line_and_column_at_once():
    _entries, problems = from_yaml("""\
sources:
  - name: a b
    address: 192.0.2.11
    target: foo
    disks: []
  - name: web2
    adress: 192.0.2.12
    wave: zero
    target: {create: large}
    disks: [{source: /dev/sda, target: sda}]
""")
    assert [problem.split(": ", 1)[0] for problem in problems] == [
        "plan.yml:2:11",
        "plan.yml:4:13",
        "plan.yml:5:12",
        "plan.yml:7:5",
        "plan.yml:6:5",
        "plan.yml:9:22",
        "plan.yml:10:40",
        "plan.yml:8:11",
    ]


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        ("    wave: 0\n", "plan.yml:6:11", "from 1 to 9999"),
        ("    wave: true\n", "plan.yml:6:11", "whole number"),
        ("    window: 25:00-26:00\n", "plan.yml:6:13", "time of day"),
        ("    bandwidth_share: 0\n", "plan.yml:6:22", "whole number"),
        ("    services: nginx\n", "plan.yml:6:15", "has to be a list"),
        ("    health_checks: [{port: 22, url: x}]\n", "plan.yml:6:21", "either a port or a url"),
        ("    health_checks: [{url: ftp://x}]\n", "plan.yml:6:27", "not a port or a URL"),
        ("    fleetlift_target: ins-other\n", "plan.yml:6:23", "set by the field target"),
        ("    name: web2\n", "plan.yml:6:5", "given twice"),
        ("  - web3\n", "plan.yml:6:5", "mapping"),
        (
            MORE.replace("ins-web1", "ins-web2").replace(".11", ".12"),
            "plan.yml:6:5",
            "name of line 2",
        ),
        (MORE.replace("web1", "web2"), "plan.yml:6:5", "address of line 2"),
        (
            MORE.replace("name: web1", "name: w").replace(".11", ".12"),
            "plan.yml:6:5",
            "one of line 2",
        ),
        ("    a: [\n", "plan.yml:7:1", "not YAML"),
        ("    services: &s [*s]\n", "plan.yml:6:15", "contains itself"),
        ("shapes: {web: {zone: z}}\n", "plan.yml:6:15", "image_id is missing"),
        ("shapes: {w: {zone: z, instance_type: t, image_id: i, charge_type: PREPAID}}\n", "plan.yml:6:13", "period"),
        ("other: 1\n", "plan.yml:6:1", "not known here"),
    ],
)
def test_mistake_in_yaml_is_found_where_it_is(change, place, said):
    _entries, problems = from_yaml(WEB + change)
    assert any(problem.startswith(place + ":") and said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", "plan.csv:1:1", "names the columns"),
        ("name,adress,target,disks\n", "plan.csv:1:6", "'adress' is not known"),
        ("name,address,target\n", "plan.csv:1:1", "disks is missing"),
        ("name,address,target,disks,name\n", "plan.csv:1:27", "there twice"),
        ("name,address,target,disks\nw,1.2.3.4,ins-a\n", "plan.csv:2:11", "3 cells"),
        ("name,address,target,disks\nw,1.2.3.4,ins-a,/dev/sda=system,x\n", "plan.csv:2:33", "5 cells"),
        ("name,address,target,disks\nw,1.2.3.4,web,/dev/sda=system\n", "plan.csv:2:11", "instance id"),
        ('name,address,target,disks\n"w","1.2.3.4",ins-a,"/dev/sda"\n', "plan.csv:2:21", "target is missing"),
        (
            'name,address,target,disks\n\n# later\nw,1.2 3.4,ins-a,"/dev/sda\n=system"\n',
            "plan.csv:4:3",
            "not an address",
        ),
        ('name,address,target,disks\nw,1.2.3.4,ins-a,"/dev/sda"x\n', "plan.csv:2:1", "not CSV"),
        ("name,address,target,disks\nw,1.2.3.4,create:web,/dev/sda=system\n", "plan.csv:2:11", "no shape 'web'"),
    ],
)
def test_mistake_in_csv_is_found_where_it_is(text, place, said):
    entries, problems = from_csv(text)
    assert not entries
    assert any(problem.startswith(place + ":") and said in problem for problem in problems), problems


CELLS = st.text(st.sampled_from('ab ,"\n;#é'), max_size=6)


@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5))
def test_every_cell_of_a_csv_is_found_where_it_stands(records):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).writerows(records)
    text, problems = out.getvalue(), []
    lines = text.split("\n")
    for record in read_csv(text, "plan.csv", problems):
        for cell in record:
            rest = "\n".join([lines[cell.line - 1][cell.column - 1 :], *lines[cell.line :]])
            assert (next(csv.reader(io.StringIO(rest, newline=""))) or [""])[0].strip() == cell.value
    assert not problems


@given(st.text(max_size=200))
def test_any_text_is_a_plan_or_has_problems_with_places(text):
    for read, lines in ((from_yaml, text), (from_csv, text)):
        entries, problems = read(lines)
        assert problems or entries
        assert all(problem.startswith("plan.") for problem in problems)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(VALUES)
def test_document_keeps_its_values(value):
    problems = []
    node = read_yaml(yaml.safe_dump(value), "plan.yml", problems)
    assert not problems
    assert plain(node) == value


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_entry_of_any_values_is_read_or_refused(values):
    entries, problems = from_yaml(yaml.safe_dump({"sources": [values]}))
    assert bool(entries) != bool(problems)
    assert all(isinstance(entry.variables, dict) for entry in entries)


def test_node_of_nothing_is_a_plan_without_sources():
    problems = []
    assert not document_entries(Node({}, 1, 1), None, "plan.yml", problems)
    assert [str(problem) for problem in problems] == ["plan.yml:1:1: sources is missing"]
