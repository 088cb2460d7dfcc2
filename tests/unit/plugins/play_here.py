# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs tasks in a play on this machine, with the collection of this working tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def play(directory: Path, tasks: list[dict[str, Any]], *words: str) -> tuple[int, str]:
    """Exit status and output; what Ansible leaves on the host is below ``directory/remote``."""
    book = directory / "play.yml"
    book.write_text(yaml.safe_dump([{"hosts": "here", "gather_facts": False, "tasks": tasks}]))
    inventory = directory / "hosts"
    inventory.write_text(f"here ansible_connection=local ansible_python_interpreter={sys.executable}\n")
    return run(directory, "-i", str(inventory), *words, str(book))


def run(directory: Path, *words: str) -> tuple[int, str]:
    """Exit status and output of ansible-playbook; what Ansible leaves on the host is below ``directory/remote``."""
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": next(
            path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir()
        ),
        "ANSIBLE_LOCAL_TEMP": str(directory / "ansible"),
        "ANSIBLE_REMOTE_TEMP": str(directory / "remote"),
    }
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
