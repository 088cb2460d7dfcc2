# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One cutover on the source: stop services, freeze, final pass, verify, hold, then release or undo."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent.errors import AgentError
from fleetlift_agent.passes import DirtySource, WholeDisks
from fleetlift_agent.quiesce import Freezer, Quiesce
from fleetlift_agent.sender import Cancelled, Replicator
from fleetlift_agent.wire import ExtentKey

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 60.0
_UNSEAL_SECONDS = 15.0
_REPAIR_ROUNDS = 3
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


@dataclass
class Order:
    """A `release` or `abort` that the cutover's thread carries out."""

    action: str
    done: threading.Event = field(default_factory=threading.Event)
    error: AgentError | None = None


class _Extents:
    """A given list of extents as the source of a pass."""

    def __init__(self, keys: Sequence[ExtentKey]) -> None:
        self._keys = keys

    def extents(self) -> Iterator[ExtentKey]:
        return iter(self._keys)


class Cutover:
    """Runs in a thread of its own. Whatever fails, the filesystems are thawed and the services started again.

    `run_pass(kind, source, cancelled)` moves data; `publish(record)` shows progress.
    """

    def __init__(
        self,
        options: CutoverOptions,
        *,
        replicator: Replicator,
        quiesce: Quiesce,
        run_pass: Callable[[str, DirtySource, Callable[[], bool]], None],
        publish: Callable[[dict[str, Any]], None],
    ) -> None:
        self._options = options
        self._replicator = replicator
        self._quiesce = quiesce
        self._run_pass = run_pass
        self._publish = publish
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._abort = threading.Event()
        self._freezer: Freezer | None = None
        self._mounts: list[Path] = []
        self._stopped: list[str] = []
        self._frozen_at: float | None = None
        self._sealed = False
        self.roots: list[str] = []
        self.record: dict[str, Any] = {
            "phase": "stopping_services",
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
        """Hand an order to the thread: release ("thaw", "power_off") or "abort"."""
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
        self._connect()
        manager = self._quiesce.services()
        if options.freeze:
            # Opened beforehand: while frozen nothing new can be looked up or started.
            self._mounts = self._quiesce.mounts()
            self._freezer = self._quiesce.freezer(self._mounts, options.freeze_timeout)
        with self._timed("stop_services"):
            self._stopped = list(manager.stop(options.services, options.service_timeout))
        self._show(services_stopped=self._stopped)
        self._check_abort()
        if self._freezer is not None:
            self._show(phase="freezing")
            with self._timed("freeze"):
                self._frozen_at = time.monotonic()
                self._freezer.freeze()
            self._show(frozen=[str(mount) for mount in self._mounts])
        self._show(phase="final_pass")
        with self._timed("final_pass"):
            self._run_pass("final", WholeDisks(self._replicator.sizes), self._cancelled)
        self._show(phase="verifying")
        with self._timed("verify"):
            self._verify()
        self._sealed = True
        self._replicator.request(self._cancelled, "seal", root_hash=self.record["root_hash"])
        if self._freezer is not None:
            self._freezer.extend(options.hold_timeout)
        self._show(phase="prepared", verified=True)

    def _connect(self) -> None:
        """The peer must be there before any service is stopped."""
        deadline = time.monotonic() + _CONNECT_SECONDS
        try:
            self._replicator.connect(lambda: self._abort.is_set() or time.monotonic() > deadline)
        except Cancelled:
            self._check_abort()
            raise AgentError(
                "PEER_UNREACHABLE",
                f"The landing could not be reached within {_CONNECT_SECONDS:.0f} s, so the cutover did not begin",
                "Check the landing and the network, then cut over again; nothing was stopped on the source",
                subject="cutover",
            ) from None

    def _verify(self) -> None:
        """The target's disks, read back, must have our root; what differs is sent again."""
        self.roots, root = self._replicator.roots()
        for _round in range(_REPAIR_ROUNDS):
            answer = self._replicator.request(self._cancelled, "verify")
            if answer.get("root_hash") == root:
                self._show(root_hash=root)
                return
            differing = self._replicator.refresh(self._cancelled)
            log.warning("verification found %d differing extents", len(differing))
            self._show(phase="final_pass")
            self._run_pass("repair", _Extents(differing), self._cancelled)
            self._show(phase="verifying")
        raise AgentError(
            "VERIFY_FAILED",
            f"The target's disks still differ from the source after {_REPAIR_ROUNDS} repairs",
            "Something else writes to the target's disks, or one of them is failing: check the landing, then try again",
            {"expected": root, "found": answer.get("root_hash")},
            subject="cutover",
        )

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
        self._show(phase="committed")
        self._let_go()
        self._show(phase="released", thawed_by="release")

    def _power_off(self) -> None:
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
        if self._sealed:
            self._unseal()
        self._show(phase="aborted", verified=False, error=error.record() if error else None)

    def _let_go(self) -> None:
        """Thaw, then start what was stopped."""
        try:
            if self._freezer is not None:
                self._freezer.close()
        finally:
            self._end_freeze_clock()
            if self._stopped:
                self._quiesce.services().start(self._stopped, self._options.service_timeout)

    def _unseal(self) -> None:
        deadline = time.monotonic() + _UNSEAL_SECONDS
        try:
            self._replicator.request(lambda: time.monotonic() > deadline, "unseal")
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
