# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cloud-init: a new instance id makes it run for the first time again, which must not change who the server is."""

from __future__ import annotations

from .finding import Finding
from .situation import Situation
from .tree import Tree

CONCERN = "cloud_init"
DIRECTORY = "/etc/cloud"
SAFE = f"{DIRECTORY}/cloud.cfg.d/zz-fleetlift.cfg"
DISABLED = f"{DIRECTORY}/cloud-init.disabled"

# The names are those of cloud-init's own module reference. The instance's data is offered by Tencent Cloud on a
# drive called config-2 and by no service that would have to be asked over the network.
SETTINGS = """\
# The server was migrated: on its new platform cloud-init sees a new instance, but it is the same server.
datasource_list: [ConfigDrive, NoCloud, None]
preserve_hostname: true
manage_etc_hosts: false
ssh_deletekeys: false
ssh_genkeytypes: []
ssh_pwauth: unchanged
disable_root: false
users: []
mounts: []
apt_preserve_sources_list: true
apt:
  preserve_sources_list: true
growpart:
  mode: "off"
resize_rootfs: false
network:
  config: disabled
"""


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    wish = situation.options.cloud_init
    if wish == "keep" or not tree.is_directory(DIRECTORY) or not tree.exists(f"{DIRECTORY}/cloud.cfg"):
        return []
    if wish == "disabled":
        tree.write(CONCERN, DISABLED, "")
    else:
        tree.write(CONCERN, SAFE, SETTINGS)
    return []
