# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan of one source: what is paired, and what is refused before anything is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Disk, Operation, Target
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import (
    Finding,
    by_severity,
    finding_from,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.plan import assess_source, assessment_of, source_disks
from ansible_collections.fleetlift.cvm.plugins.module_utils.security_groups import Rule
from hypothesis import example, given
from hypothesis import strategies as st

GIB = 1 << 30


def disk(name, size=2 * GIB, **fields):
    return {"path": f"/dev/{name}", "name": name, "size": size, "serial": f"SER-{name}", **fields}


SYSTEM = disk("sda", system=True, mounted=True, filesystems=[{"type": "ext4", "mountpoint": "/"}])
DATA = disk("sdb", mounted=True, filesystems=[{"type": "xfs", "mountpoint": "/srv"}])
SPARE = disk("sdc", mounted=False)
FACTS = {"architecture": "x86_64", "disks": [SYSTEM, DATA]}
OPEN = (
    Rule("sg-1", 0, "ACCEPT", "TCP", "22,80,443", "0.0.0.0/0"),
    Rule("sg-1", 1, "DROP", "ALL", "ALL", "0.0.0.0/0"),
)
TARGET = Target(
    instance_id="ins-dbtgt001",
    state="RUNNING",
    restrict_state="NORMAL",
    latest_operation=Operation("RunInstances", "SUCCESS"),
    private_addresses=("10.97.0.12",),
    public_addresses=("203.0.113.12",),
    disks=(
        Disk("disk-dbsys001", "system", 20, 0, "ATTACHED"),
        Disk("disk-dbdata01", "data", 10, 1, "ATTACHED"),
        Disk("disk-dbdata02", "data", 10, 2, "ATTACHED"),
    ),
    security_groups=("sg-1",),
    ingress=OPEN,
)
MAPPING = [{"source": "/dev/sda", "target": "system"}, {"source": "SER-sdb", "target": "data1"}]


def plan(facts=FACTS, target=TARGET, mapping=MAPPING, **options):
    options = {"source": "db1", "targets_of_all": {"db1": target.instance_id}, **options}
    return assess_source(facts=facts, target=target, mapping=mapping, **options)


def blockers(*arguments, **options):
    return [finding.code for finding in plan(*arguments, **options).blockers]


def test_good_plan_pairs_the_disks_and_says_that_the_address_stays():
    assessment = plan()
    assert [pair.record() for pair in assessment.pairs] == [
        {
            "id": "d0",
            "device": "/dev/sda",
            "source_serial": "SER-sda",
            "size": 2 * GIB,
            "target_serial": "disk-dbsys001",
            "target_size": 20 * GIB,
        },
        {
            "id": "d1",
            "device": "/dev/sdb",
            "source_serial": "SER-sdb",
            "size": 2 * GIB,
            "target_serial": "disk-dbdata01",
            "target_size": 10 * GIB,
        },
    ]
    assert [(finding.code, finding.severity) for finding in assessment.findings] == [("PUBLIC_IP_STAYS", "note")]


def test_pairs_keep_their_names_when_the_mapping_is_reordered():
    assert plan(mapping=MAPPING[::-1]).pairs == plan().pairs


def test_disk_id_names_a_targets_disk_too():
    mapping = [MAPPING[0], {"source": "sdb", "target": "disk-dbdata02"}]
    assert [pair.target.disk_id for pair in plan(mapping=mapping).pairs] == ["disk-dbsys001", "disk-dbdata02"]


def test_two_sources_with_one_target_are_refused_and_both_named():
    everyone = {"db1": "ins-dbtgt001", "web1": "ins-dbtgt001", "app1": "ins-apptgt01"}
    [finding] = plan(targets_of_all=everyone).blockers
    assert finding.code == "TARGET_SHARED"
    assert finding.evidence["sources"] == ["db1", "web1"]


@pytest.mark.parametrize(
    ("mapping", "code"),
    [
        (MAPPING[:1], "DISK_UNMAPPED"),
        ([*MAPPING, {"source": "/dev/sdz", "target": "data2"}], "DISK_UNKNOWN"),
        ([MAPPING[0], {"source": "/dev/sdb", "target": "data7"}], "TARGET_DISK_UNKNOWN"),
        ([*MAPPING, {"source": "/dev/sdb", "target": "data2"}], "DISK_MAPPED_TWICE"),
        (
            [{"source": "/dev/sdb", "target": "system"}, {"source": "/dev/sda", "target": "data1"}],
            "SYSTEM_DISK_NOT_ON_SYSTEM_DISK",
        ),
    ],
)
def test_bad_mapping_is_refused(mapping, code):
    assert code in blockers(mapping=mapping)


def test_one_target_disk_for_two_source_disks_is_refused():
    facts = {**FACTS, "disks": [SYSTEM, DATA, SPARE]}
    assert blockers(facts=facts, mapping=[*MAPPING, {"source": "sdc", "target": "disk-dbdata01"}]) == [
        "DISK_MAPPED_TWICE"
    ]


def test_serial_of_two_disks_names_neither():
    facts = {**FACTS, "disks": [SYSTEM, DATA, {**SPARE, "serial": "SER-sdb"}]}
    assert "DISK_AMBIGUOUS" in blockers(facts=facts)


def test_unmapped_disk_without_a_mount_is_only_noted():
    assessment = plan(facts={**FACTS, "disks": [SYSTEM, DATA, SPARE]})
    assert not assessment.blockers
    assert "DISK_UNMAPPED_UNUSED" in [finding.code for finding in assessment.findings]
    assert assessment.left_behind == ()


def test_disks_in_use_that_stay_behind_are_named_for_the_agent():
    assert plan(mapping=MAPPING[:1]).left_behind == (), "nobody has accepted that"
    facts = {**FACTS, "disks": [SYSTEM, SPARE, DATA]}
    accepting = {"mapping": MAPPING[:1], "accepted": {"DISK_UNMAPPED": "scratch"}}
    assert plan(**accepting).left_behind == ("/dev/sdb",)
    # What comes and goes is left behind also when it is not mounted at this moment.
    assert plan(facts=facts, **accepting).left_behind == ("/dev/sdb", "/dev/sdc")


def test_unmapped_mounted_disk_says_where_it_is_mounted_and_what_would_have_happened():
    [finding] = plan(mapping=MAPPING[:1]).blockers
    assert "/srv" in finding.cause and "system disk" in finding.cause


@given(st.integers(min_value=1, max_value=40 * GIB))
@example(20 * GIB)
@example(20 * GIB + 1)
def test_a_disk_is_paired_exactly_when_its_target_is_not_smaller(size):
    facts = {**FACTS, "disks": [{**SYSTEM, "size": size}, DATA]}
    found = [finding for finding in plan(facts=facts).blockers if finding.code == "TARGET_DISK_SMALLER"]
    assert bool(found) == (size > 20 * GIB)
    for finding in found:
        needed = int(finding.action.partition("at least ")[2].partition(" GiB")[0])
        assert (needed - 1) * GIB < size <= needed * GIB


def test_disk_of_other_sectors_is_refused():
    facts = {**FACTS, "disks": [{**SYSTEM, "logical_block_size": 4096}, DATA]}
    assert blockers(facts=facts) == ["SECTOR_SIZE_MISMATCH"]


def test_architectures_must_agree():
    assert "ARCHITECTURE_MISMATCH" in blockers(facts={**FACTS, "architecture": "aarch64"})
    assert blockers(facts={**FACTS, "architecture": "i686"}) == []
    assert "TARGET_ARM" in blockers(target=replace(TARGET, architecture="aarch64"))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"restrict_state": "EXPIRED"}, "TARGET_EXPIRED"),
        ({"restrict_state": "PROTECTIVELY_ISOLATED"}, "TARGET_ISOLATED"),
        ({"state": "SERVICE_LIVE_MIGRATE"}, "TARGET_IN_LIVE_MIGRATION"),
        ({"state": "TERMINATING"}, "TARGET_STATE"),
        ({"state": "REBOOTING", "latest_operation": Operation("RebootInstances", "OPERATING")}, "TARGET_BUSY"),
        ({"latest_operation": Operation("ResizeInstanceDisks", "OPERATING")}, "TARGET_BUSY"),
        ({"state": "STOPPED", "stop_charging_mode": "STOP_CHARGING"}, "TARGET_STOPPED_NO_CHARGE"),
        ({"disks": (Disk("disk-dbsys001", "system", 20, 0, "ROLLBACKING"), *TARGET.disks[1:])}, "TARGET_DISK_BUSY"),
        ({"private_addresses": (), "public_addresses": ()}, "TARGET_NO_ADDRESS"),
    ],
)
def test_target_that_cannot_be_used_is_refused(fields, code):
    assert blockers(target=replace(TARGET, **fields)) == [code]


