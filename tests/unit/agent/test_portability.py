# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as it runs on a server: a zipapp, the oldest Python, nothing but the standard library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from loop_pair import AGENT, MIB, MakePair


def oldest_python() -> str:
    """Python 3.9 where there is one, else the one at hand."""
    candidates = [path for path in (shutil.which("python3.9"), sys.executable) if path]
    for path in candidates:
        if subprocess.run([path, "-c", "import ssl"], capture_output=True).returncode == 0:
            return path
    raise AssertionError("no Python with ssl")


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    target = tmp_path / "agent.pyz"
    zipapp.create_archive(AGENT, target, main="fleetlift_agent.cli:main", filter=lambda path: path.suffix != ".pyc")
    return target


def test_zipapp_needs_nothing_but_the_standard_library(zipped: Path) -> None:
    done = subprocess.run([oldest_python(), "-I", "-S", str(zipped), "version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert reply["features"] == {"hash": ["sha256"], "compression": ["zlib", "none"], "change_detector": ["none"]}


@pytest.mark.root
def test_plain_sender_and_equipped_receiver_agree(make_pair: MakePair) -> None:
    pair = make_pair(8 * MIB)
    pair.disks[0][0].write(0, os.urandom(2 * MIB) + b"text" * MIB)
    pair.sender.interpreter = [oldest_python(), "-S"]
    pair.start()
    state = pair.replicate()
    assert state["features"] == {"hash": "sha256", "compression": "zlib", "change_detector": "none"}
    assert pair.prepare()["verified"]
    pair.assert_identical()
