# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""fleetlift.cvm.disk_from_object: sign a link on the controller, have the agent in the landing read it onto a disk."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..module_utils.cloud.client import Access
from ..module_utils.cloud.cos_client import CosClient, check_names
from ..module_utils.findings import refuse
from ..plugin_utils import agent_bundle, agent_deployment
from ..plugin_utils.agent_action import AgentAction
from ..plugin_utils.remote_agent import AgentRefusal, RemoteAgent, RemoteError, parse_reply

CHUNK = 4 * 1024 * 1024
ENVIRONMENT = {
    "secret_id": "TENCENTCLOUD_SECRET_ID",
    "secret_key": "TENCENTCLOUD_SECRET_KEY",
    "region": "TENCENTCLOUD_REGION",
}
# How the formats of images begin that are not the disk itself (vhd says so at its end, too).
OTHER_FORMATS = (b"QFI\xfb", b"KDMV", b"conectix", b"# Disk Desc", b"vhdxfile", b"<<< ")


class ActionModule(AgentAction):
    MODULE = "disk_from_object"

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        file = Path(arguments["path"]).expanduser()
        size, digest = measured(file)
        order = {"serial": arguments["disk_id"], "size": size, "sha256": digest, "check": self.check_mode}
        order.update(self.link(arguments, size))
        agent = self.agent(arguments)
        # Also in check mode: it is in RAM, and the disk cannot be looked at without it.
        python = agent_deployment.find_interpreter(agent, arguments["python"], arguments["runtime"], check_mode=False)
        agent = RemoteAgent(agent.shell, arguments["migration"], python)
        agent_deployment.deploy_program(agent, agent_bundle.build(agent_bundle.source_directory()))
        command = f"{shlex.quote(agent.python)} {agent.directory}/agent.pyz write"
        answer = agent.shell.run(command, stdin=json.dumps(order).encode())
        reply = parse_reply(answer)
        if reply is None:
            raise RemoteError(
                "AGENT_UNREADABLE",
                "the writing of the disk ended without a result.",
                "run the play again: it begins anew.",
                subject=self.host,
                evidence=answer.stderr.strip()[-500:],
            )
        if not reply.get("ok"):
            raise AgentRefusal(reply["error"])
        return {"changed": reply["changed"], "seconds": reply["seconds"], "size": size}

    def link(self, arguments: dict[str, Any], size: int) -> dict[str, str]:
        """The signed link to the object, and where to connect for it. Raises Refusal for another object."""
        check_names(arguments["bucket"], arguments["key"])
        given = {name: arguments[name] or os.environ.get(variable, "") for name, variable in ENVIRONMENT.items()}
        client = CosClient(Access(**given, token=arguments["token"]), cos_endpoint=arguments["cos_endpoint"])
        head = client.head(arguments["bucket"], arguments["key"])
        if head is None or head.size != size:
            raise refuse(
                "COS_OBJECT_NOT_FOUND",
                arguments["key"],
                f"The object {arguments['key']} is {'missing' if head is None else f'{head.size} bytes long'},"
                f" not the file of {size} bytes.",
                "Upload the file with fleetlift.cvm.cos_object, then run again.",
            )
        url = client.presign(arguments["bucket"], arguments["key"], arguments["url_life"])
        connect = urlsplit(arguments["cos_endpoint"]).netloc if arguments["cos_endpoint"] else ""
        return {"url": url, "connect": connect}


def measured(file: Path) -> tuple[int, str]:
    """Size and SHA-256 of a raw image. Raises Refusal for what is none."""
    digest, size = hashlib.sha256(), 0
    try:
        with file.open("rb") as stream:
            while piece := stream.read(CHUNK):
                if not size and piece.startswith(OTHER_FORMATS):
                    raise refuse(
                        "IMAGE_DATA_NOT_RAW",
                        str(file),
                        f"{file} is not the disk itself but an image format, which a landing cannot read.",
                        "Convert it to raw (qemu-img convert -O raw), or use fleetlift_offline_data_disks: import.",
                    )
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise refuse(
            "IMAGE_UNREADABLE", str(file), f"{file} cannot be read: {error.strerror}.", "Correct path."
        ) from error
    return size, digest.hexdigest()
