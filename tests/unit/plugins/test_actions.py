# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugins make of what an agent says. The agent's side of the conversation is scripted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.fleetlift.cvm.plugins.action import agent as agent_action_plugin
from ansible_collections.fleetlift.cvm.plugins.action import cutover, transfer
from ansible_collections.fleetlift.cvm.plugins.modules import agent as agent_module
from ansible_collections.fleetlift.cvm.plugins.plugin_utils import agent_action, remote_agent

UNSHARED = {"bandwidth_budget": 0, "bandwidth_schedule": [], "bandwidth_share": 1, "bandwidth_ledger": None}
TRANSFER = {
    **UNSHARED,
    "state": "in_sync",
    "bandwidth_limit": None,
    "max_passes": 5,
    "max_downtime": 30,
    "wait_timeout": 0,
    "stall_timeout": 600,
    "connection_grace": 600,
    "poll_interval": 0,
}
CUTOVER = {
    **UNSHARED,
    "state": "handed_over",
    "fence_allow": [],
    "services": ["nginx"],
    "service_timeout": 60,
    "freeze_timeout": 600,
    "hold_timeout": 120,
    "verify_age": 3600,
    "pre_freeze": [],
    "post_thaw": [],
    "hook_timeout": 60,
    "source_after": "frozen_off",
    "connection_grace": 600,
    "poll_interval": 0,
}


class ScriptedAgent:
    """Answers ``status`` with one state after the other, staying at the last; an exception is raised."""

    def __init__(self, *states: dict[str, Any] | Exception) -> None:
        self.states = list(states)
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.shell = SimpleNamespace(run=self._run)

    def status_or_none(self) -> dict[str, Any] | None:
        return self.status()

    def status(self) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state

    def control(self, command: str, arguments: dict[str, Any] | None = None, timeout: int = 20) -> dict[str, Any]:
        self.orders.append((command, arguments or {}))
        return {"ok": True, "aborted": False, "unfenced": command == "give_back", "started": []}

    def _run(self, command: str) -> remote_agent.Answer:
        raise AnsibleConnectionFailure("the server is off")


def action(kind: type[agent_action.AgentAction], agent: ScriptedAgent, *, check_mode: bool = False) -> Any:
    made = object.__new__(kind)
    made.task_vars = {"inventory_hostname": "web1"}
    made._task = SimpleNamespace(check_mode=check_mode)
    made._connection = SimpleNamespace(close=lambda: None, transport="ansible.builtin.local")
    made.agent = lambda arguments: agent
    made.told = []
    made.tell = made.told.append
    return made


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_action.time, "sleep", lambda seconds: None)


def lost() -> AnsibleConnectionFailure:
    return AnsibleConnectionFailure("Connection closed by remote host")


def test_a_connection_lost_while_watching_is_only_a_gap_in_the_view() -> None:
    agent = ScriptedAgent({"phase": "idle"}, {"phase": "initial_sync"}, lost(), lost(), {"phase": "in_sync"})
    made = action(transfer.ActionModule, agent)
    result = made.act(TRANSFER)
    assert result["changed"] and result["transfer"]["phase"] == "in_sync"
    assert [order for order, _arguments in agent.orders] == ["replicate"]
    assert any("connection lost" in line for line in made.told)


def test_a_connection_lost_for_longer_than_the_grace_says_that_the_agent_works_on() -> None:
    made = action(transfer.ActionModule, ScriptedAgent(lost()))
    with pytest.raises(remote_agent.RemoteError, match="CONNECTION_LOST") as caught:
        made.act({**TRANSFER, "connection_grace": -1})
    assert "re-attaches" in caught.value.record["action"]


def test_a_running_transfer_is_attached_to_and_not_started_again() -> None:
    agent = ScriptedAgent({"phase": "delta_sync", "bandwidth_limit": None}, {"phase": "in_sync"})
    result = action(transfer.ActionModule, agent).act(TRANSFER)
    assert result["reattached"] and not result["changed"]
    assert agent.orders == []


@pytest.mark.parametrize(("wanted", "sent"), [(1000, 1000), (0, None)])
def test_a_new_limit_reaches_a_running_transfer(wanted: int, sent: int | None) -> None:
    agent = ScriptedAgent({"phase": "initial_sync", "bandwidth_limit": 5}, {"phase": "initial_sync"})
    result = action(transfer.ActionModule, agent).act({**TRANSFER, "state": "started", "bandwidth_limit": wanted})
    assert result["changed"]
    assert agent.orders == [("set", {"bandwidth_limit": sent})]


def shared(tmp_path: Path, name: str, **options: Any) -> dict[str, Any]:
    ledger = str(tmp_path / "bandwidth.json")
    return {**TRANSFER, "migration": name, "bandwidth_budget": 8 << 20, "bandwidth_ledger": ledger, **options}


