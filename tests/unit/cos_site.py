# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's COS on a real socket of this machine, and the vendor's unmodified SDK pointed at it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from qcloud_cos import CosConfig, CosS3Client

from lab.cos.faults import Fault
from lab.cos.server import APPID, CosServer

REGION = "ap-guangzhou"
SECRET_ID = "AKIDlaboratory0000000000000000000000"
SECRET_KEY = "labor-secret-key-never-to-be-seen"
BUCKET = f"images-{APPID}"
MIB = 1024 * 1024


class CosSite:
    """A running COS with one bucket; ``offset`` seconds are added to its clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.offset = 0.0
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = listening.getsockname()[:2]
        self.endpoint = f"http://127.0.0.1:{self.address[1]}"
        self.server = CosServer(
            listening,
            directory / "cos",
            {SECRET_ID: SECRET_KEY},
            region=REGION,
            clock=lambda: time.time() + self.offset,
            request_log=directory / "cos-requests.jsonl",
        )
        self.server.start()
        self.server.store.create_bucket(BUCKET, "private")

    def close(self) -> None:
        """Stop answering."""
        self.server.close()

    def sdk(self, **options: Any) -> CosS3Client:
        """The vendor's client, without retries of its own; options are those of CosConfig."""
        config: dict[str, Any] = {"SecretId": SECRET_ID, "SecretKey": SECRET_KEY, **options}
        return CosS3Client(
            CosConfig(Region=REGION, Scheme="http", IP=self.address[0], Port=self.address[1], **config), retry=0
        )

    def fault(self, kind: str, **options: Any) -> None:
        """Have a fault befall the next requests."""
        self.server.faults.add(Fault(kind, **options))

    def requests(self, action: str | None = None) -> list[dict[str, Any]]:
        """The log of all requests so far, or of those that did ``action``."""
        lines = (self.directory / "cos-requests.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [entry for entry in found if action in (None, entry["action"])]

    def received(self) -> int:
        """Bytes of bodies that were received."""
        return int(self.server.traffic.figures()["bytes_received"])

    def content(self, key: str) -> bytes:
        """The bytes of an object, read without HTTP."""
        from lab.cos.blobs import read

        found = self.server.store.object(BUCKET, key)
        return b"".join(read(found.blobs, 0, found.size))

    def files(self) -> int:
        """How many files COS keeps."""
        return len(list((self.directory / "cos").iterdir()))
