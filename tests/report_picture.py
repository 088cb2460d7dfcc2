# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write docs/images/preflight-report.png: the report of a preflight, as a browser shows it.

``python tests/report_picture.py``, with the packages of tests/packages-browser.txt (``make picture`` installs them).
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "unit" / "plugins")]

import report_fleet  # noqa: E402
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.report_page import page  # noqa: E402
from browser import browser, load  # noqa: E402

PICTURE = REPOSITORY / "docs" / "images" / "preflight-report.png"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, browser(1000, 900) as driver:
        file = Path(directory) / "report.html"
        file.write_text(page(report_fleet.report()), encoding="utf-8")
        load(driver, file)
        picture = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(base64.b64decode(picture["data"]))
