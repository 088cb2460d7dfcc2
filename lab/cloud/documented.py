# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the vendor documents of each action served here: version, rate, required parameters, error codes.

documented.json was taken from TCCLI 3.1.189.1 (required parameters), tencentcloud-sdk-go-intl-en at
badc16e87d32730bcf830deeaefcaaf0039395d8 (error codes per action) and the products' API pages (requests per second).
DeleteSecurityGroup is in none of these lists: its codes are those of its product that fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ActionFacts:
    """One action of one product."""

    requests_per_second: int
    required: list[str]
    errors: frozenset[str]


@dataclass(frozen=True)
class ProductFacts:
    """One product, by the name in its endpoint."""

    version: str
    actions: Mapping[str, ActionFacts]


def _load() -> Mapping[str, ProductFacts]:
    text = Path(__file__).with_name("documented.json").read_text(encoding="utf-8")
    return {
        product: ProductFacts(
            facts["version"],
            {
                name: ActionFacts(item["requests_per_second"], item["required"], frozenset(item["errors"]))
                for name, item in facts["actions"].items()
            },
        )
        for product, facts in json.loads(text).items()
    }


PRODUCTS = _load()