def test_a_transfer_begins_with_its_part_of_the_budget_and_rests_with_a_reserve(tmp_path: Path) -> None:
    agent = ScriptedAgent({"phase": "idle"}, {"phase": "initial_sync"}, {"phase": "in_sync"})
    action(transfer.ActionModule, agent).act(shared(tmp_path, "web1", bandwidth_limit=4 << 20))
    (began, orders), (rested, resting) = agent.orders
    assert (began, orders["bandwidth_limit"], orders["bandwidth_lease"]) == ("replicate", 4 << 20, 120)
    assert (rested, resting) == ("set", {"bandwidth_limit": (4 << 20) // 20})


def test_a_running_transfer_is_given_its_part_when_another_has_begun(tmp_path: Path) -> None:
    first = ScriptedAgent({"phase": "initial_sync"})
    action(transfer.ActionModule, first).act(shared(tmp_path, "web1", state="started"))
    second = ScriptedAgent({"phase": "initial_sync"})
    action(transfer.ActionModule, second).act(shared(tmp_path, "web2", state="started"))
    assert second.orders[0][1]["bandwidth_limit"] == 16 << 10  # Nothing is left for it yet.
    again = ScriptedAgent({"phase": "initial_sync"})
    action(transfer.ActionModule, again).act(shared(tmp_path, "web1", state="started"))
    assert again.orders[0][1]["bandwidth_limit"] == 4 << 20


def test_a_cutover_gets_more_than_the_reserve_and_gives_all_of_it_back(tmp_path: Path) -> None:
    transferred = ScriptedAgent({"phase": "initial_sync"}, {"phase": "in_sync"})
    action(transfer.ActionModule, transferred).act(shared(tmp_path, "web1"))
    options = shared(tmp_path, "web1")
    agent = ScriptedAgent(
        {"phase": "in_sync", "updated": 5}, {"phase": "cutover", "cutover": {"phase": "prepared"}, "updated": 5}
    )
    action(cutover.ActionModule, agent).act(
        {**options, **CUTOVER, **{k: options[k] for k in UNSHARED}, "source_after": "running"}
    )
    assert agent.orders[0] == (
        "set",
        {"bandwidth_limit": 8 << 20, "bandwidth_lease": 120, "bandwidth_after_lease": 2 << 20},
    )
    assert (tmp_path / "bandwidth.json").read_text().strip() == "{}"


def test_the_same_limit_changes_nothing() -> None:
    agent = ScriptedAgent({"phase": "in_sync", "bandwidth_limit": None})
    result = action(transfer.ActionModule, agent).act({**TRANSFER, "bandwidth_limit": 0})
    assert not result["changed"] and agent.orders == []


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"phase": "failed", "error": {"code": "DISK_READ_FAILED", "cause": "c", "action": "a"}}, "DISK_READ_FAILED"),
        ({"phase": "stopped"}, "TRANSFER_STOPPED"),
        (
            {"phase": "initial_sync", "updated": 1000, "stalled": {"since": 100, "reason": "refused"}},
            "TRANSFER_STALLED",
        ),
    ],
)
def test_what_cannot_get_better_ends_the_wait(state: dict[str, Any], code: str) -> None:
    agent = ScriptedAgent({"phase": "initial_sync"}, state)
    with pytest.raises(remote_agent.RemoteError, match=code):
        action(transfer.ActionModule, agent).act(TRANSFER)


def test_a_short_stall_is_waited_out() -> None:
    stalled = {"phase": "initial_sync", "updated": 200, "stalled": {"since": 100, "reason": "refused"}}
    agent = ScriptedAgent({"phase": "initial_sync"}, stalled, {"phase": "in_sync"})
    assert action(transfer.ActionModule, agent).act(TRANSFER)["transfer"]["phase"] == "in_sync"


@pytest.mark.parametrize(("phase", "changed"), [("idle", True), ("in_sync", False)])
def test_check_mode_of_a_transfer_orders_nothing(phase: str, changed: bool) -> None:
    agent = ScriptedAgent({"phase": phase})
    assert action(transfer.ActionModule, agent, check_mode=True).act(TRANSFER) == {"changed": changed}
    assert agent.orders == []


def prepared(**changes: Any) -> dict[str, Any]:
    return {"phase": "cutover", "cutover": {"phase": "prepared", "verified": True, **changes}}


def test_downtime_begins_with_the_first_service_by_the_clock_of_the_controller() -> None:
    # The source's clock is an hour late; 12.5 seconds have passed on it since then.
    state = {"updated": 1_789_996_412.5, "cutover": {"phase": "prepared", "quiesced_at": 1_789_996_400.0}}
    assert cutover.quiesced(state, 1_790_000_012.5) == 1_790_000_000.0
    assert cutover.quiesced({"updated": 5.0, "cutover": {"phase": "approaching", "quiesced_at": None}}, 7.0) == 7.0


