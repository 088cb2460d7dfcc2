# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring the agent's program, and an interpreter for it, to a server: into RAM only."""

from __future__ import annotations

from pathlib import Path

from .agent_bundle import Bundle
from .remote_agent import RemoteAgent, RemoteError, RemoteShell


def prepare_directory(shell: RemoteShell, directory: str) -> None:
    """Make the agent's directory, in RAM only. Raises RemoteError when /run is not a tmpfs."""
    answer = shell.run(
        f"umask 077 && mkdir -p {directory}/tls && chmod 700 {directory} {directory}/tls && stat -f -c %T {directory}"
    )
    if answer.rc != 0:
        raise RemoteError(
            "NOT_ROOT",
            f"{directory} could not be made.",
            "connect as root, or set ansible_become: true.",
            evidence=answer.stderr.strip()[-300:],
        )
    if answer.stdout.split()[-1:] not in (["tmpfs"], ["ramfs"]):
        raise RemoteError(
            "RUN_NOT_IN_RAM",
            f"/run is on {answer.stdout.strip()}, not in RAM.",
            "mount a tmpfs on /run: the agent must not write to a disk that it copies or replaces.",
        )


def find_interpreter(agent: RemoteAgent, python: str | None, runtime: str | None, *, check_mode: bool) -> str:
    """The interpreter for the agent: the named one, one that is there, or the one in the archive ``runtime``."""
    recorded = agent.recorded_python()
    if recorded and not python:
        return recorded
    try:
        return agent.shell.find_python(python)
    except RemoteError as error:
        if not runtime or python:
            raise
        if check_mode:
            return f"{agent.directory}/runtime/bin/python3"
        archive = Path(runtime)
        if not archive.is_file():
            raise RemoteError(
                "RUNTIME_UNUSABLE", f"{archive} is not a file.", "correct fleetlift_agent_runtime."
            ) from error
        prepare_directory(agent.shell, agent.directory)
        return agent.shell.unpack_python(archive.read_bytes(), f"{agent.directory}/runtime")


def check_digest(agent: RemoteAgent, sha256: str) -> None:
    """What runs must be what was sent: a full tmpfs can truncate it."""
    path = f"{agent.directory}/agent.pyz"
    arrived = agent.shell.sha256([path]).get(path)
    if arrived != sha256:
        raise RemoteError(
            "AGENT_DIGEST_MISMATCH",
            f"{path} is not what was sent.",
            "check that /run has a few MiB free on the server, then run again.",
            evidence=f"sent {sha256}, found {arrived}",
        )


def deploy_program(agent: RemoteAgent, bundle: Bundle) -> None:
    """Put the agent's zipapp in place unless it is there already."""
    path = f"{agent.directory}/agent.pyz"
    if agent.shell.sha256([path]).get(path) != bundle.sha256:
        prepare_directory(agent.shell, agent.directory)
        agent.shell.write(path, bundle.data)
        check_digest(agent, bundle.sha256)
