# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of an instance: which operation is allowed in which, and the work behind each.

An operation is admitted (or refused with a code that the vendor documents for that action), the instance
passes through a transitional state while a worker thread drives the hypervisor, and settles.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from lab.cloud.documented import PRODUCTS
from lab.cloud.errors import ApiError
from lab.cloud.hypervisor import Hypervisor, HypervisorError
from lab.cloud.store import Instance, Store

log = logging.getLogger(__name__)

Job = tuple[Future[Any], Callable[[], Any]]
Work = Callable[[str], str | None]

SETTLED = frozenset({"RUNNING", "STOPPED", "RESCUE_MODE", "SHUTDOWN", "LAUNCH_FAILED", "SERVICE_LIVE_MIGRATE"})
TRANSITIONAL = frozenset(
    {
        "PENDING",
        "STARTING",
        "STOPPING",
        "REBOOTING",
        "TERMINATING",
        "ENTER_RESCUE_MODE",
        "EXIT_RESCUE_MODE",
        "ENTER_SERVICE_LIVE_MIGRATE",
        "EXIT_SERVICE_LIVE_MIGRATE",
    }
)
STATES = SETTLED | TRANSITIONAL


@dataclass(frozen=True)
class Operation:
    """allowed: states it may start from. passing: the state meanwhile, empty for the one before.

    from_isolated: also for isolated instances.
    """

    allowed: frozenset[str]
    passing: str
    from_isolated: bool = False


OPERATIONS = {
    "RunInstances": Operation(frozenset(), "PENDING"),
    "StartInstances": Operation(frozenset({"STOPPED"}), "STARTING"),
    "StopInstances": Operation(frozenset({"RUNNING"}), "STOPPING"),
    "RebootInstances": Operation(frozenset({"RUNNING"}), "REBOOTING"),
    # No state of their own is documented: the instance keeps the one it has meanwhile.
    "ModifyInstancesAttribute": Operation(frozenset({"RUNNING", "STOPPED"}), ""),
    "ResetInstance": Operation(frozenset({"RUNNING", "STOPPED"}), ""),
    "TerminateInstances": Operation(frozenset({"RUNNING", "STOPPED", "SHUTDOWN"}), "TERMINATING", from_isolated=True),
    "EnterRescueMode": Operation(frozenset({"RUNNING", "STOPPED"}), "ENTER_RESCUE_MODE"),
    "ExitRescueMode": Operation(frozenset({"RESCUE_MODE"}), "EXIT_RESCUE_MODE"),
}

# The vendor documents no mapping from RestrictState to codes. InstanceStateShutdown reads "isolated instances are
# not supported", InstanceStateFreezing "frozen instances are not supported"; the first that an action lists is used.
_RESTRICTED = {
    "EXPIRED": ("InstanceStateShutdown", "InstanceStateIsolating"),
    "PROTECTIVELY_ISOLATED": ("InstanceStateFreezing", "InstanceStateShutdown"),
}


def check_admissible(instance: Instance, action: str) -> None:
    """Refuse an operation that the state of the instance does not allow."""
    operation = OPERATIONS[action]
    if instance.restrict_state in _RESTRICTED and not operation.from_isolated:
        names = _RESTRICTED[instance.restrict_state]
        raise _unsupported(action, names, f"`{instance.instance_id}` is {instance.restrict_state}")
    if instance.state not in operation.allowed:
        raise _wrong_state(instance, action)
    if instance.latest_operation_state == "OPERATING":
        if instance.latest_operation == action:
            raise ApiError("MutexOperation.TaskRunning", f"The same task runs on `{instance.instance_id}` already.")
        raise _in_progress(instance)


def _wrong_state(instance: Instance, action: str) -> ApiError:
    names = [_state_code(instance.state)]
    if instance.state.endswith("_SERVICE_LIVE_MIGRATE"):
        names.append(_state_code("SERVICE_LIVE_MIGRATE"))
    listed = PRODUCTS["cvm"].actions[action].errors
    if instance.state in TRANSITIONAL and not any(f"UnsupportedOperation.{name}" in listed for name in names):
        return _in_progress(instance)
    return _unsupported(action, names, f"`{instance.instance_id}` in the state `{instance.state}`")


def _in_progress(instance: Instance) -> ApiError:
    return ApiError(
        "OperationDenied.InstanceOperationInProgress",
        f"`{instance.instance_id}` is busy with {instance.latest_operation or instance.state}, please try again later.",
    )


