# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of a source's disks: initial sync, passes over what changes, the audit, the last pass, and the proof.

Where changes are tracked the copy stays in sync until it is told to stop, and the last pass sends what changed since
the one before. Where they are not, every pass reads the disks in full.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Callable

from fleetlift_agent.audit import Audit
from fleetlift_agent.backlog import BacklogMeter, shrinks
from fleetlift_agent.connection import ConnectionLost
from fleetlift_agent.errors import AgentError
from fleetlift_agent.mask import Mask
from fleetlift_agent.passes import DirtySource, NothingNew, PassWork, Ranges, WholeDisks, worth_another_pass
from fleetlift_agent.sender import Cancelled, Replicator
from fleetlift_agent.state import State
from fleetlift_agent.tracing import NullTracker, TrackedDisk, Tracker
from fleetlift_agent.wire import ExtentKey

log = logging.getLogger(__name__)

Cancellation = Callable[[], bool]

_RATE_SECONDS = 10.0
_KEPT_PASSES = 100
# In sync: what changed is sent this often, in seconds, and the map of free blocks is looked at again this often.
_INTERVAL = 1.0
_LOOK_INTERVAL = 300.0
_PROOF_INTERVAL = 0.05
_REPAIR_ROUNDS = 3
# A frozen source whose disks change all the same is given this many passes to come to rest.
_LAST_PASSES = 5


