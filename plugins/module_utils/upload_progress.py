# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far an upload is: counted by its threads, told as a dictionary, a file and a line."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .progress import duration, progress_bar, size

# The rate is that of the last so many seconds.
WINDOW = 15.0
PHASES = {
    "checking": "comparing with COS",
    "uploading": "uploading",
    "completing": "joining the parts",
    "done": "uploaded",
    "converting": "converting",
    "comparing": "comparing both images",
    "adapting": "adapting the copy",
    "ready": "ready",
}


class UploadProgress:
    """What the threads of one upload have done, in bytes."""

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._total = total
        self._phase = "checking"
        self._done = self._sent = self._kept = 0
        self._stalled: str | None = None
        self._announced = ""
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def enter(self, phase: str) -> None:
        """Begin *phase*, from the first byte on."""
        with self._lock:
            self._phase = phase
            self._done = 0
            self._marks = deque([(self._clock(), 0)])

    def announce(self, text: str) -> None:
        """Something to know before the work begins."""
        with self._lock:
            self._announced = text

    def resize(self, total: int) -> None:
        """There are *total* bytes to do, as is known only now."""
        with self._lock:
            self._total = total

    def share(self, done: float) -> None:
        """So much of the phase is done, from 0 to 1, as a program tells that counts for itself."""
        with self._lock:
            missing = round(done * self._total) - self._done
        if missing > 0:
            self.advance(missing)

    def advance(self, count: int) -> None:
        """*count* bytes were looked at."""
        self._move(count, 0, 0)

    def sent(self, count: int) -> None:
        """*count* bytes left for COS."""
        self._move(count, count, 0)

    def kept(self, count: int) -> None:
        """*count* bytes were at COS already."""
        self._move(count, 0, count)

    def lost(self, count: int) -> None:
        """*count* bytes that had left did not arrive, and will leave again."""
        with self._lock:
            self._done -= count

    def stalled(self, reason: str | None) -> None:
        """Nothing arrives at present, for this reason; None when it does again."""
        with self._lock:
            self._stalled = reason

    def _move(self, done: int, sent: int, kept: int) -> None:
        with self._lock:
            self._done += done
            self._sent += sent
            self._kept += kept
            now = self._clock()
            # What was at COS already says nothing about the rate.
            if not kept:
                last = self._marks[-1]
                self._marks.append((now, last[1] + done))
                while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW:
                    self._marks.popleft()

    def state(self) -> dict[str, Any]:
        """Everything, with the rate in bytes per second and the time left in seconds."""
        with self._lock:
            began, before = self._marks[0]
            elapsed = self._clock() - began
            rate = (self._marks[-1][1] - before) / elapsed if elapsed > 0.1 else 0.0
            left = self._total - self._done
            return {
                "phase": self._phase,
                "bytes_total": self._total,
                "bytes_done": self._done,
                "bytes_sent": self._sent,
                "bytes_kept": self._kept,
                "rate": round(rate),
                "eta_seconds": round(left / rate) if rate and left else None,
                "stalled": self._stalled,
                "announced": self._announced,
            }


class ProgressFile:
    """Keeps a file of mode 0600 up to date with an upload's state while the context lasts; None is no file."""

    def __init__(self, path: str | None, progress: UploadProgress, interval: float = 0.5) -> None:
        self._path = Path(path) if path else None
        self._progress = progress
        self._interval = interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(self._path,), name="progress", daemon=True)

    def __enter__(self) -> ProgressFile:
        if self._path is not None:
            self._write(self._path)
            self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._path is not None:
            self._end.set()
            self._thread.join()
            self._write(self._path)

    def _keep(self, path: Path) -> None:
        while not self._end.wait(self._interval):
            self._write(path)

    def _write(self, path: Path) -> None:
        new = path.with_name(f"{path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            json.dump(self._progress.state(), stream)
        new.replace(path)


def read_progress(path: Path) -> dict[str, Any] | None:
    """The state that an upload keeps in *path*, None before there is one."""
    with suppress(FileNotFoundError):
        return dict(json.loads(path.read_text(encoding="ascii")))
    return None


def upload_line(state: dict[str, Any]) -> str:
    """One line about an upload's state: phase, bar, bytes, rate and time left, or why nothing moves."""
    total, done = state["bytes_total"], state["bytes_done"]
    text = f"{PHASES[state['phase']]:<22}"
    if total:
        text += f" {progress_bar(done / total)} {100 * done / total:3.0f} %  {size(done)} of {size(total)}"
        if state["bytes_kept"]:
            text += f", {size(state['bytes_kept'])} were there already"
        if done < total:
            text += f", {size(state['rate'])}/s, {duration(state['eta_seconds'])} left"
    if state["stalled"]:
        text += f"  STALLED: {state['stalled']}"
    return text.rstrip()
