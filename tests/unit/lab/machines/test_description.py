# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A description is read as a whole or refused with the file, the key and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lab.cli import DEMO
from lab.description import Description, load
from lab.errors import LabError

TESTS = Path(__file__).resolve().parents[3]


def demo() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    return value


def test_demo_names_the_machines_of_the_documentation() -> None:
    description = load(DEMO)
    assert [source.name for source in description.sources] == ["web1", "db1", "app1"]
    assert [source.workload for source in description.sources] == ["web", "database", "files"]
    assert [instance.instance_id for instance in description.instances] == [
        "ins-webtgt01",
        "ins-dbtgt001",
        "ins-apptgt01",
    ]
    assert [disk.disk_id for disk in description.instances[1].disks] == ["disk-dbsys001", "disk-dbdata01"]
    assert description.instances[0].public_address == "203.0.113.11"


@pytest.mark.parametrize("file", sorted(TESTS.glob("*lab.yml")), ids=lambda file: file.stem)
def test_every_lab_that_tests_are_run_in_can_be_read(file: Path) -> None:
    assert load(file).instances


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["sources", 0, "adress"], "10.96.0.9", "sources[0]: unknown key 'adress'"),
        (["sources", 0, "address"], "10.97.0.9", "sources[0]: address: 10.97.0.9 is not between"),
        (["sources", 0, "address"], "10.96.0.1", "sources[0]: address: 10.96.0.1 is not between"),
        (["sources", 0, "address"], "web", "sources[0]: address: 'web' is not an IPv4 address"),
        (["sources", 0, "address"], None, "sources[0]: address: is missing"),
        (["sources", 0, "name"], "Web_1", "sources[0]: name: 'Web_1' does not match"),
        (["sources", 0, "workload"], "mail", "sources[0]: workload: expected one of"),
        (["sources", 0, "disks"], [], "sources[0]: disks: the first disk must be mounted on /"),
        (["sources", 0, "disks", 0, "size_mib"], "2G", "disks[0]: size_mib: expected int"),
        (["sources", 0, "disks", 0, "size_mib"], True, "disks[0]: size_mib: expected int"),
        (["sources", 0, "disks", 0, "size_mib"], 10, "disks[0]: size_mib: a disk needs at least 512 MiB"),
        (["sources", 0, "disks", 0, "filesystem"], "ntfs", "filesystem: expected one of ext4, xfs, btrfs"),
        (["sources", 0, "disks", 0, "mount"], "/a b", "mount: '/a b' does not match"),
        (["sources", 1, "disks", 1, "mount"], "/", "disks: two disks have one mount point"),
        (["sources", 1, "disks", 1, "device"], "sdc", "disks: devices must be sda, sdb"),
        (["sources", 1, "name"], "web1", "the name or id 'web1' is used twice"),
        (["sources", 1, "address"], "10.96.0.11", "the address '10.96.0.11' is used twice"),
        (["instances", 0, "id"], "i-1", "instances[0]: id: 'i-1' does not match"),
        (["instances", 0, "bandwidth"], -1, "instances[0]: bandwidth: must not be negative"),
        (["instances", 0, "image"], "none", "instances[0]: state: an instance without an image cannot run"),
        (["instances", 0, "system_disk"], "disk-1", "instances[0]: system_disk: expected a mapping"),
        (["instances", 0, "security_groups"], ["sg-other"], "there is no security group 'sg-other'"),
        (["instances", 1, "system_disk", "id"], "disk-websys01", "the disk id 'disk-websys01' is used twice"),
        (["security_groups", 0, "ingress", 0, "port"], "http", "ingress[0]: port: 'http' does not match"),
        (["security_groups", 0, "ingress", 0, "cidr"], "10.0.0.1/8", "ingress[0]: cidr:"),
        (["sources"], {}, "sources: expected list"),
    ],
)
def test_mistake_is_named_with_its_key(path: list[str | int], value: object, message: str) -> None:
    whole = demo()
    place: Any = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(LabError) as caught:
        Description.from_dict("lab.yml", whole)
    assert message in caught.value.cause
    assert caught.value.cause.startswith("lab.yml: ")
    assert caught.value.action


def test_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot read the lab description .*nothing.yml"):
        load(tmp_path / "nothing.yml")
    broken = tmp_path / "broken.yml"
    broken.write_text("sources: [")
    with pytest.raises(LabError, match=r"broken\.yml is not YAML"):
        load(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="is not YAML"):
        load(broken)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["sources", "instances", "security_groups", "region", "name", "disks", "id"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(values)
def test_any_value_is_read_or_refused(value: object) -> None:
    try:
        Description.from_dict("lab.yml", value)
    except LabError as error:
        assert error.action
