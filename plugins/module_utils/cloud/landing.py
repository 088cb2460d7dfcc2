# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rescue mode as a landing: the states an instance passes through, and the one next step in each.

The loop looks at the instance, decides the next step from what it sees, and takes it. Nothing else is remembered, so
that a run continues what an interrupted one left half-done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..findings import Finding, Refusal, refuse
from .errors import CloudError
from .instances import Instances
from .target import Target, standing_refusals
from .waiter import DummyWaiter, Waiter


class Goal(Enum):
    """What the instance is to become, by the state that means it."""

    PRESENT = "RESCUE_MODE"
    ABSENT = "RUNNING"
    STOPPED = "STOPPED"


class Step(Enum):
    """What to do next; the value of a step that calls the API is the action."""

    ENTER = "EnterRescueMode"
    EXIT = "ExitRescueMode"
    START = "StartInstances"
    STOP = "StopInstances"
    WAIT = "wait: it is on its way to the goal"
    SETTLE = "wait until another operation has ended, then decide"
    DONE = "done"


CALLS = (Step.ENTER, Step.EXIT, Step.START, Step.STOP)

# An instance that has left rescue mode stays STOPPED until it is started.
STEPS: Mapping[Goal, Mapping[str, Step]] = {
    Goal.PRESENT: {
        "RUNNING": Step.ENTER,
        "STOPPED": Step.ENTER,
        "ENTER_RESCUE_MODE": Step.WAIT,
        "RESCUE_MODE": Step.DONE,
        "EXIT_RESCUE_MODE": Step.SETTLE,
        "PENDING": Step.SETTLE,
        "STARTING": Step.SETTLE,
        "STOPPING": Step.SETTLE,
        "REBOOTING": Step.SETTLE,
    },
    Goal.ABSENT: {
        "RESCUE_MODE": Step.EXIT,
        "STOPPED": Step.START,
        "EXIT_RESCUE_MODE": Step.WAIT,
        "STARTING": Step.WAIT,
        "RUNNING": Step.DONE,
        "ENTER_RESCUE_MODE": Step.SETTLE,
        "PENDING": Step.SETTLE,
        "STOPPING": Step.SETTLE,
        "REBOOTING": Step.SETTLE,
    },
    Goal.STOPPED: {
        "RUNNING": Step.STOP,
        "RESCUE_MODE": Step.EXIT,
        "STOPPED": Step.DONE,
        "EXIT_RESCUE_MODE": Step.WAIT,
        "STOPPING": Step.WAIT,
        "ENTER_RESCUE_MODE": Step.SETTLE,
        "PENDING": Step.SETTLE,
        "STARTING": Step.SETTLE,
        "REBOOTING": Step.SETTLE,
    },
}

# States that lead to the goal, or are it, without a change of ours.
REACHED_BY_OTHERS: Mapping[Goal, tuple[str, ...]] = {
    Goal.PRESENT: ("RESCUE_MODE",),
    Goal.ABSENT: ("RUNNING", "STARTING", "REBOOTING", "PENDING"),
    Goal.STOPPED: ("STOPPED", "STOPPING", "EXIT_RESCUE_MODE"),
}

# Seconds after which a change whose answer was lost and of which nothing shows is taken not to have begun.
LOST_CALL_PATIENCE = 30.0

PASSWORD_CLASSES: tuple[Callable[[str], bool], ...] = (
    lambda character: "a" <= character <= "z",
    lambda character: "A" <= character <= "Z",
    lambda character: "0" <= character <= "9",
    lambda character: character in "()`~!@#$%^&*-+=|{}[]:;',.?/",
)


@dataclass(frozen=True)
class Call:
    """A change that this run asked for; ``lost`` is set when its answer did not arrive."""

    step: Step
    before: Target
    at: float
    lost: CloudError | None = None


@dataclass(frozen=True)
class Credentials:
    """How to log in to the rescue system, and how to stop the instance (SOFT, HARD or SOFT_FIRST)."""

    username: str
    password: str | None = field(repr=False)
    stop_type: str


@dataclass(frozen=True)
class Outcome:
    """``changed`` says whether this run, or one that it continued, entered or left rescue mode or started it."""

    target: Target
    previous_state: str
    changed: bool


def next_step(goal: Goal, target: Target) -> Step:
    """The next step towards *goal*. Raises :class:`Refusal` for a state that has none."""
    for finding in standing_refusals(target):
        raise Refusal(finding)
    step = STEPS[goal][target.state]
    # A state that looks settled is about to change while an operation runs.
    if target.latest_operation.state == "OPERATING" and step is not Step.WAIT:
        return Step.SETTLE
    return step


