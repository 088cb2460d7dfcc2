# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults on purpose: the next requests of a kind are refused, cut off or damaged on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

REFUSALS = ("slow_down", "internal_error")
KINDS = (*REFUSALS, "cut", "corrupt")
METHODS = ("PUT", "GET", "POST", "HEAD", "DELETE")


@dataclass(frozen=True)
class Fault:
    """What happens to the next ``count`` requests with ``method`` (None is any).

    ``slow_down`` and ``internal_error`` refuse with 503 and 500. ``cut`` breaks the connection with a reset after
    ``after`` bytes of the body have passed, ``corrupt`` inverts the byte at offset ``after`` of the body. Only a
    request whose body is longer than ``after`` is cut or corrupted; ``after`` is in bytes.
    """

    kind: str
    count: int = 1
    method: str | None = None
    after: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a fault is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"a method is one of {', '.join(METHODS)}, not {self.method!r}")
        if self.count < 1 or self.after < 0:
            raise ValueError("count is at least 1 and after is not negative")

    def meets(self, offset: int, length: int) -> bool:
        """Whether the ``length`` bytes of the body from ``offset`` on hold the byte at ``after``."""
        return offset <= self.after < offset + length

    def inverted(self, piece: bytes | memoryview, offset: int) -> bytearray:
        """A copy of ``piece``, which begins at ``offset`` of the body, with the byte at ``after`` inverted."""
        damaged = bytearray(piece)
        damaged[self.after - offset] ^= 0xFF
        return damaged


class Faults:
    """The faults that still wait for their request; the oldest that fits goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Wait for the next requests that fit."""
        with self._lock:
            self._waiting.append(fault)

    def clear(self) -> None:
        """Let every further request pass."""
        with self._lock:
            self._waiting.clear()

    def waiting(self) -> list[Fault]:
        """Those that have not met all their requests yet."""
        with self._lock:
            return list(self._waiting)

    def take_refusal(self, method: str) -> Fault | None:
        """The refusal that meets a request, None for most."""
        return self._take(lambda fault: fault.kind in REFUSALS and fault.method in (None, method))

    def take_damage(self, method: str, length: int) -> Fault | None:
        """What befalls the ``length`` bytes of a body on the way, in either direction; None for most."""
        return self._take(
            lambda fault: fault.kind not in REFUSALS and fault.method in (None, method) and fault.after < length
        )

    def _take(self, fits: Callable[[Fault], bool]) -> Fault | None:
        with self._lock:
            for index, fault in enumerate(self._waiting):
                if fits(fault):
                    if fault.count > 1:
                        self._waiting[index] = replace(fault, count=fault.count - 1)
                    else:
                        del self._waiting[index]
                    return fault
        return None
