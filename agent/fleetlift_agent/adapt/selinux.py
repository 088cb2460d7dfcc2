# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SELinux: files that were written from outside have no label, so the next start relabels all of them."""

from __future__ import annotations

import re

from .finding import Finding
from .situation import Situation
from .tree import Tree

CONCERN = "selinux"
CONFIGURATION = "/etc/selinux/config"
MARK = "/.autorelabel"


def is_enabled(configuration: str | None) -> bool:
    """Whether /etc/selinux/config asks for labels at all."""
    found = re.findall(r"^\s*SELINUX\s*=\s*(\w+)", configuration or "", re.MULTILINE)
    return bool(found) and found[-1].lower() in ("enforcing", "permissive")


def adapt(tree: Tree, situation: Situation, *, others_change: bool) -> list[Finding]:
    """Ask for a relabel when anything else on the copy is changed; one that was made changes nothing any more."""
    del situation
    if not others_change or not is_enabled(tree.read(CONFIGURATION)) or tree.exists(MARK):
        return []
    tree.write(CONCERN, MARK, "")
    return [
        Finding(
            "SELINUX_RELABEL",
            "note",
            MARK,
            "SELinux is on, and files were edited: the first start relabels the filesystems and restarts once",
            "Allow for a few minutes, more with millions of files",
        )
    ]
