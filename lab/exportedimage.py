# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The image of a server's disk, as somebody exports it from another platform: an installed Debian on IDE and e1000."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import bootdisk, guestimage
from lab.description import Source, SourceDisk, Virtual

# Where the server was before; nothing of the lab answers there.
ADDRESS = "192.168.77.10"
GATEWAY = "192.168.77.1"


@dataclass(frozen=True)
class ExportedImage:
    """``host`` is the host name, ``size`` the disk's in bytes; table and initramfs as in a lab's description."""

    host: str
    size: int
    table: str = "mbr"
    initramfs: str = "most"

    def build(self, file: Path, cache: Path, authorized_key: str) -> None:
        """Make the raw image ``file``, which a web server answers from. The system comes from the lab's ``cache``."""
        image = guestimage.build(cache, print)
        disk = SourceDisk("sda", "EXPORTED", self.size, "ext4", "/")
        virtual = Virtual("bios", "ide", "e1000", self.table, False, False, self.initramfs)
        source = Source(self.host, ADDRESS, "web", (disk,), virtual)
        with tempfile.TemporaryDirectory(dir=file.resolve().parent, prefix=".image-") as scratch:
            (made,) = bootdisk.build(source, virtual, Path(scratch), image, GATEWAY, authorized_key)
            made.replace(file)
