# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Action plugins of modules that run on the controller for long: they show the state that a module keeps in a file."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ..module_utils.upload_progress import read_progress
from .cos_action import CosAction


class WatchedAction(CosAction):
    """Runs the module of its name with a ``progress_file``, and prints a line whenever that has changed."""

    interval = 3.0

    def label(self) -> str:
        """What the lines are about, besides the host."""
        raise NotImplementedError

    def line(self, state: dict[str, Any]) -> str:
        """The line about a state."""
        raise NotImplementedError

    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        directory = tempfile.mkdtemp(prefix="fleetlift-progress-")
        file = Path(directory, "progress.json")
        host = task_vars.get("inventory_hostname", "localhost")
        end = threading.Event()
        watcher = threading.Thread(
            target=self._watch, args=(file, f"{host}: {self.label()}", end), name="progress", daemon=True
        )
        watcher.start()
        try:
            arguments = {"progress_file": str(file), **self._task.args}
            return dict(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            end.set()
            watcher.join()
            shutil.rmtree(directory)

    def _watch(self, file: Path, label: str, end: threading.Event) -> None:
        last = ""
        while not end.wait(self.interval):
            state = read_progress(file)
            line = self.line(state) if state is not None else ""
            if line and line != last:
                Display().display(f"[{label}] {line}")
                last = line
