# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Journals as actions keep them: the files are on the controller, in the directory that the user names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..module_utils.findings import refuse
from ..module_utils.journal import keep


def keep_journal(arguments: Mapping[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """What the options of the module ``journal`` ask for; its result. Raises Refusal where it cannot be written."""
    directory = os.path.expanduser(arguments["path"])
    try:
        return keep({**arguments, "path": directory}, check_mode=check_mode)
    except OSError as error:
        raise refuse(
            "JOURNAL_NOT_WRITTEN",
            arguments["source"],
            f"The journal of {arguments['source']} could not be written: {error}.",
            f"Make the directory {directory} writable for the user who runs Ansible, or choose another.",
        ) from error
