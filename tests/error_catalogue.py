# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write docs/errors.md from the places in the source that make errors and findings.

``python tests/error_catalogue.py`` writes it. A value that is filled in when the error happens is shown as ‹value›.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "plugins" / "module_utils"))
CODES = importlib.import_module("finding_codes").CODES
CATALOGUE = REPOSITORY / "docs" / "errors.md"
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")

# What makes a record, and its positional parameters.
MAKERS = {
    "AgentError": ("code", "cause", "action"),
    "RemoteError": ("code", "cause", "action"),
    "Layer": ("code", "severity", "cause", "action"),
    "Meaning": ("code", "cause", "action"),
    "blocker": ("code", "cause", "action"),
    "refuse": ("code", "subject", "cause", "action"),
    "_blocker": ("code", "subject", "cause", "action"),
    "Finding": ("code", "severity", "subject", "cause", "action"),
}
# Where it is made, in the order of a migration.
CHAPTERS = {
    "Preflight: the source": (
        "plugins/module_utils/source_facts.py",
        "plugins/module_utils/storage_layers.py",
        "plugins/module_utils/kernel_support.py",
        "plugins/module_utils/workloads.py",
        "plugins/module_utils/vendor_systems.py",
    ),
    "Preflight: the target": ("plugins/module_utils/cloud/target.py",),
    "Preflight: source and target together": (
        "plugins/module_utils/plan.py",
        "plugins/module_utils/path_findings.py",
        "plugins/module_utils/acceptance.py",
        "plugins/module_utils/fleet_report.py",
    ),
    "Image files": ("plugins/module_utils/images/", "plugins/modules/image_"),
    "COS": ("plugins/module_utils/cloud/cos", "plugins/modules/cos_", "plugins/plugin_utils/cos"),
    "The cloud and the landing": ("plugins/module_utils/cloud/", "plugins/modules/target_"),
    "Reaching and running the agents": ("plugins/plugin_utils/", "plugins/action/"),
    "On the servers": ("agent/",),
    "The controller": ("plugins/module_utils/", "plugins/modules/"),
}

# Whose codes the table in finding_codes.py holds.
PREFLIGHT = [chapter for chapter in CHAPTERS if chapter.startswith("Preflight")]

HEAD = """# Errors and findings

Every error ends in a record with a `code` that does not change, a `severity`, a `cause`, an `action` and `evidence`. A
*blocker* stops the source that it is about; the others go on. This page is made from the source by
`python tests/error_catalogue.py`; ‹…› is filled in when it happens.
"""

# Errors that roles and inventory plugins raise themselves.
ROLES = """
## Roles and inventory

| code | severity | cause | action |
|---|---|---|---|
| `PLAN_INVALID` | blocker | The plan of the fleet has mistakes, each named with file, line and column. Nothing of it is used. | Correct what is listed; [fleet.md](fleet.md) explains the fields. |
| `WINDOW_INVALID` | blocker | The window of a source cannot be read. | Correct `fleetlift_window`; [fleet.md](fleet.md) has its form. |
| `PLAN_UNREADABLE` | blocker | A file of the plan cannot be read. | Name a text file in UTF-8 that is there. |
| `NOT_CUT_OVER` | blocker | The source has not been cut over to this target, and what finalize removes is still needed. | Run `fleetlift.cvm.cutover` first. To give a migration up instead, see [the guide](guide.md#giving-up). |
| `SOURCE_STILL_RUNNING` | blocker | The source answers although it was handed over, and two servers with one identity must never run together. The target was not started. | Power the source off and run again, or make it the server again with `fleetlift.cvm.rollback`. |
| `SOURCE_IS_OFF` | blocker | A rollback has stopped the target; the source does not answer, and `fleetlift_source_power_on` does not say how it is powered on. | Power the source on, or restore its network, and run `fleetlift.cvm.rollback` again; it continues. |
| `ROLLBACK_UNFINISHED` | blocker | A rollback of this source was begun and did not end. | Run `fleetlift.cvm.rollback` again; it continues. |
| `ROLLBACK_AFTER_FINALIZE` | blocker | The migration has been finalized: agents, keys and snapshots are gone, and the target has been the server since. | To return to the source all the same, stop the target in the console, then power the source on; what was written on the target since is not on it. |
| `TEST_AFTER_HANDOVER` | blocker | A test launch was asked for a source that has been handed over. | Run `fleetlift.cvm.cutover` to finish, or `fleetlift.cvm.rollback` first. |
| `OFFLINE_NAMES_CLASH` | blocker | Two images of the directory have one name but for the extension, and a server is named after its image. | Rename one of them. |
| `OFFLINE_NO_IMAGES` | blocker | Neither a directory that holds images nor a host in the group `images` is given. | Set `fleetlift_offline_directory`, or put hosts with `fleetlift_offline_image` into the group `images`. |
| `SOURCE_SILENT_IN_CUTOVER` | blocker | The source does not answer, and an earlier play was interrupted in the middle of its cutover. | Look at the source's console. If it runs, restore its network and run again. If it is off and the copy is complete, run again with `-e fleetlift_source_is_off=true`. |
"""