def test_a_cutover_powers_the_source_off_only_when_the_copy_is_verified() -> None:
    verifying = {"phase": "cutover", "cutover": {"phase": "verifying"}}
    agent = ScriptedAgent({"phase": "in_sync", "cutover": None}, verifying, prepared())
    result = action(cutover.ActionModule, agent).act(CUTOVER)
    assert [order for order, _arguments in agent.orders] == ["cutover", "release"]
    assert agent.orders[1][1] == {"action": "power_off"}
    assert result["source"] == "off" and result["cutover"]["verified"]


def test_a_cutover_that_the_agent_gave_up_is_a_failure_with_its_record() -> None:
    error = {"code": "VERIFY_FAILED", "cause": "c", "action": "a"}
    aborted = {"phase": "in_sync", "cutover": {"phase": "aborted", "error": error}}
    agent = ScriptedAgent({"phase": "in_sync", "cutover": None}, aborted)
    with pytest.raises(remote_agent.AgentRefusal, match="VERIFY_FAILED"):
        action(cutover.ActionModule, agent).act(CUTOVER)
    assert [order for order, _arguments in agent.orders] == ["cutover"]


def test_a_cutover_under_way_is_continued_and_not_ordered_twice() -> None:
    agent = ScriptedAgent(prepared())
    action(cutover.ActionModule, agent).act(CUTOVER)
    assert [order for order, _arguments in agent.orders] == ["release"]


def test_a_source_that_is_not_in_sync_is_not_cut_over() -> None:
    agent = ScriptedAgent({"phase": "initial_sync"})
    with pytest.raises(remote_agent.RemoteError, match="NOT_IN_SYNC"):
        action(cutover.ActionModule, agent).act(CUTOVER)
    assert agent.orders == []


def test_a_source_that_still_answers_after_power_off_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ScriptedAgent(prepared())
    agent.shell = SimpleNamespace(run=lambda command: remote_agent.Answer(0, "here", ""))
    clock = iter(range(0, 10**6, 30))
    monkeypatch.setattr(cutover.time, "monotonic", lambda: next(clock))
    with pytest.raises(remote_agent.RemoteError, match="SOURCE_STILL_RUNNING"):
        action(cutover.ActionModule, agent).act(CUTOVER)


class Ssh:
    """What an action sees of Ansible's SSH connection."""

    transport = "ansible.builtin.ssh"

    def __init__(self) -> None:
        self.options = {"host": "192.0.2.7", "port": None, "remote_user": "root", "ssh_extra_args": "-J bastion"}
        self.resets = 0

    def get_option(self, name: str) -> Any:
        return self.options[name]

    def set_option(self, name: str, value: Any) -> None:
        self.options[name] = value

    def reset(self) -> None:
        self.resets += 1


def test_a_dead_path_is_noticed_by_a_connection_of_its_own() -> None:
    made = action(cutover.ActionModule, ScriptedAgent({}))
    made._connection = Ssh()
    made.expect_lost_connections()
    own = made._connection.options["control_path"]
    assert own.startswith("%(directory)s/")
    made.expect_lost_connections(interval=2, count=3)
    extra = made._connection.options["ssh_extra_args"]
    assert extra == "-J bastion -o ServerAliveInterval=2 -o ServerAliveCountMax=3"
    assert made._connection.options["control_path"] != own


def test_a_source_without_power_is_asked_over_a_new_connection() -> None:
    # It has not closed the one that is open, and an answer over that would never come.
    made = action(cutover.ActionModule, ScriptedAgent(prepared()))
    made._connection = Ssh()
    made.act(CUTOVER)
    assert made._connection.resets == 1


def test_the_argument_spec_is_the_documentation() -> None:
    spec: dict[str, Any] = agent_action.argument_spec(agent_module.DOCUMENTATION)
    assert spec["state"] == {"type": "str", "choices": ["present", "absent"], "default": "present"}
    assert spec["disks"]["options"]["target_serial"] == {"type": "str", "required": True}


def test_a_grace_is_measured_from_the_first_loss() -> None:
    made = action(transfer.ActionModule, ScriptedAgent({}))
    answers: list[Callable[[], Any]] = [lambda: (_ for _ in ()).throw(lost()), lambda: 7]
    assert made.patiently(lambda: answers.pop(0)(), 600, "testing") == 7


RELEASED = {"phase": "cutover", "cutover": {"phase": "released"}}


