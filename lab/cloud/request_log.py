# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A line of JSON for each request, without secrets."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

REDACTED = "***"

# A presigned URL lets whoever has it read the image.
_SECRET = re.compile(r"password|secret|token|userdata|imageurl", re.IGNORECASE)
_NOT_SECRET = frozenset({"ClientToken"})


class RequestLog:
    """Appends to a file of mode 0600; None writes nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._stream = None
        if path is not None:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._stream = os.fdopen(descriptor, "a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def write(self, *, product: str, action: str, request_id: str, parameters: Any, code: str, seconds: float) -> None:
        """Note one request; code is OK or the error code."""
        entry = {
            "time": time.time(),
            "product": product,
            "action": action,
            "request_id": request_id,
            "parameters": redact(parameters),
            "code": code,
            "seconds": round(seconds, 6),
        }
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        with self._lock:
            if self._stream is not None:
                self._stream.write(line)
                self._stream.flush()


def redact(value: Any) -> Any:
    """The same structure with every secret replaced, whatever its type."""
    if isinstance(value, dict):
        return {
            name: REDACTED if _SECRET.search(name) and name not in _NOT_SECRET else redact(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [redact(item) for item in value]
    return value