class Copy:
    """Moves the data. Its methods run in one thread at a time, except `publish`, `tune` and `close`."""

    def __init__(
        self,
        *,
        disks: list[TrackedDisk],
        open_tracker: Callable[[], Tracker],
        mask: Mask,
        replicator: Callable[..., Replicator],
        state: State,
        max_passes: int,
        max_downtime: float,
        audit: bool,
    ) -> None:
        self._disks = disks
        self._open_tracker = open_tracker
        self._tracker: Tracker | None = None
        self._mask = mask
        self.replicator = replicator(mask=mask, scanning=self._scanning)
        self._state = state
        self.max_passes = max_passes
        self.max_downtime = max_downtime
        self._audit_wanted = audit
        self._meter = BacklogMeter()
        self._synced_once = False
        self._looked_at = 0.0
        self._damaged = 0
        self._work: PassWork | None = None
        self._publishing = threading.Lock()
        self._passes: list[dict[str, Any]] = []
        self._pass_number = 0
        self._finished_totals = dict(state.get("totals"))
        self._rates: deque[tuple[float, int]] = deque()

    @property
    def tracking(self) -> bool:
        return self._tracker is not None and not isinstance(self._tracker, NullTracker)

    @property
    def synced_once(self) -> bool:
        return self._synced_once

    # Replication.

    def catch_up(self, cancelled: Cancellation) -> None:
        """Passes until the last one is expected to be short enough, or they gain nothing; then the proof."""
        tracker = self._follow()
        if not self._synced_once:
            # After a reboot of the source, say: nothing is known here, and the target holds everything already.
            self.replicator.connect(cancelled)
            self._synced_once = self.replicator.complete
        if self.tracking:
            self._catch_up_with_changes(tracker, cancelled)
        else:
            self._catch_up_in_full(cancelled)
        self._await_proof(cancelled)

    def keep_in_sync(self, cancelled: Cancellation) -> None:
        """Until cancelled. Only where changes are tracked; returns when they no longer are."""
        while self.tracking:
            self._advance(cancelled)
            deadline = time.monotonic() + _INTERVAL
            while time.monotonic() < deadline:
                if cancelled():
                    raise Cancelled
                time.sleep(0.05)

    def _follow(self) -> Tracker:
        """Tracking begins before the first read."""
        if self._tracker is None:
            self._tracker = self._open_tracker()
            if self._tracker.state().attached and not self._mask.resume():
                self._rescan_all(self._tracker)
            # What an earlier agent tracked to the end needs no initial sync.
            self._synced_once = not self._scanned(self._tracker)
            self._look()
        return self._tracker

    def _catch_up_with_changes(self, tracker: Tracker, cancelled: Cancellation) -> None:
        backlogs: list[int] = []
        rescans = 0
        while True:
            self._state.update(phase="delta_sync" if self._synced_once else "initial_sync")
            self._send_changes(cancelled)
            backlog = self._look()
            if tracker.state().rescan:
                # What waits is a disk, which says nothing of the writers. But a ring that overflows in every pass would
                # have it so for ever.
                rescans += 1
                if rescans >= self.max_passes:
                    break
                continue
            rescans = 0
            backlogs.append(backlog)
            fits = self._meter.forecast(time.monotonic()).fits(self.max_downtime)
            if fits or not shrinks(backlogs) or len(backlogs) >= self.max_passes:
                break
        if self._audit_due:
            self._state.update(phase="delta_sync")
            self._audit(cancelled)
            if not self.tracking:
                self._catch_up_in_full(cancelled)

    def _catch_up_in_full(self, cancelled: Cancellation) -> None:
        run: list[dict[str, Any]] = []
        while worth_another_pass(run, max_passes=self.max_passes, max_downtime=self.max_downtime):
            self._state.update(phase="delta_sync" if self._synced_once else "initial_sync")
            self._send_changes(cancelled)
            run.append(self._passes[-1])
        self._look()

    def _advance(self, cancelled: Cancellation) -> None:
        """One round of staying in sync."""
        tracker = self._follow()
        backlog = self._look()
        if backlog or tracker.state().rescan or self.replicator.owes:
            self._send_changes(cancelled)
            self._look()
        if self._audit_due:
            self._audit(cancelled)
        self._proved(cancelled)

    def _send_changes(self, cancelled: Cancellation) -> None:
        """One pass over what changed."""
        tracker = self._follow()
        tracker.drain()
        began = time.monotonic()
        scanned = self._scanned(tracker)
        if scanned:
            for number in scanned:
                self._mask.begin(number)
        elif began - self._looked_at > _LOOK_INTERVAL:
            self._mask.refresh(tracker.mark)
        self._looked_at = began if scanned or began - self._looked_at > _LOOK_INTERVAL else self._looked_at
        self._state.touch(used_blocks=self._mask.summary())
        if not self._synced_once:
            kind = "initial"
        else:
            kind = "rescan" if scanned and self.tracking else "delta"
        self._settled_pass(kind, cancelled)
        self._synced_once = True
        result = self._passes[-1]
        looked_at = result["bytes_read"] + result["bytes_free"]
        self._meter.passed(began, seconds=result["seconds"], looked_at=looked_at)

    def _settled_pass(self, kind: str, cancelled: Cancellation) -> None:
        tracker = self._follow()
        total = tracker.dirty_bytes()
        try:
            self.run_pass(kind, tracker.changes(), cancelled, total=total)
        except BaseException:
            tracker.give_back()
            raise
        tracker.settle()

    def _rescan_all(self, tracker: Tracker) -> None:
        for number in range(len(self._disks)):
            tracker.rescan(number)

    def _scanned(self, tracker: Tracker) -> set[int]:
        return {number for number in range(len(self._disks)) if tracker.scanning(number)}

    def _scanning(self, disk: int) -> bool:
        return self._tracker is None or self._tracker.scanning(disk)

    # The audit: tracking is believed after it was seen to be right on this server.

    @property
    def _audit_due(self) -> bool:
        """Not while a disk is to be read in full: then every difference has its explanation."""
        return self._audit_wanted and self.tracking and not self._follow().state().rescan

    def _audit(self, cancelled: Cancellation) -> None:
        """Read the disks once more; what differs from the target must be known to have changed."""
        tracker = self._follow()
        # What another agent left out is known as free, but not as swap.
        self._mask.refresh(tracker.mark)
        self._looked_at = time.monotonic()
        audit = Audit(tracker)
        self.run_pass("audit", WholeDisks(self.replicator.sizes), cancelled, differs=audit.differs)
        key = audit.missed()
        if key is not None:
            reason = f"extent {key.extent} of {self._disks[key.disk].device} changed and the kernel did not report it"
            log.error("change tracking is not used: %s", reason)
            self._tracker = NullTracker(self._disks, reason)
            try:
                tracker.close(remove=True)
            except OSError as error:
                log.warning("the trace instance could not be removed: %s", error)
        self._audit_wanted = key is None and bool(tracker.state().rescan)
        self._send_changes(cancelled)
        self._look()

    # The proof: what was written is read back from the target's disks.

    def _await_proof(self, cancelled: Cancellation) -> None:
        """Until all that the target held when this began was read back, or was written again since.

        On a source that never pauses something always waits to be read back: what is new does not count.
        """
        begun: list[int] = []
        while True:
            pending, sweeps = self._proved(cancelled)
            if self.replicator.owes:
                self._repair(cancelled)
            elif not pending or all(now >= before + 2 for before, now in zip(begun, sweeps)) and begun:
                return
            elif not begun or any(now < before for before, now in zip(begun, sweeps)):
                # Another receiver counts from the beginning.
                begun = sweeps
            tracked = self.tracking
            if tracked:
                self._advance(cancelled)
            if tracked and not self.tracking:
                self._catch_up_in_full(cancelled)
            deadline = time.monotonic() + _PROOF_INTERVAL
            while time.monotonic() < deadline:
                if cancelled():
                    raise Cancelled
                time.sleep(0.05)

    def _proved(self, cancelled: Cancellation) -> tuple[int, list[int]]:
        """How many bytes are still to be proved, and the sweeps that did; what the target does not hold is owed."""
        answer = self.replicator.request(cancelled, "read_back")
        pending, damaged = int(answer.get("pending", 0)), int(answer.get("damaged", 0))
        self._state.touch(read_back={"pending": pending, "damaged": damaged})
        if damaged != self._damaged:
            self._damaged = damaged
            log.warning("the target's disks did not hold what was written: %d extents so far", damaged)
            self.replicator.refresh(cancelled)
        return pending, [int(count) for count in answer.get("sweeps", [])]

    def _repair(self, cancelled: Cancellation) -> None:
        self.run_pass("repair", NothingNew(), cancelled, total=0)

    # For the cutover, in this order.

    def approach(self, verify_age: float | None, cancelled: Cancellation) -> None:
        """While services still run: all that can be done before they stop.

        verify_age: what was not read back within so many seconds is read back now; None for what never was.
        """
        self._follow()
        for _round in range(_REPAIR_ROUNDS):
            answer = self.replicator.request(cancelled, "verify", age=verify_age)
            if not answer.get("damaged"):
                break
            self.replicator.refresh(cancelled)
            self._repair(cancelled)
        self.reduce(cancelled)
        if self._audit_due:
            # It was put off, or an earlier order to cut over came in between.
            self._audit(cancelled)

    def reduce(self, cancelled: Cancellation) -> None:
        """Have less for the last pass."""
        if not self.tracking:
            return
        tracker = self._follow()
        self._mask.refresh(tracker.mark)
        self._looked_at = time.monotonic()
        self._send_changes(cancelled)

    def drain(self, *, frozen: bool) -> None:
        """Nothing changes any more: know all that did, and what is in use."""
        tracker = self._follow()
        tracker.drain()
        self._mask.conclude(tracker.mark, frozen=frozen)
        if self._audit_wanted and self.tracking:
            log.warning("changes were tracked and nobody has seen that to be right: the last pass reads everything")
            self._rescan_all(tracker)

    def finish(self, *, frozen: bool, cancelled: Cancellation) -> None:
        """The last pass. Raises SOURCE_KEEPS_CHANGING when a frozen source does not come to rest."""
        tracker = self._follow()
        for _round in range(_LAST_PASSES):
            read_in_full = self._scanned(tracker)
            self._settled_pass("final", cancelled)
            tracker.drain()
            equal = set() if self._passes[-1]["bytes_changed"] else read_in_full
            if not self.tracking or not frozen or self._at_rest(tracker, equal):
                return
        raise AgentError(
            "SOURCE_KEEPS_CHANGING",
            "The source's disks were written to although their filesystems are frozen",
            "Find what writes past the filesystems (a database on a raw partition, a volume manager), name its "
            "service for the cutover, and cut over again",
            {"dirty": tracker.state().dirty},
            subject="cutover",
        )

    def _at_rest(self, tracker: Tracker, equal: set[int]) -> bool:
        """Whether what waits after a last pass needs no other one; `equal` disks were read in full and had not changed.

        A tracker that cannot learn any more asks for every disk again after every pass.
        """
        unknown = self._scanned(tracker)
        if not unknown <= equal:
            return False
        # The kernel may swap for as long as it likes.
        return not any(
            self._mask.worthwhile(key, ranges) for key, ranges in tracker.pending() if key.disk not in unknown
        )

    def verify(self, cancelled: Cancellation, show: Callable[[str], None]) -> tuple[list[str], str]:
        """The target's disks, read back, must have our roots, which are returned; what differs is sent again."""
        for _round in range(_REPAIR_ROUNDS):
            roots, root = self.replicator.roots()
            answer = self.replicator.request(cancelled, "verify")
            # What neither side knows has the same root on both.
            if answer.get("root_hash") == root and self.replicator.complete:
                return roots, root
            self.replicator.refresh(cancelled, all_unknown=True)
            log.warning("verification found that the target differs")
            show("final_pass")
            self._repair(cancelled)
            show("verifying")
        raise AgentError(
            "VERIFY_FAILED",
            f"The target's disks still differ from the source after {_REPAIR_ROUNDS} repairs",
            "Something else writes to the target's disks, or one of them is failing: check the landing, then try again",
            {"expected": root, "found": answer.get("root_hash")},
            subject="cutover",
        )

    # Passes, and what is told of them.

    def run_pass(
        self,
        kind: str,
        source: DirtySource,
        cancelled: Cancellation,
        *,
        total: int | None = None,
        differs: Callable[[ExtentKey, Ranges], None] | None = None,
    ) -> None:
        self._pass_number += 1
        work = PassWork(self._pass_number, kind, source, self.replicator.sizes, total)
        self._rates.clear()
        self._work = work
        try:
            self.replicator.run_pass(work, cancelled, differs)
        finally:
            self.publish()
            self._work = None
            result = work.result()
            self._finished_totals = self._totals(result)
            self._remember(result)
        self._show_roots()

    def _remember(self, result: dict[str, Any]) -> None:
        """Keep the record of a pass; of the many small ones that keep the copy in sync only the newest."""
        if len(self._passes) > 1 and result["kind"] == "delta" == self._passes[-1]["kind"] == self._passes[-2]["kind"]:
            self._passes = self._passes[:-1] if self._state.get("phase") == "in_sync" else self._passes
        self._passes = [*self._passes, result][-_KEPT_PASSES:]
        self._state.update(passes=self._passes)

    def publish(self) -> None:
        """Put the counters of the running pass into the state."""
        # Or what the ticker computed a moment before the end of a pass would replace what is said at its end.
        with self._publishing:
            self._publish()

    def _publish(self) -> None:
        work = self._work
        if work is None:
            return
        total = work.total
        done = min(total, work.bytes_done)
        rate = self._rate(work)
        self._state.touch(
            progress={
                "pass": work.number,
                "kind": work.kind,
                "bytes_total": total,
                "bytes_done": done,
                "bytes_sent": work.counters.bytes_sent,
                "rate": rate,
                "eta_seconds": round((total - done) / rate, 1) if rate else None,
            },
            totals=self._totals(work.result()),
        )

    def _look(self) -> int:
        """Tell how far the target is behind; returns the bytes."""
        tracker = self._follow()
        tracker.drain()
        state = tracker.state()
        backlog = tracker.dirty_bytes()
        now = time.monotonic()
        self._meter.look(now, backlog=backlog, written=state.bytes_changed)
        forecast = self._meter.forecast(now)
        self._state.touch(
            sync={
                "mode": state.mode,
                "reason": state.reason,
                "backlog": forecast.backlog,
                "lag": None if forecast.lag is None else round(forecast.lag, 1),
                "write_rate": forecast.write_rate,
                "send_rate": forecast.send_rate,
                "final_pass": None if forecast.final_pass is None else round(forecast.final_pass, 1),
                "converging": forecast.fits(self.max_downtime) or forecast.write_rate < forecast.send_rate,
                "tracker": state.record(),
            }
        )
        return backlog

    def close(self) -> None:
        """Leave no trace in the kernel."""
        self.replicator.disconnect()
        if self._tracker is not None:
            self._tracker.close(remove=True)
            self._tracker = None

    def _totals(self, result: dict[str, Any]) -> dict[str, int]:
        return {name: value + result[name] for name, value in self._finished_totals.items()}

    def _rate(self, work: PassWork) -> int:
        now = time.monotonic()
        self._rates.append((now, work.bytes_done))
        while len(self._rates) > 2 and now - self._rates[0][0] > _RATE_SECONDS:
            self._rates.popleft()
        then, before = self._rates[0]
        if now - then < 0.1:
            return int(work.bytes_done / work.seconds) if work.seconds > 0.1 else 0
        return max(0, int((work.bytes_done - before) / (now - then)))

    def _show_roots(self) -> None:
        try:
            roots, _root = self.replicator.roots()
        except ConnectionLost:
            # The pass is complete; the roots follow with the next one.
            return
        disks = self._state.get("disks")
        for disk, root in zip(disks, roots):
            disk["root_hash"] = root
        self._state.update(disks=disks)