def _unsupported(action: str, names: Sequence[str], subject: str) -> ApiError:
    listed = PRODUCTS["cvm"].actions[action].errors
    codes = [f"UnsupportedOperation.{name}" for name in names]
    code = next((code for code in codes if code in listed), "UnsupportedOperation")
    return ApiError(code, f"{action} is not supported: {subject}.")


def _state_code(state: str) -> str:
    return "InstanceState" + "".join(word.capitalize() for word in state.split("_"))


class Transitions:
    """Runs the work of operations in worker threads, at least minimum_delay seconds each."""

    def __init__(self, store: Store, hypervisor: Hypervisor, minimum_delay: float = 0.3) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self._minimum_delay = minimum_delay
        self._workers = ThreadPoolExecutor(max_workers=64, thread_name_prefix="cloud-work")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._queues: dict[str, deque[Job]] = {}

    def close(self) -> None:
        """Wait for the work under way (without the artificial delay) and take no more."""
        self._closing.set()
        self._workers.shutdown(wait=True)

    def begin(self, instances: Sequence[Instance], action: str, request_id: str, work: Work) -> None:
        """Start an operation on admitted instances (the caller holds the store).

        work(instance_id) drives the hypervisor and returns the state to settle in, or None if it removed the instance.
        """
        for instance in instances:
            before = instance.state
            mark_operating(instance, action, request_id)
            instance.state = OPERATIONS[action].passing or before
            self.submit(instance.instance_id, self._run, instance.instance_id, action, before, work)

    def submit(self, machine: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run function in a worker, after everything submitted for that machine before."""
        future: Future[Any] = Future()
        with self._lock:
            queue = self._queues.setdefault(machine, deque())
            queue.append((future, partial(function, *arguments)))
            if len(queue) == 1:
                self._workers.submit(self._drain, machine, queue)
        return future

    def pause(self, since: float) -> None:
        """Wait until minimum_delay has passed since that time.monotonic()."""
        self._closing.wait(max(0.0, since + self._minimum_delay - time.monotonic()))

    def power_state(self, instance_id: str, on: str, off: str = "STOPPED") -> str:
        """on or off, as the machine is; off when nobody can tell."""
        try:
            return on if self._hypervisor.is_running(instance_id) else off
        except Exception:
            log.exception("whether %s is powered on is unknown; taking it for off", instance_id)
            return off

    def _drain(self, machine: str, queue: deque[Job]) -> None:
        while True:
            with self._lock:
                future, job = queue[0]
            try:
                future.set_result(job())
            except Exception as error:
                log.exception("work on %s ended unexpectedly", machine)
                future.set_exception(error)
            with self._lock:
                queue.popleft()
                if not queue:
                    del self._queues[machine]
                    return

    def _run(self, instance_id: str, action: str, before: str, work: Work) -> None:
        started = time.monotonic()
        failure = None
        try:
            state = work(instance_id)
        except HypervisorError as error:
            log.warning("%s of %s failed: %s", action, instance_id, error)
            failure = str(error) or "the machine gave no reason"
        except Exception as error:
            log.exception("%s of %s ended unexpectedly", action, instance_id)
            failure = f"{type(error).__name__}: {error}"
        if failure:
            state = self._state_after_failure(instance_id, action, before)
        self.pause(started)
        with self._store.changing():
            instance = self._store.instances.get(instance_id)
            if instance is None or state is None:
                return
            instance.state = state
            mark_done(instance, failure)

    def _state_after_failure(self, instance_id: str, action: str, before: str) -> str:
        if action == "RunInstances":
            return "LAUNCH_FAILED"
        on = "RESCUE_MODE" if before == "RESCUE_MODE" else "RUNNING"
        return self.power_state(instance_id, on, "SHUTDOWN" if before == "SHUTDOWN" else "STOPPED")


def mark_operating(instance: Instance, action: str, request_id: str) -> None:
    """Note that an operation runs."""
    instance.latest_operation = action
    instance.latest_operation_state = "OPERATING"
    instance.latest_operation_request_id = request_id
    instance.latest_operation_error = None


def mark_done(instance: Instance, failure: str | None) -> None:
    """Note how the operation ended."""
    instance.latest_operation_state = "FAILED" if failure else "SUCCESS"
    instance.latest_operation_error = failure
