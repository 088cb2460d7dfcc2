# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a disk is connected to its server."""

from __future__ import annotations


def transport_of(sysfs_path: str) -> str:
    """How a disk is connected, from where its device is in /sys (Documentation/admin-guide/sysfs-rules.rst)."""
    for part, transport in (
        ("/session", "iscsi"),
        ("/rport-", "fc"),
        ("/nvme-fabrics/", "nvme-fabrics"),
        ("/usb", "usb"),
        ("/virtio", "virtio"),
        ("/vbd-", "xen"),
        ("/nvme/", "nvme"),
        ("/ata", "ata"),
        ("/host", "scsi"),
    ):
        if part in sysfs_path:
            return transport
    return "other"
