# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A window: the time of day, and the days, in which something may begin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FORM = "[DAYS ]HH:MM-HH:MM[ ZONE], for example '22:00-05:00 Europe/Berlin' or 'Sat,Sun 08:00-18:00'"

_PATTERN = re.compile(
    r"(?:(?P<days>[A-Za-z]{3}(?:[-,][A-Za-z]{3})*)\s+)?"
    r"(?P<opens>\d{1,2}:\d{2})\s*-\s*(?P<closes>\d{1,2}:\d{2})"
    r"(?:\s+(?P<zone>\S+))?"
)


@dataclass(frozen=True)
class Window:
    """Opens on each of ``days`` (0 is Monday) at ``opens`` and closes at ``closes``, the day after if that is earlier.

    Times are wall-clock times of ``zone``; an hour that a change of the clocks skips or repeats is skipped or repeated.
    """

    days: frozenset[int]
    opens: time
    closes: time
    zone: tzinfo
    text: str

    def is_open(self, now: datetime) -> bool:
        """Whether *now*, an aware time, lies in the window; its closing minute does not."""
        local = now.astimezone(self.zone)
        clock = local.time()
        today, yesterday = local.weekday() in self.days, (local.weekday() - 1) % 7 in self.days
        if self.opens < self.closes:
            return today and self.opens <= clock < self.closes
        return (today and clock >= self.opens) or (yesterday and clock < self.closes)

    def next_opening(self, now: datetime) -> datetime:
        """When the window is open next: *now* itself while it is open."""
        if self.is_open(now):
            return now
        local = now.astimezone(self.zone)
        for ahead in range(9):
            day = local.date() + timedelta(days=ahead)
            # In UTC before it is compared: two times of one zone compare by their clocks, which a change sets back.
            opening = datetime.combine(day, self.opens, self.zone).astimezone(timezone.utc)
            if day.weekday() in self.days and opening >= now:
                return opening.astimezone(self.zone)
        raise AssertionError("a window opens at least once a week")

    def __str__(self) -> str:
        return self.text


def parse_window(text: str) -> Window:
    """The window that *text* describes, in the form of :data:`FORM`; without a zone it is UTC.

    Raises ``ValueError`` with a sentence about what is wrong.
    """
    match = _PATTERN.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not of the form {FORM}")
    opens, closes = _clock(match["opens"]), _clock(match["closes"])
    if opens == closes:
        raise ValueError(f"{text!r} opens and closes at the same time; leave the window out for the whole day")
    days = frozenset(_days(match["days"])) if match["days"] else frozenset(range(7))
    return Window(days, opens, closes, _zone(match["zone"]), text.strip())


def _clock(text: str) -> time:
    hours, _colon, minutes = text.partition(":")
    if (int(hours), int(minutes)) == (24, 0):
        return time(0, 0)
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError(f"{text} is not a time of day")
    return time(int(hours), int(minutes))


def _days(text: str) -> Iterator[int]:
    for part in text.split(","):
        names = [name.title() for name in part.split("-")]
        unknown = [name for name in names if name not in DAYS]
        if unknown or len(names) > 2:
            raise ValueError(f"{part!r} is not a day or two joined by a hyphen; days are {', '.join(DAYS)}")
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        yield from ((first + step) % 7 for step in range((last - first) % 7 + 1))


def _zone(name: str | None) -> tzinfo:
    if name is None or name.upper() in ("UTC", "Z"):
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"the time zone {name!r} is not known here; write it as in Europe/Berlin, and see that the package tzdata"
            " is installed on the controller"
        ) from error
