# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the vendor's support needs to look into a failure, in a file that only its owner can read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .redact import without_queries

SCHEMA = 1
_SECRET = re.compile(r"secret|password|token|signature|url", re.IGNORECASE)


def write_evidence(directory: str, name: str, content: Mapping[str, Any]) -> str:
    """Write *content* without what may be a secret, and return the file's path. Raises ``OSError``."""
    place = Path(directory).expanduser()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    moment = datetime.now(timezone.utc)
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    file = place / f"{safe}-{moment.strftime('%Y%m%dT%H%M%SZ')}.json"
    document = {"schema": SCHEMA, "written": moment.isoformat(timespec="seconds"), **cleaned(content)}
    new = file.with_name(f"{file.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=1, ensure_ascii=False, default=str)
        stream.write("\n")
    new.replace(file)
    return str(file)


def cleaned(value: Any) -> Any:
    """*value* without entries whose names say that they are secret, and without the queries of URLs."""
    if isinstance(value, Mapping):
        return {str(key): cleaned(item) for key, item in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [cleaned(item) for item in value]
    return without_queries(value) if isinstance(value, str) else value