def refuse_unlandable(target: Target, credentials: Credentials) -> None:
    """Raises :class:`Refusal` for what EnterRescueMode is known to refuse, so that check mode says it too."""
    if target.architecture == "aarch64":
        raise refuse(
            "TARGET_ARM",
            target.instance_id,
            f"The instance {target.instance_id} is an ARM machine ({target.instance_type}), for which the cloud has no"
            " rescue mode.",
            "Choose an x86 instance as the target.",
            instance_type=target.instance_type,
        )
    if target.state == "STOPPED" and target.stop_charging_mode == "STOP_CHARGING":
        raise refuse(
            "TARGET_STOPPED_NO_CHARGE",
            target.instance_id,
            f"The instance {target.instance_id} was stopped without charging, and has no host to land on.",
            "Start it and run again.",
        )
    if not credentials.password:
        raise refuse(
            "LANDING_PASSWORD_MISSING",
            target.instance_id,
            f"The instance {target.instance_id} has to enter rescue mode, and no password is set for it.",
            "Set password.",
        )
    problem = password_problem(credentials.password)
    if problem:
        raise refuse("LANDING_PASSWORD_INVALID", target.instance_id, problem, "Set another password.")


def password_problem(password: str) -> str | None:
    """Why the cloud would refuse *password* (the rule for Linux in EnterRescueMode's reference), or None."""
    if not 8 <= len(password) <= 30:
        return f"The landing's password has {len(password)} characters; the cloud wants 8 to 30."
    if sum(any(map(is_member, password)) for is_member in PASSWORD_CLASSES) < 2:
        return "The landing's password needs two of: lower case, upper case, digits, punctuation."
    return None


def predict(goal: Goal, target: Target, credentials: Credentials) -> Outcome:
    """What :meth:`Landing.reach` would end in, without changing anything. Raises :class:`Refusal` as it would."""
    step = next_step(goal, target)
    if goal is Goal.PRESENT and target.state in ("RUNNING", "STOPPED"):
        refuse_unlandable(target, credentials)
    changed = step is not Step.DONE and target.state not in REACHED_BY_OTHERS[goal]
    return Outcome(target, target.state, changed)