@pytest.mark.parametrize(
    ("state", "operation"),
    [
        ("RESCUE_MODE", Operation("EnterRescueMode", "SUCCESS")),
        ("ENTER_RESCUE_MODE", Operation("EnterRescueMode", "OPERATING")),
        ("STARTING", Operation("StartInstances", "OPERATING")),
        ("STOPPED", Operation("ExitRescueMode", "SUCCESS")),
    ],
)
def test_what_an_interrupted_run_left_behind_is_no_obstacle(state, operation):
    assert blockers(target=replace(TARGET, state=state, latest_operation=operation)) == []


def test_closed_port_names_the_rule_and_the_port():
    rules = (Rule("sg-1", 0, "DROP", "TCP", "443", "0.0.0.0/0"), *OPEN)
    [finding] = plan(target=replace(TARGET, ingress=rules)).blockers
    assert (finding.code, finding.evidence["port"]) == ("PORT_CLOSED", 443)
    assert finding.evidence["rule"]["index"] == 0


def test_port_without_any_rule_is_closed_by_default():
    codes = blockers(target=replace(TARGET, ingress=()))
    assert codes == ["PORT_CLOSED", "PORT_CLOSED"]


def test_another_port_needs_no_443_but_says_what_the_vendors_tool_would_need():
    rules = (Rule("sg-1", 0, "ACCEPT", "TCP", "22,8443", "0.0.0.0/0"),)
    assessment = plan(target=replace(TARGET, ingress=rules), port=8443)
    assert assessment.blockers == []
    notes = [finding.evidence["port"] for finding in assessment.findings if finding.code == "VENDOR_PORT_CLOSED"]
    assert notes == [80, 443]


