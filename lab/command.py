# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a program, and turn its failure into a LabError that carries what it said."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from lab.errors import LabError


def run(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    pass_fds: Sequence[int] = (),
) -> str:
    """Return the standard output of ``command``; raise LabError when it does not exit with 0."""
    try:
        done = subprocess.run(
            list(command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            env=None if env is None else dict(env),
            timeout=timeout,
            pass_fds=tuple(pass_fds),
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"the program {command[0]!r} is not installed", f"Install it: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)} did not finish within {timeout:g} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or "it printed nothing"
        raise LabError(f"{' '.join(command)} failed with exit code {done.returncode}: {said}")
    return done.stdout


def require_programs(programs: Mapping[str, str]) -> None:
    """Refuse when one of ``programs`` (program name to Debian package) is missing."""
    missing = {program: package for program, package in programs.items() if shutil.which(program) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LabError(
            f"the lab needs programs that are not installed: {', '.join(sorted(missing))}",
            f"Install them: apt-get install --no-install-recommends {packages}",
        )
