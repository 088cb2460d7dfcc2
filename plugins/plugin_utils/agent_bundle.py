# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build the agent's zipapp, byte for byte the same on every controller.

The archive carries fixed timestamps and a sorted file list, so that its SHA-256 depends on the agent's source alone:
an unchanged agent is never copied twice, and what runs on a server can be compared with what the collection ships.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

# The earliest time a ZIP directory entry can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)
MAIN = b"from fleetlift_agent.__main__ import main\n\nmain()\n"


@dataclass(frozen=True)
class Bundle:
    """The zipapp: its bytes and their SHA-256 in hexadecimal."""

    data: bytes
    sha256: str


def source_directory() -> Path:
    """Where this collection keeps the agent's package."""
    return Path(__file__).resolve().parents[2] / "agent" / "fleetlift_agent"


def build(source: Path) -> Bundle:
    """Pack the package at ``source`` (a directory named ``fleetlift_agent``) as a zipapp.

    Raises FileNotFoundError when the directory holds no ``__main__.py``: the collection was installed incompletely.
    """
    if not (source / "__main__.py").is_file():
        raise FileNotFoundError(f"{source}/__main__.py")
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        members = {f"fleetlift_agent/{path.relative_to(source)}": path.read_bytes() for path in source.rglob("*.py")}
        members["__main__.py"] = MAIN
        for name in sorted(members):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o100644 << 16
            archive.writestr(info, members[name])
    data = buffer.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())
