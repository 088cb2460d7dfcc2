# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.report: the journals are here, so nothing is run anywhere else."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ..module_utils import image_summary, summary
from ..module_utils.estimate import comparison, happened
from ..modules.report import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction


def against_estimate(item: tuple[str, dict[str, Any] | None]) -> str | None:
    """What the preflight expected of a source that was cut over, and what it took."""
    source, journal = item
    known = (journal or {}).get("data") or {}
    if "cutover" not in known:
        return None
    return comparison(source, (known.get("preflight") or {}).get("estimate") or {}, happened(journal or {}))


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        directory = Path(os.path.expanduser(arguments["path"]))
        form: Any = image_summary if arguments["kind"] == "images" else summary
        journals: dict[str, dict[str, Any] | None] = {}
        for source in arguments["sources"]:
            path = directory / f"{source}.json"
            journals[source] = json.loads(path.read_text()) if path.is_file() else None
        rows = [form.row(source, journal) for source, journal in journals.items()]
        compared = [line for line in map(against_estimate, journals.items()) if line]
        if compared:
            compared.insert(0, "Against what was expected:")
        Display().display("\n" + "\n".join([*form.table(rows), *compared]) + "\n")
        result: dict[str, Any] = {"changed": False, "sources": [dataclasses.asdict(each) for each in rows]}
        failed = [each.source for each in rows if each.status == "failed"]
        if failed and arguments["fail_on_failure"]:
            result.update(
                failed=True,
                msg=f"{len(failed)} of {len(rows)} sources failed: {', '.join(failed)}. Next: mend what the table"
                " says, then run the same playbook again; it continues.",
            )
        return result