def test_rule_for_some_addresses_is_certain_only_with_the_sources_address():
    rules = (
        Rule("sg-1", 0, "ACCEPT", "TCP", "443", "198.51.100.0/24"),
        Rule("sg-1", 1, "ACCEPT", "TCP", "22", "0.0.0.0/0"),
    )
    target = replace(TARGET, ingress=rules)
    unknown = [finding for finding in plan(target=target).findings if finding.code == "PORT_UNKNOWN"]
    assert [finding.severity for finding in unknown] == ["warning"]
    assert "198.51.100.0/24" in unknown[0].cause
    assert blockers(target=target, source_address="198.51.100.7") == []
    assert blockers(target=target, source_address="192.0.2.7") == ["PORT_CLOSED"]


@pytest.mark.parametrize(
    ("local", "expected"), [("10.96.0.11", []), ("10.95.0.11", ["PORT_CLOSED"]), ("192.0.2.7", ["PORT_UNKNOWN"])]
)
def test_the_sources_address_is_that_of_its_own_attempt(local, expected):
    rules = (
        Rule("sg-1", 0, "ACCEPT", "TCP", "443", "10.96.0.0/24"),
        Rule("sg-1", 1, "ACCEPT", "TCP", "22", "0.0.0.0/0"),
    )
    tried = {"address": "10.97.0.12", "port": 443, "outcome": "refused", "local": local}
    facts = {**FACTS, "reach": [tried]}
    found = assessment_of(options(source_facts=facts, target=replace(TARGET, ingress=rules).record()))
    assert [finding.code for finding in found.findings if finding.code.startswith("PORT_")] == expected


def test_instance_without_a_security_group_is_not_guessed_about():
    assessment = plan(target=replace(TARGET, security_groups=(), ingress=()))
    assert assessment.blockers == []
    assert [finding.code for finding in assessment.findings].count("PORT_UNKNOWN") == 2


