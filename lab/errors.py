# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one error a user of the lab can cause: what happened, and what to do about it."""

from __future__ import annotations


class LabError(Exception):
    """A failure with its cause and the user's next step."""

    def __init__(self, cause: str, action: str = "") -> None:
        super().__init__(cause if not action else f"{cause}. {action}")
        self.cause = cause
        self.action = action
