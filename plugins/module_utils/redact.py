# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Texts without the secrets that others put into them."""

from __future__ import annotations

import re

LONGEST = 500


def without_queries(text: str) -> str:
    """*text*, shortened, without the queries of URLs in it: a presigned one is a secret."""
    return re.sub(r"\?\S+", "?…", text)[:LONGEST]
