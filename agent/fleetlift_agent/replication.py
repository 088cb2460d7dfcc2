# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sender daemon's commands: replicate, set, stop, cutover, release, abort, give_back."""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import Any, Callable

from fleetlift_agent.bucket import Lease, TokenBucket
from fleetlift_agent.config import parse_bandwidth
from fleetlift_agent.copying import Copy
from fleetlift_agent.cutover import Cutover, CutoverOptions, Order
from fleetlift_agent.errors import AgentError
from fleetlift_agent.fence import Passage
from fleetlift_agent.hash_pool import HashPool
from fleetlift_agent.mask import Mask
from fleetlift_agent.quiesce import Quiesce
from fleetlift_agent.sender import Cancelled, Replicator, Route, SenderDisk
from fleetlift_agent.state import State
from fleetlift_agent.tracing import TrackedDisk, Tracker

log = logging.getLogger(__name__)

# How often it is looked whether a disk came into use that is not migrated.
_LOOK_AROUND_SECONDS = 30.0


class Replication:
    """One source's replication from the first pass to the cutover. At most one thread moves data."""

    def __init__(
        self,
        *,
        migration: str,
        disks: list[SenderDisk],
        tracked: list[TrackedDisk],
        open_tracker: Callable[[], Tracker],
        mask: Mask,
        audit: bool,
        route: Route,
        quiesce: Quiesce,
        state: State,
        bandwidth_limit: int | None,
        max_passes: int,
        max_downtime: float,
        hashes: HashPool,
    ) -> None:
        self._state = state
        self._quiesce = quiesce
        self._bucket = TokenBucket(bandwidth_limit)
        self._copy = Copy(
            disks=tracked,
            open_tracker=open_tracker,
            mask=mask,
            replicator=functools.partial(
                Replicator,
                migration=migration,
                disks=disks,
                route=route,
                bucket=self._bucket,
                stalled=self._stalled,
                hashes=hashes,
            ),
            state=state,
            max_passes=max_passes,
            max_downtime=max_downtime,
            audit=audit,
        )
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._cutover: Cutover | None = None
        self._looked_around = -_LOOK_AROUND_SECONDS
        state.update(bandwidth_limit=bandwidth_limit)

    # Commands. Each takes and returns JSON objects and raises AgentError.

    def replicate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._configure(arguments)
            if self._cutover is not None and self._cutover.record["phase"] == "fenced":
                raise AgentError(
                    "SOURCE_FENCED",
                    "This source is fenced: it was handed over to its target",
                    "Roll back first: the target has to be off before this source works again",
                    subject="cutover",
                )
            if self._busy() or (self._settled() and not arguments.get("refresh")):
                return {"already_running": True}
            self._stop.clear()
            if self._cutover is not None:
                self._cutover = None
                self._state.update(cutover=None)
            # Before the answer: whoever asks for the status next must not see how the last run ended.
            self._state.update(phase="delta_sync" if self._copy.synced_once else "initial_sync", error=None)
            self._launch(self._replicate)
            return {"already_running": False}

    def set(self, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._configure(arguments)
            return {"bandwidth_limit": self._bucket.rate}

    def stop(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._refuse_during_cutover("stop replication")
            thread = self._thread
        if thread is None or not thread.is_alive():
            return {"was_running": False}
        self._stop.set()
        thread.join()
        return {"was_running": True}

    def cutover(self, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            current = self._cutover
            if current is not None and current.record["phase"] != "aborted":
                return {"already_running": True, "cutover": current.record}
            if self._state.get("phase") != "in_sync":
                raise AgentError(
                    "NOT_IN_SYNC",
                    f"The target is not in sync: the sender's phase is {self._state.get('phase')}",
                    "Replicate first and wait for the phase in_sync",
                    subject="cutover",
                )
            self._cutover = Cutover(
                _options(arguments),
                copy=self._copy,
                quiesce=self._quiesce,
                publish=self._show_cutover,
                farewell=self._copy.close,
            )
            self._state.update(phase="cutover", error=None)
            self._show_cutover(self._cutover.record)
            # Staying in sync ends here; the cutover's thread waits for it.
            self._stop.set()
            before = self._thread
            self._launch(lambda: self._cut_over(before))
            return {"already_running": False}

    def release(self, arguments: dict[str, Any]) -> dict[str, Any]:
        action = arguments.get("action")
        if action not in ("thaw", "power_off", "fence"):
            raise AgentError(
                "ARGUMENT_INVALID", f"action is {action!r}", "Release with the action thaw, power_off or fence"
            )
        with self._lock:
            current = self._cutover
            phase = current.record["phase"] if current else None
            if current is None or phase not in ("prepared", "committed", "fenced", "released"):
                raise AgentError(
                    "CUTOVER_NOT_PREPARED",
                    f"There is nothing to release: the cutover is {phase or 'not begun'}",
                    "Cut over first and wait for the cutover's phase prepared",
                    subject="cutover",
                )
            if phase != "prepared" and (phase, action) != ("fenced", "power_off"):
                return {"cutover": current.record}
            order = current.order(str(action))
        self._await(order)
        if order.error is not None:
            raise order.error
        return {"cutover": current.record}

    def abort(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            current = self._cutover
            if current is None or current.finished:
                return {"aborted": False}
            if current.record["phase"] in ("committed", "fenced"):
                raise AgentError(
                    "CUTOVER_COMMITTED",
                    "The cutover is committed: the source is being powered off or fenced and the target may be in use",
                    "To go back to the source, roll back",
                    subject="cutover",
                )
            order = current.order("abort")
        self._await(order)
        return {"aborted": True, "cutover": current.record}

    def give_back(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Whatever this agent, or one before it, did to the source is undone, and these services run."""
        services, timeout = give_back_arguments(arguments)
        with self._lock:
            current = self._cutover
            phase = current.record["phase"] if current else None
            order = current.order("unfence") if current is not None and phase == "fenced" else None
        if order is not None:
            self._await(order)
            if order.error is not None:
                raise order.error
        aborted = False if order is not None else bool(self.abort({})["aborted"])
        given = self._quiesce.give_back(services, timeout)
        unfenced = order is not None or given.unfenced
        return {"aborted": aborted, "unfenced": unfenced, "started": list(given.started)}

    def close(self) -> None:
        """Undo a cutover that is not committed, stop replicating, disconnect. A fence stays."""
        current = self._cutover
        if current is not None and current.record["phase"] == "fenced":
            self._copy.close()
            return
        if current is not None and not current.finished and current.record["phase"] != "committed":
            self.abort({})
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._copy.close()

    def publish(self) -> None:
        """Put the counters of the running pass into the state, and from time to time what came into use here."""
        self._copy.publish()
        cutover = self._cutover
        settled = cutover is None or cutover.finished
        if settled and time.monotonic() - self._looked_around > _LOOK_AROUND_SECONDS:
            self._looked_around = time.monotonic()
            self._look_around()

    def _look_around(self) -> None:
        try:
            found = self._quiesce.unplanned.in_use()
        except OSError as error:
            # The cutover looks again, and does not pass over it.
            log.warning("the disks that are in use cannot be told: %s", error)
            return
        if found != self._state.get("unplanned"):
            for disk in found:
                log.warning("%s is in use (%s) and not migrated", disk["device"], ", ".join(disk["mounts"]))
            self._state.touch(unplanned=found)

    # The threads.

    def _replicate(self) -> None:
        try:
            self._copy.catch_up(self._stop.is_set)
            self._rest()
        except Cancelled:
            self._ended()

    def _rest(self) -> None:
        """In sync, and staying so where changes are tracked. Raises Cancelled."""
        while self._copy.tracking:
            self._state.update(phase="in_sync")
            self._copy.keep_in_sync(self._stop.is_set)
            # Tracking turned out to be wrong: what it was trusted with is done again in full.
            self._copy.catch_up(self._stop.is_set)
        self._copy.replicator.disconnect()
        self._state.update(phase="in_sync", stalled=None, connections=0)

    def _ended(self) -> None:
        if self._cutover is None or self._cutover.finished:
            self._copy.replicator.disconnect()
            self._state.update(phase="stopped", stalled=None, connections=0)

    def _cut_over(self, before: threading.Thread | None) -> None:
        cutover = self._cutover
        assert cutover is not None
        if before is not None:
            before.join()
        self._stop.clear()
        self._state.update(phase="cutover")
        cutover.run()
        if cutover.record["phase"] != "aborted":
            self._copy.replicator.disconnect()
            self._state.update(stalled=None, connections=0)
            return
        try:
            self._rest()
        except Cancelled:
            self._ended()

    def _launch(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=lambda: self._guard(target), name="replication", daemon=True)
        self._thread.start()

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except AgentError as error:
            log.error("replication failed: %s", error)
            self._state.update(phase="failed", error=error.record(), stalled=None)
        except Exception as error:  # A thread has nobody else to tell.
            log.exception("replication")
            failure = AgentError(
                "INTERNAL_ERROR",
                f"The agent met something it was not written for: {type(error).__name__}: {error}",
                "Keep agent.log and report this; replicating again continues where it stopped",
            )
            self._state.update(phase="failed", error=failure.record(), stalled=None)

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _await(self, order: Order) -> None:
        """Until the cutover's thread has carried out the order, or ended without seeing it."""
        while not order.done.wait(0.2):
            if not self._busy() and not order.done.is_set():
                order.error = AgentError(
                    "CUTOVER_NOT_PREPARED",
                    "The cutover ended before the order reached it",
                    "Look at the cutover's error, then cut over again",
                    subject="cutover",
                )
                return

    def _settled(self) -> bool:
        """Whether the target is in sync, or already the server: then only `refresh` sends to it again."""
        current = self._cutover
        handed_over = current is not None and current.record["phase"] in ("committed", "fenced", "released")
        return handed_over or self._state.get("phase") == "in_sync"

    def _refuse_during_cutover(self, what: str) -> None:
        current = self._cutover
        if current is not None and self._busy() and not current.finished:
            raise AgentError(
                "CUTOVER_RUNNING", f"A cutover is running, so the agent will not {what}", "Release or abort it first"
            )

    def _configure(self, arguments: dict[str, Any]) -> None:
        if "bandwidth_limit" in arguments:
            limit = parse_bandwidth(arguments["bandwidth_limit"])
            lease = _lease(arguments)
            if lease is not None or limit != self._bucket.rate:
                self._bucket.set_rate(limit, lease)
                self._state.update(bandwidth_limit=limit)
        if arguments.get("max_passes") is not None:
            self._copy.max_passes = max(1, int(_seconds(arguments, "max_passes", 0)))
        if arguments.get("max_downtime") is not None:
            self._copy.max_downtime = _seconds(arguments, "max_downtime", 0)

    def _show_cutover(self, record: dict[str, Any]) -> None:
        if record["phase"] == "aborted":
            self._state.update(cutover=record, phase="in_sync")
        else:
            self._state.update(cutover=record)

    def _stalled(self, reason: Exception | None) -> None:
        before = self._state.get("stalled")
        if reason is not None:
            since = before["since"] if before else time.time()
            record = reason.record() if isinstance(reason, AgentError) else None
            self._state.update(stalled={"since": since, "reason": str(reason), "error": record}, connections=0)
            return
        session = self._copy.replicator.session
        if session is not None:
            self._state.update(
                stalled=None,
                connections=len(session.connections),
                features={
                    "hash": session.features.hash,
                    "compression": session.features.compression,
                    "change_detector": self._copy.replicator.change_detector,
                },
            )


def _options(arguments: dict[str, Any]) -> CutoverOptions:
    services = _names(arguments, "services")
    passages = arguments.get("fence")
    if passages is not None and not (isinstance(passages, list) and passages):
        raise AgentError("ARGUMENT_INVALID", "fence is not a list", "Give those whom the fence lets through as a list")
    freeze = arguments.get("freeze", True)
    if not isinstance(freeze, bool):
        raise AgentError("ARGUMENT_INVALID", f"freeze is {freeze!r}", "Give freeze as true or false")
    return CutoverOptions(
        services=tuple(services),
        service_timeout=_seconds(arguments, "service_timeout", 120),
        freeze=freeze,
        freeze_timeout=_seconds(arguments, "freeze_timeout", 120),
        hold_timeout=_seconds(arguments, "hold_timeout", 300),
        verify_age=None if arguments.get("verify_age") is None else _seconds(arguments, "verify_age", 0),
        pre_freeze=_commands(arguments, "pre_freeze"),
        post_thaw=_commands(arguments, "post_thaw"),
        hook_timeout=_seconds(arguments, "hook_timeout", 60),
        fence=None if passages is None else tuple(Passage.parse(item) for item in passages),
    )


def give_back_arguments(arguments: dict[str, Any]) -> tuple[list[str], float]:
    """The services to start and the seconds that each may take. Raises AgentError ARGUMENT_INVALID."""
    return _names(arguments, "services"), _seconds(arguments, "service_timeout", 120)


def _names(arguments: dict[str, Any], name: str) -> list[str]:
    names = arguments.get(name, [])
    if not isinstance(names, list) or not all(isinstance(item, str) and item for item in names):
        raise AgentError("ARGUMENT_INVALID", f"{name} is not a list of names", f"Give the {name} as a list of names")
    return names


def _commands(arguments: dict[str, Any], name: str) -> tuple[str, ...]:
    commands = arguments.get(name, [])
    if not isinstance(commands, list) or not all(isinstance(command, str) and command for command in commands):
        raise AgentError("ARGUMENT_INVALID", f"{name} is not a list of commands", f"Give {name} as a list of commands")
    return tuple(commands)


def _seconds(arguments: dict[str, Any], name: str, default: float) -> float:
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 86400:
        raise AgentError("ARGUMENT_INVALID", f"{name} is {value!r}", f"Give {name} as a number from 0 to 86400")
    return float(value)


def _lease(arguments: dict[str, Any]) -> Lease | None:
    """For how long the limit holds, and what it becomes then."""
    if arguments.get("bandwidth_lease") is None:
        return None
    after = parse_bandwidth(arguments.get("bandwidth_after_lease"))
    if after is None:
        raise AgentError(
            "ARGUMENT_INVALID",
            "bandwidth_lease was given without bandwidth_after_lease",
            "Give both, or neither for a limit that stays",
        )
    return Lease(_seconds(arguments, "bandwidth_lease", 0), after)
