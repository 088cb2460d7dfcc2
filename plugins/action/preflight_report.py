# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.preflight_report: gathers what is known of each source, and writes the reports."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ..module_utils.findings import refuse
from ..module_utils.fleet_report import document, junit, lines, source_from
from ..module_utils.kept_file import replace_file
from ..modules.preflight_report import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction
from ..plugin_utils.report_page import page

ENDINGS = {"json": "json", "junit": "xml", "html": "html"}
# What the roles leave with a source; nothing else of its variables is looked at, they hold secrets.
VARIABLES = (
    "fleetlift_assessment",
    "fleetlift_source",
    "fleetlift_target",
    "fleetlift_wave",
    "fleetlift_failure",
    "fleetlift_failure_finding",
    "fleetlift_handed_over",
    "fleetlift_reached",
)


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        hostvars = variables["hostvars"]
        sources = []
        for name in arguments["sources"]:
            known = hostvars[name]
            sources.append(source_from(name, {key: known[key] for key in VARIABLES if key in known}))
        report = document(sources, time.time(), arguments["estimate"])
        directory = Path(os.path.expanduser(arguments["path"]))
        files = {name: directory / f"preflight.{ending}" for name, ending in ENDINGS.items()}
        Display().display("\n" + "\n".join(lines(report)))
        if not self._task.check_mode:
            try:
                replace_file(files["json"], json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
                replace_file(files["junit"], junit(report))
                replace_file(files["html"], page(report).encode("utf-8", "replace"))
            except OSError as error:
                raise refuse(
                    "REPORT_NOT_WRITTEN",
                    str(directory),
                    f"The report of the preflight could not be written: {error}.",
                    f"Make {directory} writable for the user who runs Ansible, or choose another directory in"
                    " fleetlift_report_dir.",
                ) from error
            Display().display(f"Report: {files['html']}\n")
        written = {name: str(path) for name, path in files.items()}
        return {"changed": False, "files": written, "summary": report["summary"]}
