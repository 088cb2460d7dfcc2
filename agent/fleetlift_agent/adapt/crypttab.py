# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""/etc/crypttab (crypttab(5)): the second field names a device as fstab does."""

from __future__ import annotations

import re

from .finding import Finding
from .names import Names
from .situation import Situation
from .tree import Tree

PATH = "/etc/crypttab"
CONCERN = "crypttab"

_LINE = re.compile(r"(\s*)([^\s#]\S*)(\s+)(?P<device>\S+)(?:(?P<gap>\s+)(?P<key>\S+))?(?:(\s+)(?P<options>\S+))?")


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    text = tree.read(PATH)
    if text is None:
        return []
    new, findings = adapt_crypttab(text, situation.names)
    tree.write(CONCERN, PATH, new)
    return findings


def adapt_crypttab(text: str, names: Names) -> tuple[str, list[Finding]]:
    """The text for the target, and what is missing there."""
    findings: list[Finding] = []
    return "".join(_adapt_line(line, names, findings) for line in text.splitlines(keepends=True)), findings


def _adapt_line(line: str, names: Names, findings: list[Finding]) -> str:
    found = _LINE.match(line)
    if found is None:
        return line
    device = found["device"]
    meaning = names.meaning(device)
    if meaning.absent:
        options = (found["options"] or "").split(",") if found["options"] else []
        if "nofail" in options or "noauto" in options:
            return line
        findings.append(
            Finding(
                "VOLUME_NOT_COPIED",
                "warning",
                f"{PATH}: {found[2]}",
                f"{device}, which holds the encrypted volume {found[2]}, did not come along; it is marked nofail",
                "If it is needed, map its disk to a disk of the target and replicate again",
            )
        )
        wanted = ",".join([*options, "nofail"])
        if found["options"]:
            return line[: found.start("options")] + wanted + line[found.end("options") :]
        body = line.rstrip("\n")
        return f"{body.rstrip()}{'' if found['key'] else ' none'} {wanted}" + line[len(body) :]
    if meaning.stable or meaning.volume is None:
        return line
    name = names.stable_name(meaning.volume)
    return line if not name else line[: found.start("device")] + name + line[found.end("device") :]
