# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machine's own fstab (fstab(5)), as far as a machine whose disks hold plain filesystems needs it."""

from __future__ import annotations

from dataclasses import dataclass

from lab import namespaces as ns

FLAGS = {
    "ro": ns.MS_RDONLY,
    "nosuid": ns.MS_NOSUID,
    "nodev": ns.MS_NODEV,
    "noexec": ns.MS_NOEXEC,
    "noatime": ns.MS_NOATIME,
    "nodiratime": ns.MS_NODIRATIME,
    "relatime": ns.MS_RELATIME,
}
# What only mount(8) and init understand.
FOR_USER_SPACE = {"defaults", "rw", "auto", "nofail", "user", "nouser", "_netdev", "suid", "dev", "exec", "async"}


@dataclass(frozen=True)
class Mount:
    """A filesystem to mount after the root: flags and data as mount(2) takes them."""

    spec: str
    target: str
    filesystem: str
    flags: int
    data: str
    optional: bool


def _unescape(field: str) -> str:
    for escaped, plain in ((r"\040", " "), (r"\011", "\t"), (r"\134", "\\")):
        field = field.replace(escaped, plain)
    return field


def parse_fstab(text: str) -> list[Mount]:
    """Return what is to be mounted at boot besides the root, in order. Swap is left out: it is the host's."""
    mounts = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[0].startswith("#"):
            continue
        spec, target, filesystem = _unescape(fields[0]), _unescape(fields[1]), fields[2]
        options = fields[3].split(",")
        if target in ("/", "none") or filesystem in ("swap", "proc", "sysfs", "devpts") or "noauto" in options:
            continue
        flags = 0
        for option in options:
            flags |= FLAGS.get(option, 0)
        data = [o for o in options if o not in FLAGS and o not in FOR_USER_SPACE and not o.startswith("x-")]
        mounts.append(Mount(spec, target, filesystem, flags, ",".join(data), "nofail" in options))
    return mounts