def test_a_copy_that_was_handed_over_is_followed_again_and_never_taken_for_current() -> None:
    agent = ScriptedAgent(RELEASED, {"phase": "delta_sync"}, {"phase": "in_sync"})
    result = action(transfer.ActionModule, agent).act(TRANSFER)
    assert result["changed"]
    assert agent.orders == [("replicate", {"max_passes": 5, "max_downtime": 30, "refresh": True})]


def test_a_fenced_source_is_not_followed_before_it_is_given_back() -> None:
    agent = ScriptedAgent({"phase": "cutover", "cutover": {"phase": "fenced"}})
    assert not action(transfer.ActionModule, agent).act(TRANSFER)["changed"]
    assert agent.orders == []


def test_disk_that_came_into_use_is_a_warning() -> None:
    state = {"phase": "in_sync", "unplanned": [{"device": "/dev/sdc", "mounts": ["/srv", "/opt"]}]}
    result = action(transfer.ActionModule, ScriptedAgent(state, state)).act(TRANSFER)
    assert result["transfer"]["unplanned"] == state["unplanned"]
    (warning,) = result["warnings"]
    assert "/dev/sdc" in warning and "/srv, /opt" in warning
    quiet = action(transfer.ActionModule, ScriptedAgent({"phase": "in_sync"}, {"phase": "in_sync"})).act(TRANSFER)
    assert "warnings" not in quiet


def fenced(made: Any, ssh_connection: str) -> Any:
    made._low_level_execute_command = lambda command, **options: {"rc": 0, "stdout": ssh_connection, "stderr": ""}
    return made


def test_a_fence_lets_the_controller_through_whose_connection_this_is() -> None:
    states = ({"phase": "in_sync"}, {"phase": "cutover", "updated": 1.0, "cutover": {"phase": "fenced"}})
    agent = ScriptedAgent(*states)
    made = fenced(action(cutover.ActionModule, agent), "192.0.2.7 50022 192.0.2.9 2222")
    result = made.act({**CUTOVER, "source_after": "fenced", "fence_allow": ["198.51.100.0/24"]})
    assert result["source"] == "fenced"
    assert agent.orders[0][1]["fence"] == [
        {"address": "192.0.2.7", "port": 2222},
        {"address": "198.51.100.0/24", "port": 2222},
    ]
    assert agent.orders[1] == ("release", {"action": "fence"})


def test_a_fence_that_would_shut_its_controller_out_is_refused_before_anything_stops() -> None:
    agent = ScriptedAgent({"phase": "in_sync"})
    with pytest.raises(remote_agent.RemoteError, match="FENCE_CONTROLLER_UNKNOWN"):
        fenced(action(cutover.ActionModule, agent), "").act({**CUTOVER, "source_after": "fenced"})
    assert agent.orders == []


def test_a_source_is_given_back_by_its_agent() -> None:
    agent = ScriptedAgent({"phase": "cutover", "cutover": {"phase": "fenced"}})
    result = action(cutover.ActionModule, agent).act({**CUTOVER, "state": "given_back"})
    assert agent.orders == [("give_back", {"services": ["nginx"], "service_timeout": 60})]
    assert result == {"changed": True, "aborted": False, "unfenced": True, "started": []}


@pytest.mark.parametrize(
    ("phase", "changed"), [("fenced", True), ("prepared", True), ("released", False), (None, False)]
)
def test_check_mode_says_whether_a_source_has_to_be_given_back(phase: str | None, changed: bool) -> None:
    agent = ScriptedAgent({"phase": "cutover", "cutover": {"phase": phase}})
    made = action(cutover.ActionModule, agent, check_mode=True)
    assert made.act({**CUTOVER, "state": "given_back"}) == {"changed": changed}
    assert agent.orders == []


def test_sender_is_told_of_the_proxy_and_a_url_that_is_none_is_refused() -> None:
    arguments = {
        "role": "sender", "migration": "web1", "peer_host": "203.0.113.11", "port": 443, "connections": 4,
        "change_tracking": True, "audit": True, "skip_free": True, "left_behind": ["/dev/sdb"], "compression": "auto",
        "disks": [], "proxy": None,
    }  # fmt: skip
    assert agent_action_plugin.configuration(arguments)["peer"] == {"host": "203.0.113.11", "port": 443}
    assert agent_action_plugin.configuration(arguments)["left_behind"] == ["/dev/sdb"]
    through = agent_action_plugin.configuration({**arguments, "proxy": "http://10.0.0.5:3128"})["peer"]
    assert through == {"host": "203.0.113.11", "port": 443, "proxy": {"host": "10.0.0.5", "port": 3128}}
    with pytest.raises(remote_agent.RemoteError) as caught:
        agent_action_plugin.configuration({**arguments, "proxy": "socks5://10.0.0.5"})
    assert caught.value.record["code"] == "PROXY_INVALID"