def test_findings_of_the_source_are_part_of_the_result_and_worst_comes_first():
    note = Finding("A_NOTE", "note", "db1", "Something.", "Nothing.")
    wrong = Finding("FILESYSTEM_DIRTY", "blocker", "db1", "It is dirty.", "Check it.")
    assessment = plan(source_findings=[note, wrong])
    assert assessment.findings[0] == wrong
    assert assessment.blockers == [wrong]


def test_findings_survive_json_and_a_shapeless_one_is_refused():
    finding = Finding("A_NOTE", "note", "db1", "Something.", "Nothing.", {"size": 1})
    assert finding_from(finding.record()) == finding
    for record in ({}, {"code": "X"}, {"code": "X", "severity": "fatal"}):
        with pytest.raises(ValueError):
            finding_from(record)


@given(st.lists(st.sampled_from(("blocker", "warning", "note"))))
def test_order_by_severity_is_stable(severities):
    findings = [Finding(f"F_{number}", severity, "s", "c", "a") for number, severity in enumerate(severities)]
    ordered = by_severity(findings)
    assert sorted(map(str, ordered)) == sorted(map(str, findings))
    for severity in severities:
        own = [finding for finding in findings if finding.severity == severity]
        assert [finding for finding in ordered if finding.severity == severity] == own


def test_facts_may_list_mount_points_as_mounted():
    [found] = source_disks({"disks": [disk("sda", mounted=["/", "/boot"])]})
    assert (found.mounts, found.mounted, found.system) == (("/", "/boot"), True, True)


def options(**changes):
    """The options of the module assess for the good plan."""
    return {
        "source": "db1",
        "source_facts": FACTS,
        "source_findings": [Finding("A_NOTE", "note", "db1", "Something.", "Nothing.").record()],
        "source_error": None,
        "source_unreachable": False,
        "target": TARGET.record(),
        "target_error": {},
        "target_id": "ins-dbtgt001",
        "disks": MAPPING,
        "targets_of_all": {"db1": "ins-dbtgt001"},
        "port": 443,
        "ssh_port": 22,
        "source_address": None,
        "source_addresses": [],
        "controller_address": None,
        "target_host_keys": [],
        "landed_before": False,
        "bandwidth_limit": 0,
        "accept": {},
        **changes,
    }


def test_module_takes_the_records_of_the_other_modules():
    assert assessment_of(options()).pairs == plan().pairs
    [finding] = assessment_of(options(target={})).blockers
    assert (finding.code, "ins-dbtgt001" in finding.cause) == ("TARGET_NOT_FOUND", True)


def test_source_that_cannot_be_looked_at_is_refused_with_what_is_known_of_its_target():
    expired = replace(TARGET, restrict_state="EXPIRED").record()
    away = assessment_of(
        options(source_unreachable=True, source_error="No route to host", target=expired, source_facts={})
    )
    assert [finding.code for finding in away.blockers] == ["SOURCE_UNREACHABLE", "TARGET_EXPIRED"]
    assert "No route to host" in away.blockers[0].cause
    silent = assessment_of(options(source_error="python3: not found", source_facts={}))
    assert [finding.code for finding in silent.blockers] == ["SOURCE_NOT_READ"]


def test_failure_to_read_the_target_is_reported_as_what_it_is():
    error = Finding("CLOUD_AUTH_FAILED", "blocker", "cloud", "The cloud does not know this secret_id.", "Check it.")
    [finding] = assessment_of(options(target={}, target_error=error.record())).blockers
    assert finding == error


def test_target_that_shows_the_sources_host_key_is_not_overwritten():
    facts = {**FACTS, "ssh_host_keys": ["ssh-ed25519 AAAA1", "ssh-rsa AAAA2"]}
    assert blockers(facts, target_host_keys=["ssh-rsa AAAA2"]) == ["TARGET_IS_THE_SOURCE"]
    assert blockers(facts, target_host_keys=["ssh-rsa AAAA3"]) == []
    assert blockers(FACTS, target_host_keys=["ssh-rsa AAAA3"]) == []