class Landing:
    """Takes one instance to a goal."""

    def __init__(
        self,
        instances: Instances,
        instance_id: str,
        waiter: Waiter | DummyWaiter,
        *,
        credentials: Credentials,
        settle_timeout: float = 300,
    ) -> None:
        self._instances = instances
        self._instance_id = instance_id
        self._waiter = waiter
        self._credentials = credentials
        self._settle_timeout = settle_timeout
        self._calls: list[Call] = []

    def reach(self, goal: Goal) -> Outcome:
        """Takes the instance to *goal*; with a waiter that does not wait, takes at most one step.

        Raises :class:`Refusal` for a state without a next step, a failed change, or when the time is over.
        """
        target = first = self._instances.observe(self._instance_id)
        while True:
            step = next_step(goal, target)
            if step is Step.DONE:
                self._raise_if_entering_failed(goal, target)
                break
            if step in CALLS and not self._is_stale(target):
                self._raise_if_failed(step, target)
                if self._take(step, target) and not self._waiter.patient:
                    target = self._instances.observe(self._instance_id)
                    break
            elif not self._waiter.patient:
                if step is Step.SETTLE:
                    raise self._busy(target)
                break
            if not self._calls and step is Step.SETTLE and not self._may_settle:
                raise self._busy(target)
            if not self._waiter.pause():
                raise self._out_of_time(goal, target)
            target = self._instances.observe(self._instance_id)
        resumed = goal is Goal.PRESENT and first.state == "ENTER_RESCUE_MODE"
        return Outcome(target, first.state, bool(self._calls) or resumed)

    def _take(self, step: Step, target: Target) -> bool:
        """Asks for *step*; False when something else got in between and it is worth looking again."""
        if step is Step.ENTER:
            refuse_unlandable(target, self._credentials)
        lost = None
        try:
            self._ask(step)
        except CloudError as error:
            if error.is_network and self._waiter.patient:
                lost = error
            elif error.finding.code == "TARGET_BUSY" and self._waiter.patient and self._may_settle:
                return False
            else:
                raise
        self._calls.append(Call(step, target, self._waiter.waited, lost))
        self._waiter.hasten()
        return True

    def _ask(self, step: Step) -> None:
        if step is Step.ENTER:
            self._instances.enter_rescue_mode(
                self._instance_id,
                username=self._credentials.username,
                password=self._credentials.password or "",
                stop_type=self._credentials.stop_type,
            )
        elif step is Step.EXIT:
            self._instances.exit_rescue_mode(self._instance_id)
        elif step is Step.STOP:
            self._instances.stop(self._instance_id, stop_type=self._credentials.stop_type)
        else:
            self._instances.start(self._instance_id)

    def _is_stale(self, target: Target) -> bool:
        """Whether *target* still is what was seen before the last call: the answer runs ahead of the description."""
        if not self._calls:
            return False
        call = self._calls[-1]
        if (target.state, target.latest_operation) != (call.before.state, call.before.latest_operation):
            return False
        if call.lost and self._waiter.waited - call.at > LOST_CALL_PATIENCE:
            raise call.lost
        return True

    @property
    def _may_settle(self) -> bool:
        return self._waiter.waited <= self._settle_timeout

    def _raise_if_failed(self, step: Step, target: Target) -> None:
        """A step whose turn comes again has failed: its operation has ended, and the state is where it was."""
        if step in [call.step for call in self._calls]:
            raise self._failed(
                step, target, "Run again; if it fails again, give the request id to the vendor's support."
            )

    def _raise_if_entering_failed(self, goal: Goal, target: Target) -> None:
        operation = target.latest_operation
        if goal is Goal.PRESENT and (operation.name, operation.state) == (Step.ENTER.value, "FAILED"):
            raise self._failed(Step.ENTER, target, "Leave rescue mode with state=absent, then enter it again.")

    def _failed(self, step: Step, target: Target, action: str) -> Refusal:
        operation = target.latest_operation
        return refuse(
            "LANDING_FAILED",
            self._instance_id,
            f"{step.value} on {self._instance_id} did not succeed: the instance is {target.state}, its latest"
            f" operation {operation.name} is {operation.state}: {operation.error or 'no reason given'}.",
            action,
            **self._evidence(target),
        )

    def _evidence(self, target: Target) -> dict[str, Any]:
        operation = target.latest_operation
        return {
            "state": target.state,
            "latest_operation": operation.name,
            "latest_operation_state": operation.state,
            "latest_operation_error": operation.error,
            "request_id": operation.request_id,
        }

    def _busy(self, target: Target) -> Refusal:
        operation = target.latest_operation
        return refuse(
            "TARGET_BUSY",
            self._instance_id,
            f"The instance {self._instance_id} is {target.state} and its operation {operation.name} is"
            f" {operation.state} for {self._waiter.waited:.0f} s.",
            "Let that operation end, or raise settle_timeout, and run again.",
            **self._evidence(target),
        )

    def _out_of_time(self, goal: Goal, target: Target) -> Refusal:
        operation = target.latest_operation
        reason = f": {operation.error}" if operation.error else ""
        return refuse(
            "LANDING_TIMEOUT",
            self._instance_id,
            f"After {self._waiter.waited:.0f} s the instance {self._instance_id} is {target.state}, not {goal.value};"
            f" its latest operation {operation.name} is {operation.state}{reason}.",
            "Run again to go on waiting (nothing is started twice), or raise wait_timeout.",
            **self._evidence(target),
        )


def address_of(target: Target, preference: str) -> str:
    """The address to reach *target* at: *preference* is auto, public, private or an address itself."""
    public, private = target.public_addresses[:1], target.private_addresses[:1]
    candidates = {"auto": public + private, "public": public, "private": private}.get(preference, (preference,))
    if not candidates:
        raise refuse(
            "TARGET_NO_ADDRESS",
            target.instance_id,
            f"The instance {target.instance_id} has no {preference} address.".replace("no auto", "no"),
            "Set address to public, private or an address that the controller can reach, or give the instance one.",
        )
    return candidates[0]


def wait_for_ssh(
    waiter: Waiter | DummyWaiter, instance_id: str, address: str, port: int, probe: Callable[[str, int], Any]
) -> None:
    """Returns when *probe* no longer raises ``OSError``. Raises :class:`Refusal` when the time is over."""
    while True:
        try:
            probe(address, port)
            return
        except OSError as error:
            if not waiter.pause():
                raise Refusal(_unreachable(instance_id, address, port, error)) from error


def _unreachable(instance_id: str, address: str, port: int, error: OSError) -> Finding:
    return Finding(
        "LANDING_SSH_UNREACHABLE",
        "blocker",
        instance_id,
        f"{instance_id} is in rescue mode, but no SSH server answers at {address}:{port}: {error}.",
        f"Allow TCP {port} from the controller in the instance's security groups, or set address to an address the"
        " controller can reach.",
        {"address": address, "port": port, "error": str(error)},
    )
