# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sectors that `sfdisk` 2.38 wrote for two partition tables, by their position in bytes (zlib, base64)."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

TABLES: dict[str, dict[int, str]] = {
    "dos": {
        0: "eNpjYBgFQxHkW66KA1IKigzN89kkGTiAbAc2BoYj2lJNb7mVGCYA2QxMDAwb+ZVZ9ewKGA4AFRwQwjAldBUA1N8LGw==",
        293601280: "eNpjYBgFQxh8ElButucxZhAAsg8wMzAoG5iw8hvFMnCwMDBwcBHUHroKAPAUBUE=",
        428867584: "eNpjYBgFQxi4CJo08xvFMnCAOFwkaw9dBQBt6AK8",
    },
    "gpt": {
        0: (
            "eNpjYBgFQxkwMbz7//8/I5D1X16GZN2hq1zdPBUCHINCGBgYGWKAIk98nvuDZBihKuCmckCoe1D+9MTfT1jk/VV7lYOy9+cuWcUE"
            "Vd8AxV/uxf8fjZ3BD9bbHuNvbily76u0zbzhXvvkyPucBSc2OTYv5+d7Knfe7QnDA1FIOuiXoov94XIpEVLzvWd2CukkPUsNcIel"
            "u//ubPSxny3d46O4R8KexX23v5b2LmaYwAb1Pwdd7F/0QnvBzAcOHxuvxpsLcAidZjgAsff/fiG62N88OcPfwtOvqTl/ftGn+kMV"
            "DAnCEPvvC49mlmEIAAYycNg="
        ),
    },
}


def write_table(image: Path, label: str) -> None:
    """Give the image the recorded table."""
    with image.open("r+b") as file:
        # The whole array of GUID partition entries counts, and most of it is zero.
        file.write(bytes(34 * 512))
        for position, sectors in TABLES[label].items():
            file.seek(position)
            file.write(zlib.decompress(base64.b64decode(sectors)))
