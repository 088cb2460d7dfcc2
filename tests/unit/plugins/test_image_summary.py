# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table at the end of an offline run."""

from __future__ import annotations

from ansible_collections.fleetlift.cvm.plugins.module_utils.image_summary import row, table

GIB = 1 << 30
JOURNAL = {
    "phases": [
        {
            "phase": "check",
            "status": "ok",
            "data": {"image": {"format": "vmdk", "file_size": GIB, "virtual_size": 2 * GIB}},
        },
        {"phase": "upload", "status": "ok", "data": {"bytes_sent": GIB // 2, "bytes_kept": GIB // 2}},
        {"phase": "import", "status": "ok", "data": {"waited_seconds": 61.2}},
        {"phase": "health", "status": "ok", "data": {"instance_id": "ins-1", "address": "203.0.113.9"}},
    ]
}
FAILED = {
    "phases": [{"phase": "check", "status": "failed", "data": {"message": "IMAGE_CORRUPT: cut off. Next: export it."}}]
}


def test_table_tells_how_far_each_image_came_and_why_one_stopped():
    lines = table([row("web1", JOURNAL), row("web2", FAILED), row("web3", None)])
    assert lines[0].split() == [
        "image", "format", "file", "disk", "reached", "uploaded", "kept", "import", "instance", "address",
    ]  # fmt: skip
    assert lines[2].split() == [
        "web1", "vmdk", "1.0", "GiB", "2.0", "GiB", "health", "512", "MiB", "512", "MiB", "1:01", "ins-1",
        "203.0.113.9",
    ]  # fmt: skip
    assert lines[3].split()[:5] == ["web2", "-", "-", "-", "check"]
    assert "not begun" in lines[4]
    assert lines[5] == "web2: IMAGE_CORRUPT: cut off. Next: export it."
