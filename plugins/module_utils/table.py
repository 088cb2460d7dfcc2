# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows of text as a table."""

from __future__ import annotations

from collections.abc import Sequence


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with a ruled head."""
    cells = [columns, *rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    made = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
    made.insert(1, "  ".join("─" * width for width in widths))
    return made
