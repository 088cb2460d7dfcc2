# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A web server: nginx serves a page and files that are partly compressible, partly not."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from lab.command import run

SITE = "var/www/html"
FILES = 24
FILE_SIZE = 1024 * 1024
# A light machine has no update-rc.d on its disk; this is what it would do.
ENABLED = "etc/rc2.d/S01nginx"
DISABLED = "etc/rc2.d/K01nginx"


def content(number: int) -> bytes:
    """Return the bytes of one served file: text in every third, noise in the others."""
    source = random.Random(f"web-{number}")
    if number % 3 == 0:
        line = f"file {number}: the same line again and again\n".encode()
        return (line * (FILE_SIZE // len(line) + 1))[:FILE_SIZE]
    return source.randbytes(FILE_SIZE)


def seed(root: Path) -> None:
    """Put the site on the disk and have nginx start at boot."""
    site = root / SITE
    for page in site.iterdir():
        page.unlink()
    lines = []
    for number in range(FILES):
        name, data = f"file-{number:02}.bin", content(number)
        (site / name).write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    (site / "SHA256SUMS").write_text("".join(lines), encoding="ascii")
    (site / "index.html").write_text("<!doctype html><title>web1</title><p>Served by web1\n", encoding="ascii")
    if (root / "usr/sbin/update-rc.d").exists():
        run(["chroot", str(root), "update-rc.d", "nginx", "enable"])
    else:
        (root / DISABLED).rename(root / ENABLED)
