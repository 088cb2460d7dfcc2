# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the controller does for a whole fleet by itself: asking for targets, comparing, keeping journals, reporting."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import report_fleet
from ansible.plugins.action import ActionBase
from ansible_collections.fleetlift.cvm.plugins.action import assess, fleet_info, journal, preflight_report


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Ansible's own part of an action only the check of the arguments is left."""
    monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})


def act(
    kind: Any, arguments: dict[str, Any], hostvars: dict[str, Any] | None = None, *, check_mode: bool = False
) -> Any:
    made = object.__new__(kind.ActionModule)
    made._task = SimpleNamespace(args=arguments, check_mode=check_mode)
    return made, (lambda: made.run(task_vars={"hostvars": hostvars or {}}))


def answer(*ids: str, **fields: Any) -> dict[str, Any]:
    return {"targets": [{"instance_id": each} for each in ids], "missing": {}, "request_ids": ["r"], **fields}


def test_sources_of_one_account_and_region_are_asked_for_together() -> None:
    hostvars = {
        "web1": {"access": {"instance_id": "ins-1", "region": "ap-guangzhou", "secret_id": ""}},
        "web2": {"access": {"instance_id": "ins-2", "region": "ap-guangzhou"}},
        "far": {"access": {"instance_id": "ins-3", "region": "ap-singapore"}},
        "none": {},
    }
    asked: list[dict[str, Any]] = []

    def execute(name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        asked.append(module_args)
        return answer(*module_args["instance_ids"])

    arguments = {"sources": list(hostvars), "access": "access", "plan": ["web1", "far", "none"]}
    hostvars["far"].update(fleetlift_target="ins-3", fleetlift_bandwidth_share=4)
    made, run = act(fleet_info, arguments, hostvars)
    made._execute_module = execute
    result = run()
    assert result["plan"] == {"web1": "", "far": "ins-3", "none": ""}
    assert result["bandwidth_shares"] == [1, 4, 1]
    assert [(call["region"], call["instance_ids"]) for call in asked] == [
        ("ap-guangzhou", ["ins-1", "ins-2"]),
        ("ap-singapore", ["ins-3"]),
    ]
    assert {name: target["instance_id"] for name, target in result["targets"].items()} == {
        "web1": "ins-1", "web2": "ins-2", "far": "ins-3",
    }  # fmt: skip
    assert (result["errors"], result["changed"]) == ({}, False)


def test_each_landing_has_the_address_that_its_source_chooses() -> None:
    choices = {"both": {}, "inside": {"landing_address": "private"}, "other": {"landing_address": "192.0.2.9"}}
    hostvars = {name: {"access": {"instance_id": f"ins-{name}", **choice}} for name, choice in choices.items()}
    hostvars["none"] = {"access": {"landing_address": "public"}}
    calls: list[dict[str, Any]] = []

    def execute(name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        calls.append(module_args)
        targets = [
            {"instance_id": each, "public_addresses": ["203.0.113.1"], "private_addresses": ["10.97.0.1"]}
            for each in module_args["instance_ids"]
        ]
        return {**answer(), "targets": targets}

    made, run = act(fleet_info, {"sources": list(hostvars), "access": "access"}, hostvars)
    made._execute_module = execute
    assert run()["addresses"] == {
        "both": ["203.0.113.1", "10.97.0.1"], "inside": ["10.97.0.1"], "other": ["192.0.2.9"], "none": [],
    }  # fmt: skip
    assert len(calls) == 1, "what differs only in the address is asked for together"


def test_what_goes_wrong_for_some_does_not_touch_the_others() -> None:
    hostvars = {
        "web1": {"access": {"instance_id": "ins-1"}},
        "gone": {"access": {"instance_id": "ins-2"}},
        "key": {"access": {"instance_id": "ins-3", "secret_id": "wrong"}},
        "sdk": {"access": {"instance_id": "ins-4", "region": "without-sdk"}},
    }
    refused = {"code": "CLOUD_AUTH_FAILED", "severity": "blocker"}

    def execute(name: str, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        if module_args.get("secret_id"):
            return {"failed": True, "finding": refused}
        if module_args.get("region"):
            return {"failed": True, "msg": "SDK_MISSING: no tencentcloud"}
        return answer("ins-1", missing={"ins-2": {"code": "TARGET_NOT_FOUND"}})

    made, run = act(fleet_info, {"sources": list(hostvars), "access": "access"}, hostvars)
    made._execute_module = execute
    result = run()
    assert list(result["targets"]) == ["web1"]
    assert {name: finding["code"] for name, finding in result["errors"].items()} == {
        "gone": "TARGET_NOT_FOUND", "key": "CLOUD_AUTH_FAILED", "sdk": "TARGET_NOT_READ",
    }  # fmt: skip
    assert "SDK_MISSING" in result["errors"]["sdk"]["cause"]


def test_records_without_their_shape_are_refused_with_the_next_step() -> None:
    arguments = {"source": "web1", "disks": [], "target": {"instance_id": "ins-1"}, "source_facts": {"disks": []}}
    _made, run = act(assess, arguments)
    result = run()
    assert (result["failed"], result["finding"]["code"]) == (True, "INPUT_INVALID")


def test_blockers_fail_the_comparison_unless_asked_otherwise() -> None:
    target = report_fleet.target(1, restrict_state="EXPIRED").record()
    arguments = {"source": "web1", "disks": [], "target": target, "source_facts": {"disks": []}}
    _made, run = act(assess, arguments)
    assert run()["failed"] and run()["finding"]["code"] == "TARGET_EXPIRED"
    _made, run = act(assess, {**arguments, "fail_on_blocker": False})
    assert "failed" not in run() and not run()["ok"]


def test_comparison_without_a_blocker_is_noted_in_the_journal(tmp_path: Path) -> None:
    known = report_fleet.known("web1", 1, wave=1)
    target = report_fleet.target(1)
    facts = {**known["fleetlift_source"]["facts"], "ssh_host_keys": ["ssh-ed25519 AAAA"]}
    arguments = {
        "source": "web1", "source_facts": facts, "target": target.record(), "target_id": target.instance_id,
        "disks": [{"source": "/dev/sda", "target": "system"}], "record": str(tmp_path / "journal"),
    }  # fmt: skip
    path = tmp_path / "journal" / "web1.json"
    _made, run = act(assess, arguments, check_mode=True)
    assert run()["ok"] and not path.exists()
    _made, run = act(assess, arguments)
    result = run()
    kept = json.loads(path.read_text())
    assert (kept["target"], kept["phase"]) == (target.instance_id, "preflight")
    assert kept["data"]["preflight"] == {
        "pairs": result["pairs"], "findings": result["findings"], "estimate": result["estimate"],
        "host_keys": ["ssh-ed25519 AAAA"],
    }  # fmt: skip
    path.unlink()
    _made, run = act(assess, {**arguments, "disks": []})
    assert run()["failed"] and not path.exists(), "what has failed is noted by who knows how it goes on"
    _made, run = act(assess, {**arguments, "record": "/proc/no-journals"})
    assert run()["finding"]["code"] == "JOURNAL_NOT_WRITTEN"


def test_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    _made, run = act(journal, {"path": "/proc/no-journals", "source": "web1", "phase": "preflight"})
    assert run()["finding"]["code"] == "JOURNAL_NOT_WRITTEN"
    _made, run = act(journal, {"path": str(tmp_path / "journal"), "source": "web1", "phase": "preflight"})
    assert run()["journal"]["phase"] == "preflight"
    _made, run = act(journal, {"path": str(tmp_path / "journal"), "source": "web1", "state": "read"})
    assert run()["journal"]["phases"][0]["status"] == "ok"


@pytest.fixture
def hostvars() -> dict[str, Any]:
    secret = {"fleetlift_secret_key": "not-in-the-report"}
    return {"web1": {**report_fleet.known("web1", 1, wave=1), **secret}, "web2": secret}


def test_report_is_written_for_its_owner_only_and_holds_no_secret(tmp_path: Path, hostvars: dict[str, Any]) -> None:
    directory = tmp_path / "reports"
    _made, run = act(preflight_report, {"path": str(directory), "sources": ["web1", "web2"]}, hostvars)
    result = run()
    assert {path.name for path in directory.iterdir()} == {"preflight.json", "preflight.xml", "preflight.html"}
    for path in map(Path, result["files"].values()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "not-in-the-report" not in path.read_text()
    written = json.loads((directory / "preflight.json").read_text())
    assert {source["source"]: source["state"] for source in written["sources"]} == {"web1": "ready", "web2": "blocked"}
    assert result["summary"] == written["summary"]


def test_check_mode_writes_no_report(tmp_path: Path, hostvars: dict[str, Any]) -> None:
    _made, run = act(
        preflight_report, {"path": str(tmp_path / "reports"), "sources": ["web1"]}, hostvars, check_mode=True
    )
    assert run()["summary"]["sources"] == 1
    assert list(tmp_path.iterdir()) == []


def test_report_that_cannot_be_written_says_so(tmp_path: Path, hostvars: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    _made, run = act(preflight_report, {"path": str(tmp_path / "file" / "x"), "sources": ["web1"]}, hostvars)
    assert run()["finding"]["code"] == "REPORT_NOT_WRITTEN"
