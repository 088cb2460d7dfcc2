# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One cutover on the source: stop services, freeze, drain, send the rest, verify, hold, then release or undo."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent.copying import Copy
from fleetlift_agent.errors import AgentError
from fleetlift_agent.fence import Passage
from fleetlift_agent.hooks import run_hooks
from fleetlift_agent.quiesce import Freezer, Quiesce
from fleetlift_agent.sender import Cancelled

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 60.0
_UNSEAL_SECONDS = 15.0
# Between the answer to `release` and the end of this host.
_FAREWELL_SECONDS = 0.5


@dataclass(frozen=True)
class CutoverOptions:
    """What `cutover` was asked for; times in seconds."""

    services: tuple[str, ...]
    service_timeout: float
    freeze: bool
    freeze_timeout: float
    hold_timeout: float
    verify_age: float | None
    pre_freeze: tuple[str, ...]
    post_thaw: tuple[str, ...]
    hook_timeout: float
    # Whom a fenced source lets through; None when it is not to be fenced.
    fence: tuple[Passage, ...] | None = None


@dataclass
class Order:
    """A `release`, `abort` or `unfence` that the cutover's thread carries out."""

    action: str
    done: threading.Event = field(default_factory=threading.Event)
    error: AgentError | None = None


class Cutover:
    """Runs in a thread of its own. Whatever fails, the filesystems are thawed and the services started again.

    `copy` moves data; `publish(record)` shows progress; `farewell()` is called before this host ends.
    """

    def __init__(
        self,
        options: CutoverOptions,
        *,
        copy: Copy,
        quiesce: Quiesce,
        publish: Callable[[dict[str, Any]], None],
        farewell: Callable[[], None],
    ) -> None:
        self._options = options
        self._copy = copy
        self._quiesce = quiesce
        self._publish = publish
        self._farewell = farewell
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._abort = threading.Event()
        self._freezer: Freezer | None = None
        self._mounts: list[Path] = []
        self._stopped: list[str] = []
        self._frozen_at: float | None = None
        self._sealed = False
        self._hooked = False
        self.roots: list[str] = []
        self.record: dict[str, Any] = {
            "phase": "approaching",
            # When the first service was told to stop, as seconds since the epoch on this host.
            "quiesced_at": None,
            "services_stopped": [],
            "frozen": [],
            "timings": {},
            "root_hash": None,
            "verified": False,
            "thawed_by": None,
            "error": None,
        }

    @property
    def finished(self) -> bool:
        return self.record["phase"] in ("released", "aborted")

    def order(self, action: str) -> Order:
        """Hand an order to the thread: a release ("thaw", "power_off", "fence"), "abort", or "unfence"."""
        order = Order(action)
        if action == "abort":
            self._abort.set()
        self._orders.put(order)
        return order

    def run(self) -> None:
        """The whole cutover. Never raises: what went wrong is in the record."""
        order: Order | None = None
        try:
            self._prepare()
            order = self._hold()
            if order.action == "abort":
                self._undo("abort", None)
            else:
                self._release(order.action)
            while self.record["phase"] == "fenced":
                order.done.set()
                order = self._orders.get()
                self._leave_fence(order)
        except Cancelled:
            self._undo("abort", self._cancellation())
        except AgentError as error:
            if order is not None:
                order.error = error
            self._undo("abort", error)
        except Exception as error:  # The filesystems must be thawed whatever happened.
            log.exception("cutover")
            self._undo("abort", _unexpected(error))
        finally:
            if order is not None:
                order.done.set()
            self._refuse_late_orders()

    def _prepare(self) -> None:
        options = self._options
        self._quiesce.unplanned.refuse()
        self._connect()
        with self._timed("approach"):
            self._copy.approach(options.verify_age, self._cancelled)
        manager = self._quiesce.services()
        if options.fence is not None:
            self._quiesce.fence.check(options.fence)
        if options.freeze:
            # Opened beforehand: while frozen nothing new can be looked up or started.
            self._mounts = self._quiesce.mounts()
            self._freezer = self._quiesce.freezer(self._mounts, options.freeze_timeout)
        # Once more: the approach may have taken hours.
        self._quiesce.unplanned.refuse()
        self._show(phase="stopping_services", quiesced_at=time.time())
        with self._timed("stop_services"):
            self._stopped = list(manager.stop(options.services, options.service_timeout))
        self._show(services_stopped=self._stopped)
        self._check_abort()
        if self._freezer is not None:
            self._show(phase="freezing")
            with self._timed("pre_freeze"):
                self._hooked = True
                run_hooks("pre_freeze", options.pre_freeze, options.hook_timeout)
            with self._timed("flush"):
                # Most of what the services left in memory goes now, while nothing is held.
                self._freezer.write_out()
                self._copy.reduce(self._cancelled)
            self._check_abort()
            with self._timed("freeze"):
                self._frozen_at = time.monotonic()
                self._freezer.freeze()
            self._show(frozen=[str(mount) for mount in self._mounts])
        self._show(phase="final_pass")
        frozen = self._freezer is not None
        with self._timed("drain"):
            self._copy.drain(frozen=frozen)
        with self._timed("send"):
            self._copy.finish(frozen=frozen, cancelled=self._cancelled)
        self._show(phase="verifying")
        with self._timed("verify"):
            self.roots, root = self._copy.verify(self._cancelled, lambda phase: self._show(phase=phase))
        self._show(root_hash=root)
        self._sealed = True
        self._copy.replicator.request(self._cancelled, "seal", root_hash=self.record["root_hash"])
        if self._freezer is not None:
            self._freezer.extend(options.hold_timeout)
        self._show(phase="prepared", verified=True)

    def _connect(self) -> None:
        """The peer must be there before any service is stopped."""
        deadline = time.monotonic() + _CONNECT_SECONDS
        try:
            self._copy.replicator.connect(lambda: self._abort.is_set() or time.monotonic() > deadline)
        except Cancelled:
            self._check_abort()
            raise AgentError(
                "PEER_UNREACHABLE",
                f"The landing could not be reached within {_CONNECT_SECONDS:.0f} s, so the cutover did not begin",
                "Check the landing and the network, then cut over again; nothing was stopped on the source",
                subject="cutover",
            ) from None

    def _hold(self) -> Order:
        """Wait for the decision, but never longer than the hold's timeout."""
        deadline = time.monotonic() + self._options.hold_timeout
        while True:
            try:
                return self._orders.get(timeout=0.1)
            except queue.Empty:
                pass
            if self._thawed_behind_our_back() or time.monotonic() > deadline:
                self.record["thawed_by"] = "watchdog"
                raise AgentError(
                    "HOLD_TIMED_OUT",
                    f"Nobody decided within {self._options.hold_timeout:g} s after the copy was verified, "
                    "so the source went back to work",
                    "Cut over again; everything sent so far is kept",
                    subject="cutover",
                )

    def _release(self, action: str) -> None:
        if self._thawed_behind_our_back():
            raise self._thawed()
        if action == "power_off":
            self._end_freeze_clock()
            self._show(phase="committed")
            threading.Timer(_FAREWELL_SECONDS, self._power_off).start()
            return
        if action == "fence":
            self._fence()
            return
        self._show(phase="committed")
        self._let_go()
        failure = self._post_thaw()
        self._show(phase="released", thawed_by="release", error=failure.record() if failure else None)

    def _fence(self) -> None:
        """Nobody but the controller reaches this source from now on; its services stay stopped, its disks thaw."""
        if self._options.fence is None:
            raise AgentError(
                "FENCE_UNAVAILABLE",
                "The cutover was not told whom a fenced source lets through",
                "Abort it, and cut over again with a fence",
                subject="fence",
            )
        self._quiesce.fence.close(self._options.fence, self._stopped)
        self._show(phase="committed")
        self._thaw()
        # The target goes its own way now, and nothing else is to be reached.
        self._copy.replicator.disconnect()
        self._show(phase="fenced", thawed_by="release" if self._freezer is not None else None)

    def _leave_fence(self, order: Order) -> None:
        """Give a fenced source back to its users, or end it. What fails is the order's error, and it stays fenced."""
        if order.action == "power_off":
            self._show(phase="committed")
            threading.Timer(_FAREWELL_SECONDS, self._power_off).start()
            return
        try:
            self._quiesce.fence.open()
            if self._stopped:
                self._quiesce.services().start(self._stopped, self._options.service_timeout)
        except AgentError as error:
            order.error = error
            return
        failure = self._post_thaw()
        self._show(phase="released", error=failure.record() if failure else None)

    def _power_off(self) -> None:
        self._farewell()
        try:
            self._quiesce.power_off()
        except AgentError as error:
            # The target may be in use by now: services stay stopped, and the watchdog ends the freeze.
            log.error("power off: %s", error)
            self._show(error=error.record())

    def _undo(self, thawed_by: str, error: AgentError | None) -> None:
        """The source works again as before, and the target no longer counts as verified."""
        if self.record["thawed_by"] is None and (self._frozen_at is not None):
            self.record["thawed_by"] = "watchdog" if self._thawed_behind_our_back() else thawed_by
        try:
            self._let_go()
        except AgentError as failure:
            log.error("undo: %s", failure)
            error = failure if error is None else error
            error.evidence["undo"] = failure.record()
        failed_hook = self._post_thaw()
        if failed_hook is not None:
            if error is None:
                error = failed_hook
            else:
                error.evidence["post_thaw"] = failed_hook.record()
        if self._sealed:
            self._unseal()
        self._show(phase="aborted", verified=False, error=error.record() if error else None)

    def _let_go(self) -> None:
        """Thaw, then start what was stopped."""
        try:
            self._thaw()
        finally:
            if self._stopped:
                self._quiesce.services().start(self._stopped, self._options.service_timeout)

    def _thaw(self) -> None:
        """End the freeze, if there is one, and its measurement."""
        try:
            if self._freezer is not None:
                with self._timed("thaw"):
                    self._freezer.close()
        finally:
            self._end_freeze_clock()

    def _post_thaw(self) -> AgentError | None:
        """The hooks that follow a thaw. What they do not manage does not undo what was decided."""
        if not self._hooked:
            return None
        self._hooked = False
        try:
            run_hooks("post_thaw", self._options.post_thaw, self._options.hook_timeout)
        except AgentError as failure:
            log.error("%s", failure)
            return failure
        return None

    def _unseal(self) -> None:
        deadline = time.monotonic() + _UNSEAL_SECONDS
        try:
            self._copy.replicator.request(lambda: time.monotonic() > deadline, "unseal")
        except Cancelled:
            log.error("the target could not be told that the cutover was undone; the next write tells it")
        except AgentError as error:
            log.error("unseal: %s", error)

    def _refuse_late_orders(self) -> None:
        while True:
            try:
                late = self._orders.get_nowait()
            except queue.Empty:
                return
            if late.action != "abort":
                late.error = self._not_prepared()
            late.done.set()

    def _not_prepared(self) -> AgentError:
        return AgentError(
            "CUTOVER_NOT_PREPARED",
            f"There is nothing to release: the cutover is {self.record['phase']}",
            "Look at the cutover's error, then cut over again",
            {"error": self.record["error"]},
            subject="cutover",
        )

    def _cancelled(self) -> bool:
        return self._abort.is_set() or self._thawed_behind_our_back()

    def _check_abort(self) -> None:
        if self._abort.is_set():
            raise Cancelled

    def _thawed_behind_our_back(self) -> bool:
        return self._frozen_at is not None and self._freezer is not None and self._freezer.thawed_by is not None

    def _cancellation(self) -> AgentError | None:
        return self._thawed() if self._thawed_behind_our_back() else None

    def _thawed(self) -> AgentError:
        return AgentError(
            "FREEZE_TIMED_OUT",
            f"The watchdog thawed the filesystems after {self._options.freeze_timeout:g} s, before the end",
            "Let replication catch up first, or allow a longer freeze; everything sent so far is kept",
            subject="cutover",
        )

    def _end_freeze_clock(self) -> None:
        if self._frozen_at is not None and "frozen_total" not in self.record["timings"]:
            self.record["timings"]["frozen_total"] = round(time.monotonic() - self._frozen_at, 3)

    def _timed(self, name: str) -> _Timing:
        return _Timing(self.record["timings"], name)

    def _show(self, **changes: Any) -> None:
        self.record.update(changes)
        self._publish(self.record)


class _Timing:
    """Adds the seconds of a block to a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self._table = table
        self._name = name
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_exception: object) -> None:
        self._table[self._name] = round(self._table.get(self._name, 0.0) + time.monotonic() - self._begun, 3)


def _unexpected(error: Exception) -> AgentError:
    return AgentError(
        "INTERNAL_ERROR",
        f"The agent met something it was not written for: {type(error).__name__}: {error}",
        "Keep agent.log and report this; the source was put back to work",
        subject="agent",
    )
