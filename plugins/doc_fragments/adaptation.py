# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the modules that adapt a copy to its new hardware take alike: that of a server, and that of an image."""

    DOCUMENTATION = r"""
options:
  skip:
    description: Concerns to leave alone.
    type: list
    elements: str
    choices: [partition_table, fstab, crypttab, mdadm, lvm, network, nic_names, guest_tools, cloud_init,
              kernel_command_line, initramfs, boot_loader, selinux]
    default: []
  root:
    description: The root filesystem, as C(UUID=...), when the copy holds several systems.
    type: str
  network:
    description: How the first NIC gets its address.
    type: dict
    default: {}
    suboptions:
      mode:
        description: V(keep) leaves the network's configuration as it is.
        type: str
        choices: [dhcp, static, keep]
        default: dhcp
      nic:
        description:
          - The NIC's name where a configuration needs one. By default C(eth0), for which the kernel's own naming is
            switched on if it is not.
        type: str
      address:
        description: The address with its prefix length, such as C(10.0.0.5/24). Required for V(static).
        type: str
      gateway:
        description: The default route.
        type: str
      dns:
        description: Name servers.
        type: list
        elements: str
        default: []
  consoles:
    description: Consoles that the kernel shall have, added in this order where they are missing.
    type: list
    elements: str
    default: []
  cloud_init:
    description:
      - What becomes of cloud-init where it is installed. V(safe) keeps it from changing host keys, users, host name,
        network and package sources when it takes the target for a new instance.
    type: str
    choices: [safe, disabled, keep]
    default: safe
  command_timeout:
    description: How long one program of the copy may take, such as the one that makes an initramfs, in seconds.
    type: int
    default: 1800
"""
