# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""/etc/fstab (fstab(5)): names that do not survive the move become UUIDs, absent volumes no longer stop the boot."""

from __future__ import annotations

import re

from .finding import Finding
from .names import Names
from .situation import Situation
from .tree import Tree

PATH = "/etc/fstab"
CONCERN = "fstab"

# Without these a system does not come up, so that nofail would only hide the reason.
ESSENTIAL = ("/", "/usr", "/var", "/boot")
_LINE = re.compile(r"(?P<lead>\s*)(?P<spec>\S+)(?P<a>\s+)(?P<target>\S+)(?P<b>\s+)(?P<kind>\S+)(?P<rest>.*)", re.DOTALL)
_REST = re.compile(
    r"(?P<c>\s+)(?P<options>[^\s#]\S*)(?:(?P<d>\s+)(?P<dump>\d+))?(?:(?P<e>\s+)(?P<order>\d+))?(?P<end>.*)", re.DOTALL
)
_REMOVABLE = re.compile(r"/dev/(?:sr\d|fd\d|cdrom|dvd|scd\d)")


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    text = tree.read(PATH)
    if text is None:
        return [Finding("FSTAB_ABSENT", "note", PATH, "The copy has no fstab", "Nothing to do")]
    new, findings = adapt_fstab(text, situation.names)
    tree.write(CONCERN, PATH, new)
    return findings


def adapt_fstab(text: str, names: Names) -> tuple[str, list[Finding]]:
    """The text for the target, and what is missing there."""
    findings: list[Finding] = []
    lines = [_adapt_line(line, names, findings) for line in text.splitlines(keepends=True)]
    return "".join(lines), findings


def _adapt_line(line: str, names: Names, findings: list[Finding]) -> str:
    found = _LINE.match(line)
    if found is None or found["spec"].startswith("#"):
        return line
    spec, target = found["spec"], found["target"]
    if _REMOVABLE.match(spec):
        return line
    meaning = names.meaning(spec)
    if meaning.absent:
        return _without_waiting(line, found, findings)
    if meaning.stable or meaning.volume is None:
        return line
    name = names.stable_name(meaning.volume)
    if not name:
        findings.append(
            Finding(
                "VOLUME_WITHOUT_NAME",
                "warning",
                f"{PATH}: {target}",
                f"{spec} has neither a UUID nor a PARTUUID, so its name stays and may be another disk's on the target",
                "Give the volume a UUID on the source (tune2fs -U, swaplabel -U, xfs_admin -U) and replicate again",
            )
        )
        return line
    return line[: found.start("spec")] + name + line[found.end("spec") :]


def _without_waiting(line: str, found: re.Match[str], findings: list[Finding]) -> str:
    spec, target = found["spec"], found["target"]
    rest = _REST.match(found["rest"])
    options = rest["options"].split(",") if rest else ["defaults"]
    if "noauto" in options:
        return line
    if target in ESSENTIAL:
        findings.append(
            Finding(
                "VOLUME_MISSING",
                "blocker",
                f"{PATH}: {target}",
                f"{spec}, which the server mounts on {target}, is on none of the copied disks",
                "Map the disk that holds it to a disk of the target and replicate again",
            )
        )
        return line
    if "nofail" not in options:
        findings.append(
            Finding(
                "VOLUME_NOT_COPIED",
                "warning",
                f"{PATH}: {target}",
                f"{spec}, which the server uses as {target}, did not come along; it is marked nofail",
                "If it is needed, map its disk to a disk of the target and replicate again",
            )
        )
        options.append("nofail")
    joined = ",".join(options)
    if rest is None:
        body = line.rstrip("\n")
        return f"{body.rstrip()} {joined} 0 0" + line[len(body) :]
    # A check of a device that is not there would stop older systems all the same.
    order = "" if rest["order"] is None else f"{rest['e']}0"
    dump = "" if rest["dump"] is None else f"{rest['d']}{rest['dump']}"
    return line[: found.start("rest")] + f"{rest['c']}{joined}{dump}{order}{rest['end']}"
