# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shows how far a module is that runs on the controller, while it runs."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ..module_utils.upload_progress import read_progress

INTERVAL = 3.0


@contextmanager
def progress_shown(label: str, line: Callable[[dict[str, Any]], str], interval: float = INTERVAL) -> Iterator[str]:
    """The path of a file for the module's state, about which a line is printed whenever it has changed."""
    directory = tempfile.mkdtemp(prefix="fleetlift-progress-")
    file = Path(directory, "progress.json")
    end = threading.Event()
    watcher = threading.Thread(target=_watch, args=(file, label, line, interval, end), name="progress", daemon=True)
    watcher.start()
    try:
        yield str(file)
    finally:
        end.set()
        watcher.join()
        shutil.rmtree(directory)


def _watch(
    file: Path, label: str, line: Callable[[dict[str, Any]], str], interval: float, end: threading.Event
) -> None:
    shown = {""}
    while not end.wait(interval):
        state = read_progress(file)
        # What was said before is not said again, such as what is announced once.
        for text in (state.get("announced", ""), line(state)) if state is not None else ():
            if text not in shown:
                Display().display(f"[{label}] {text}")
                shown.add(text)
