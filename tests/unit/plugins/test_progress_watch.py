# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module keeps in a file is seen by the user while the module runs."""

from __future__ import annotations

import threading

from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import (
    ProgressFile,
    UploadProgress,
    upload_line,
)
from ansible_collections.fleetlift.cvm.plugins.plugin_utils import progress_watch


class Screen:
    """Takes lines, and tells when one with certain words was shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def display(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def shows(self, words: str) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: any(words in line for line in self.lines), timeout=60)


def test_the_estimate_is_shown_once_and_then_how_far_it_is(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(progress_watch, "Display", lambda: screen)
    progress = UploadProgress(0)

    with (
        progress_watch.progress_shown("web1: disk.vmdk", upload_line, 0.01) as file,
        ProgressFile(file, progress, 0.01),
    ):
        progress.announce("as it is 2.0 GiB: 3:49 upload")
        progress.resize(2 << 30)
        progress.enter("converting")
        progress.share(0.25)
        assert screen.shows("25 %  512 MiB of 2.0 GiB")
        progress.share(0.5)
        assert screen.shows("50 %")
        progress.enter("comparing")
        progress.share(0.1)
        assert screen.shows("comparing both images")

    assert all(line.startswith("[web1: disk.vmdk] ") for line in screen.lines)
    assert [line for line in screen.lines if "as it is" in line] == ["[web1: disk.vmdk] as it is 2.0 GiB: 3:49 upload"]


def test_a_share_never_goes_back():
    progress = UploadProgress(1000)
    progress.enter("converting")

    progress.share(0.5)
    progress.share(0.4)

    assert progress.state()["bytes_done"] == 500
