# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One adaptation in a process of its own: the request comes in as JSON, the result goes out as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from fleetlift_agent.errors import AgentError

from . import mounts
from .adaptation import adapt, error_result, parse_request


def run(value: Mapping[str, Any]) -> dict[str, Any]:
    """The result of the request. Returns in a child process, whose parent ends with the child's exit status."""
    try:
        request = parse_request(value)
        if os.geteuid() != 0:
            raise AgentError("NOT_ROOT", "Disks are mounted by root only", "Run as root", subject="adapt")
        sys.stdout.flush()
        mounts.in_own_namespaces()
        return adapt(request)
    except AgentError as error:
        return error_result(error)
    except OSError as error:
        return error_result(
            AgentError(
                "ADAPT_FAILED",
                f"the copy could not be adapted: {error}",
                "Look at the kernel log for errors of the target's disks; run again, it continues",
                {"errno": error.errno, "file": str(error.filename or "")},
                subject="adapt",
            )
        )
