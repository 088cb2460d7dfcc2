# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The API's request rates, kept by all processes of this controller together.

Each module of each host is a process of its own, and the vendor counts the requests of one action of an account. What
the processes share is a small file for each action and key, which says when the next request may begin; it is held by
one process at a time, and only for as long as it takes to read and to write it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Requests per second and account: tencentcloud.com/document/api/213/15689, 362/15634, 215/15755. The lowest of each
# service stands for what is not listed.
SERVICE_RATES = {"cvm": 10, "cbs": 20, "vpc": 100}
RATES = {
    "DescribeDisks": 100,
    "DescribeImages": 40,
    "DescribeInstances": 40,
    "EnterRescueMode": 20,
    "ExitRescueMode": 20,
}
# The rest is for whoever else uses the account, such as its console.
PART = 0.8
# Seconds for which nobody asks after a request was turned away all the same: the vendor counts by the second.
REST = 1.0
# Nobody waits longer than this, in seconds. A later time is one of before the last boot, or nobody's.
LONGEST = 120.0


def rate_of(service: str, action: str) -> float:
    """Requests per second that this collection sends of *action* at most."""
    return PART * RATES.get(action, SERVICE_RATES.get(service, min(SERVICE_RATES.values())))


class Unpaced:
    """Requests that nobody holds back."""

    def wait(self, service: str, action: str) -> None:
        """Return when a request may begin."""

    def refused(self, service: str, action: str) -> None:
        """Note that a request was turned away for its rate."""


class SharedPace(Unpaced):
    """Spaces the requests of all processes that share *directory* and *key*, the name of an account.

    The clock is the machine's own, so that it is the same for all of them; times in seconds.
    """

    def __init__(
        self,
        directory: Path,
        key: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._directory = directory
        self._key = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._clock = clock
        self._sleep = sleep

    def wait(self, service: str, action: str) -> None:
        with self._held(action) as (free_at, keep):
            now = self._clock()
            begins = max(now, free_at)
            keep(begins + 1 / rate_of(service, action))
        if begins > now:
            self._sleep(begins - now)

    def refused(self, service: str, action: str) -> None:
        with self._held(action) as (free_at, keep):
            keep(max(free_at, self._clock() + REST))

    @contextmanager
    def _held(self, action: str) -> Iterator[tuple[float, Callable[[float], None]]]:
        """When the next request may begin, and how to note another time for it. For this process alone."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._directory / f"{self._key}-{action}", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            noted = os.pread(descriptor, 8, 0)
            free_at = struct.unpack("d", noted)[0] if len(noted) == 8 else 0.0
            if not free_at <= self._clock() + LONGEST:
                free_at = 0.0
            yield free_at, lambda until: _note(descriptor, until)
        finally:
            os.close(descriptor)


def _note(descriptor: int, until: float) -> None:
    os.pwrite(descriptor, struct.pack("d", until), 0)


def shared_pace(account: str) -> Unpaced:
    """The pace of this user's processes for *account*.

    Without a directory that is this user's own nobody is held back: a request that the API turns away for its rate is
    repeated anyhow.
    """
    directory = Path(tempfile.gettempdir()) / f"fleetlift-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return Unpaced()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return SharedPace(directory, account) if own and os.access(directory, os.W_OK) else Unpaced()
