# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After its partition was grown: the physical volume, and the filesystem with the programs that belong to it."""

from __future__ import annotations

import os
import shutil
import subprocess

from . import chroot
from .copy import Copy
from .finding import Finding

_PROGRAMS = {
    "ext4": ("resize2fs", "{node}"),
    "xfs": ("xfs_growfs", "{mount}"),
    "btrfs": ("btrfs", "filesystem", "resize", "max", "{mount}"),
}


def grow_filesystem(copy: Copy) -> tuple[str, list[Finding]]:
    """Grow the mounted root filesystem to its volume; what was done, for people, and findings."""
    kind = copy.root.content.kind
    before = _total(copy)
    program, *arguments = _PROGRAMS[kind]
    node = copy.nodes[copy.root]
    command = [each.format(node=node, mount=copy.tree.root) for each in arguments]
    here = shutil.which(program, path=chroot.PATH)
    if here is None:
        return "", [
            Finding(
                "GROW_TOOL_MISSING",
                "warning",
                copy.root.name,
                f"The filesystem was not grown: the rescue system has no {program}",
                f"Run {program} on the target when it has started",
            )
        ]
    done = subprocess.run(
        [here, *command], capture_output=True, text=True, check=False, timeout=1800, env=chroot.ENVIRONMENT
    )
    if done.returncode != 0:
        return "", [
            Finding(
                "GROW_FAILED",
                "warning",
                copy.root.name,
                f"{program} could not grow the filesystem",
                f"Run {program} on the target when it has started",
                {"output": (done.stdout + done.stderr)[-2000:]},
            )
        ]
    after = _total(copy)
    if after == before:
        return "", []
    return f"the root filesystem has {after} bytes instead of {before}", []


def _total(copy: Copy) -> int:
    status = os.statvfs(copy.tree.root)
    return status.f_blocks * status.f_frsize
