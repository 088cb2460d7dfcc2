# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The distributions that the vendor lists for its online migration, and those that it does not."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .findings import Finding

# tencentcloud.com/document/product/213/44340, "include but not limited to": id of os-release(5), major versions.
LISTED: Mapping[str, tuple[int, ...]] = {
    "centos": (5, 6, 7, 8),
    "ubuntu": (10, 12, 14, 16, 18, 20),
    "debian": (7, 8, 9, 10),
    "sles": (11, 12, 15),
    "opensuse": (42,),
    "opensuse-leap": (42,),
    "amzn": (1, 2, 2014, 2015, 2016, 2017, 2018),
    "rhel": (5, 6, 7, 8),
    "ol": (5, 6, 7, 8),
}


def is_listed(distribution: Mapping[str, str]) -> bool:
    """Whether the vendor's list names this id and version."""
    major = re.match(r"\d+", distribution.get("version") or "")
    return major is not None and int(major[0]) in LISTED.get(distribution.get("id", ""), ())


def distribution_finding(distribution: Mapping[str, str]) -> Finding | None:
    """A word about a distribution that the vendor's list does not name."""
    if is_listed(distribution):
        return None
    return Finding(
        "DISTRIBUTION_UNLISTED",
        "warning",
        distribution.get("pretty") or distribution.get("id") or "the distribution",
        f"{distribution.get('pretty') or 'The distribution'} is not on the vendor's list for online migration, which is"
        " no complete one by its own words and names nothing released after 2020.",
        "Migrate a server of this kind for a test before the others.",
        {"id": distribution.get("id"), "version": distribution.get("version")},
    )
