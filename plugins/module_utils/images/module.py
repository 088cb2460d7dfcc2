# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the image modules share: their options, and how they report a refusal."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..findings import Refusal, refuse
from .estimate import EFFICIENCY, IMPORT_RATE, Assumptions
from .qemu import MEMORY

# 100 Mbit/s, as in the vendor's example.
BANDWIDTH = 12_500_000


def image_argument_spec() -> dict[str, Any]:
    """The options of the documentation fragment ``fleetlift.cvm.image``."""
    return {
        "path": {"type": "path", "required": True},
        "agent": {"type": "path"},
    }


def estimate_argument_spec() -> dict[str, Any]:
    """The options of the documentation fragment ``fleetlift.cvm.image.estimate``."""
    return {
        "bandwidth": {"type": "float", "default": BANDWIDTH},
        "efficiency": {"type": "float", "default": EFFICIENCY},
        "import_rate": {"type": "float", "default": IMPORT_RATE},
        "storage_price": {"type": "float"},
        "days_kept": {"type": "float", "default": 1},
    }


def assumptions_of(params: Mapping[str, Any]) -> Assumptions:
    """The assumptions in a module's options. Raises Refusal OPTION_OUT_OF_RANGE."""
    for name in ("bandwidth", "efficiency", "import_rate"):
        if params[name] <= 0:
            raise refuse("OPTION_OUT_OF_RANGE", name, f"{name} is {params[name]}.", "Set it to more than 0.")
    return Assumptions(
        bandwidth=params["bandwidth"],
        import_rate=params["import_rate"],
        efficiency=params["efficiency"],
        price=params["storage_price"],
        days_kept=params["days_kept"],
        processors=len(os.sched_getaffinity(0)),
    )


def _end(number: int, _frame: object) -> None:
    """End at a signal, so that what is half done is removed on the way out."""
    raise SystemExit(128 + number)


@contextmanager
def prepared(module: AnsibleModule) -> Iterator[None]:
    """Bounds what somebody else's image can make *module* use; ends it with the finding of a Refusal raised inside."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    try:
        if not module.params["agent"]:
            raise refuse(
                "IMAGE_ACTION_MISSING",
                "agent",
                "The module was run without its action plugin, which brings the agent's parsers along.",
                "Call it by its full name, fleetlift.cvm.image_info for example.",
            )
        yield
    except OSError as error:
        refusal = refuse(
            "IMAGE_IO",
            str(module.params["path"]),
            f"The system says: {error}.",
            "Check the permissions of the files and directories, and the kernel log for errors of their disks.",
        )
        module.fail_json(msg=str(refusal), finding=refusal.finding.record())
    except Refusal as refusal:
        module.fail_json(msg=str(refusal), finding=refusal.finding.record())