DOCUMENTED = """
## The causes of failure that the vendor names

In its FAQ and its guides for the online migration, and what catches each of them before anything is touched.

| the vendor says | caught by |
|---|---|
"""
# What is not found by the preflight of a server.
ELSEWHERE = """| an interrupted transfer | no error: the next run continues; `TRANSFER_STALLED` when the path stays closed |
| uploading and importing takes long: use a compressed format | not an error: the estimate of `image_info` and of the playbook `offline` says what compressing first would save, and `image_convert` does it when that ends sooner |
| the image is not qcow2, VHD, VMDK or raw | `IMAGE_FORMAT_UNSUPPORTED`, `IMAGE_ARCHIVE`, by the file's content; the cloud's `InvalidFormatSize` is explained by `image_import` |
| the image file was damaged on its way, or is not complete at COS | `IMAGE_TRUNCATED`, `IMAGE_CORRUPT` before the upload; `COS_PART_CORRUPTED`, `COS_OBJECT_CORRUPTED` after it |
| the target of an image is expired or not in a usable state | `TARGET_EXPIRED`, `TARGET_ISOLATED`, `TARGET_STATE` before the instance is reset |
| "verification of the image file failed": the target's disk is smaller than the source's disk or the image | `TARGET_DISK_SMALLER`, before the upload and before the instance; as a notice it is explained by `image_import` |
| "getting the image's metadata failed": damaged or not supported | `IMAGE_CORRUPT`, `IMAGE_TRUNCATED`, `IMAGE_FORMAT_UNSUPPORTED`, `IMAGE_SNAPSHOT_CHAIN`, `IMAGE_BACKING_FILE`; as a notice it is explained by `image_import` |
| "task timeout", "system error", "other reasons", or it fails again: contact support | `IMAGE_IMPORT_TIMEOUT`, `IMAGE_IMPORT_FAILED`, with a file of evidence for the ticket |
"""

ACCEPTING = """
## Accepting a finding

`fleetlift_accept: {CODE: reason}` makes a finding of the preflight one step less severe, a blocker a warning and a warning a
note; the report shows the reason beside it. These codes cannot be accepted:

| code | because |
|---|---|
"""


@dataclass(frozen=True)
class Entry:
    """One way in which a record is made."""

    code: str
    severity: str
    cause: str
    action: str
    path: str


def text_of(node: ast.expr | None) -> str:
    """A string expression as text, with what is only known at run time as ‹expression›."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"‹{readable(node.value)}›"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)} / {text_of(node.orelse)}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
        return text_of(node.func.value)
    return f"‹{readable(node)}›"


def readable(node: ast.expr) -> str:
    """The last name in an expression: it says best what stands there."""
    names = [
        each.attr if isinstance(each, ast.Attribute) else each.id
        for each in ast.walk(node)
        if isinstance(each, (ast.Attribute, ast.Name))
    ]
    keys = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return (names + keys + ["value"])[0].strip("_").replace("_", " ")


def entries(path: Path) -> Iterator[Entry]:
    """Every record that the file makes with a literal code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in MAKERS:
            continue
        given: dict[str, ast.expr] = dict(zip(MAKERS[name], node.args))
        given.update({keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})
        for code in codes_in(given.get("code")):
            severity = given.get("severity")
            yield Entry(
                code,
                text_of(severity)
                if isinstance(severity, ast.Constant)
                else "blocker"
                if severity is None
                else "varies",
                text_of(given.get("cause")),
                text_of(given.get("action")),
                str(path.relative_to(REPOSITORY)),
            )


def codes_in(node: ast.expr | None) -> list[str]:
    """The codes in an expression; it may choose between two."""
    constants = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)] if node else []
    return [each for each in constants if isinstance(each, str) and CODE.fullmatch(each)]


def collect() -> list[Entry]:
    """All records that the agent and the collection can make."""
    paths = [path for base in ("agent", "plugins") for path in sorted((REPOSITORY / base).rglob("*.py"))]
    return [entry for path in paths for entry in entries(path)]


def chapter_of(entry: Entry) -> str:
    return next(name for name, prefixes in CHAPTERS.items() if entry.path.startswith(prefixes))


def cell(texts: list[str]) -> str:
    """Distinct texts as one table cell."""
    distinct = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    return "<br>".join(distinct).replace("|", "\\|").replace("\n", " ")


def render(found: list[Entry]) -> str:
    """The whole page."""
    page = [HEAD]
    for chapter in CHAPTERS:
        mine = [entry for entry in found if chapter_of(entry) == chapter]
        if not mine:
            continue
        page += [f"\n## {chapter}\n", "| code | severity | cause | action |", "|---|---|---|---|"]
        for code in sorted({entry.code for entry in mine}):
            same = [entry for entry in mine if entry.code == code]
            severity = ", ".join(sorted({entry.severity for entry in same}))
            page.append(
                f"| `{code}` | {severity} | {cell([e.cause for e in same])} | {cell([e.action for e in same])} |"
            )
        page.append("")
    return "\n".join(page).rstrip() + "\n" + ROLES + documented() + accepting()


def documented() -> str:
    """What the vendor names, by the table of codes."""
    causes: dict[str, list[str]] = {}
    for code, entry in CODES.items():
        if entry.documented:
            causes.setdefault(entry.documented, []).append(f"`{code}`")
    rows = [f"| {cause} | {', '.join(codes)} |\n" for cause, codes in causes.items()]
    return DOCUMENTED + "".join(rows) + ELSEWHERE


def accepting() -> str:
    """What cannot be accepted, by the table of codes."""
    rows = [f"| `{code}` | {entry.guards} |\n" for code, entry in CODES.items() if entry.guards]
    return ACCEPTING + "".join(rows)


if __name__ == "__main__":
    CATALOGUE.write_text(render(collect()))
