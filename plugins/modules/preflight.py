# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Look at a source server before its migration
version_added: 0.1.0
description:
  - Reads what a source server is made of, its disks with what is on them above all, and finds what would stand in the
    way of a migration.
  - Reads F(/sys), F(/proc) and the first and last bytes of each disk. Needs no tool such as C(lsblk) on the server and
    changes nothing.
author:
  - Fleetlift contributors (@fleetlift)
extends_documentation_fragment:
  - fleetlift.cvm.attributes.read_only
  - fleetlift.cvm.attributes
options:
  services:
    description:
      - Names of the services that are to be stopped at the cutover. One that the server does not know is a finding.
    type: list
    elements: str
    default: []
  controller_time:
    description:
      - The time on the controller, in seconds since the epoch (UTC). A clock that differs by more than 300 seconds is a
        finding, more than a day a blocker.
      - If not set, the clock is not compared.
    type: float
  tools:
    description:
      - Names of programs to look for. Those that are on the server's path are in RV(facts.tools).
    type: list
    elements: str
    default: []
notes:
  - The module succeeds whatever it finds. A finding with RV(findings[].severity=blocker) says that a migration would
    fail.
  - Run it as root. Without, disks cannot be read and their content stays unknown.
seealso:
  - module: fleetlift.cvm.target_info
  - module: fleetlift.cvm.assess
"""

EXAMPLES = r"""
- name: Look at the source
  fleetlift.cvm.preflight:
    services: [nginx, postgresql]
    controller_time: "{{ lookup('ansible.builtin.pipe', 'date +%s') | float }}"
    tools: [rsync, update-initramfs]
  register: source

- name: Stop at what would fail later
  ansible.builtin.assert:
    that: source.findings | selectattr('severity', 'equalto', 'blocker') | length == 0
    fail_msg: "{{ source.findings }}"
"""

RETURN = r"""
facts:
  description: What the server is made of. Sizes are in bytes.
  returned: always
  type: dict
  contains:
    hostname:
      description: The name of the server.
      type: str
      sample: web1
    ssh_host_keys:
      description: Its public SSH host keys, without comments.
      type: list
      elements: str
      sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample]
    kernel:
      description: The release of the running kernel.
      type: str
      sample: 6.1.0-18-amd64
    architecture:
      description: The architecture of the running kernel.
      type: str
      sample: x86_64
    firmware:
      description: What booted the server, V(bios) or V(uefi).
      type: str
      sample: bios
    distribution:
      description: Its C(id), C(version) and C(pretty) name, from F(/etc/os-release).
      type: dict
      sample: {id: debian, version: "12", pretty: Debian GNU/Linux 12 (bookworm)}
    python:
      description: The C(version) and C(executable) of the Python that this module ran with.
      type: dict
      sample: {version: 3.11.2, executable: /usr/bin/python3}
    memory:
      description: The C(total) and C(available) memory.
      type: dict
      sample: {total: 2063597568, available: 1610612736}
    boot_id:
      description: The kernel's id of this boot.
      type: str
      sample: 0b4f8a5e-5d5c-4f3e-9d0e-0a5b7a6f7f10
    clock:
      description:
        - The time as C(epoch), in seconds UTC, and whether the kernel says that it is kept by NTP as C(synchronised),
          which is null where the kernel does not tell.
      type: dict
      sample: {epoch: 1767225600, synchronised: true}
    tools:
      description: Those of O(tools) that were found.
      type: list
      elements: str
      sample: [rsync]
    service_manager:
      description: What manages services, V(systemd), V(openrc), V(sysv) or V(none).
      type: str
      sample: systemd
    disks:
      description: Every disk with a medium. Loop devices, memory disks, optical drives and volumes are none.
      type: list
      elements: dict
      contains:
        name:
          description: The kernel's name.
          type: str
          sample: sda
        path:
          description: The device node.
          type: str
          sample: /dev/sda
        size:
          description: The size of the disk.
          type: int
          sample: 42949672960
        serial:
          description: The serial number, if the disk has one.
          type: str
          sample: S4EVNX0R123456
        wwn:
          description: The world-wide name, if the disk has one.
          type: str
          sample: naa.5002538e40a5b6c7
        model:
          description: The model, if the disk has one.
          type: str
          sample: Samsung SSD 860
        logical_block_size:
          description: The unit in which the disk is addressed.
          type: int
          sample: 512
        removable:
          description: Whether the medium can be taken out.
          type: bool
          sample: false
        read_only:
          description: Whether the disk cannot be written to.
          type: bool
          sample: false
        partition_table:
          description: The kind, V(gpt), V(dos) or V(none), or null when the disk cannot be read.
          type: str
          sample: gpt
        partitions:
          description: The partitions as the kernel sees them, by number.
          type: list
          elements: dict
          sample: [{name: sda1, path: /dev/sda1, number: 1, start: 1048576, size: 42947575808}]
        filesystems:
          description:
            - What the disk, its partitions and the volumes on them hold, with the type in the words of C(blkid).
            - Sizes are null where nothing is mounted.
          type: list
          elements: dict
          sample:
            - device: /dev/sda1
              type: ext4
              uuid: 6c9e2f0e-5a3f-4b6b-8d7e-3f1a2b4c5d6e
              label: null
              mountpoints: [/]
              size_bytes: 42141450240
              used_bytes: 4294967296
              free_bytes: 37846482944
        holders:
          description: The volumes made of this disk, with the type V(lvm), V(md), V(crypt), V(multipath) or V(dm).
          type: list
          elements: dict
          sample: [{name: dm-0, path: /dev/dm-0, type: lvm, volume: vg-root, size: 42945478656}]
        swap:
          description: The devices on this disk that are in use as swap space.
          type: list
          elements: str
          sample: [/dev/sda2]
        mounted:
          description: Whether a filesystem on this disk is mounted.
          type: bool
          sample: true
        system:
          description: Whether this disk holds the root filesystem.
          type: bool
          sample: true
findings:
  description: What stands in the way of a migration, worst first.
  returned: always
  type: list
  elements: dict
  contains:
    code:
      description: A stable name for the kind of finding.
      type: str
      sample: CLOCK_SKEW
    severity:
      description: One of V(blocker), V(warning) and V(note).
      type: str
      sample: warning
    subject:
      description: What it is about.
      type: str
      sample: clock
    cause:
      description: What was found.
      type: str
      sample: The clock of the source is 7200 seconds behind the controller's.
    action:
      description: What to do next.
      type: str
      sample: Set the clock of the source, or that of the controller, by NTP.
    evidence:
      description: What was looked at.
      type: dict
      sample: {source: 1767218400, skew: -7200}
"""

import ctypes
import errno
import fcntl
import glob
import os
import platform
import sys
import time
import uuid

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.process import get_bin_path
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import by_severity
from ansible_collections.fleetlift.cvm.plugins.module_utils.source_facts import (
    HEAD_BYTES,
    TAIL_BYTES,
    find_disks,
    host_findings,
    parse_meminfo,
    parse_os_release,
)

# include/uapi/linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args), 1024 bytes, the fsid at 16.
BTRFS_IOC_FS_INFO = 0x8400941F

# adjtimex(2): the answer when the clock is not kept by anyone. struct timex has 208 bytes at most.
TIME_ERROR = 5
TIMEX_BYTES = 512


class LiveSystem:
    """The server that this module runs on."""

    def text(self, path: str) -> str | None:
        data = self.data(path)
        return None if data is None else data.decode("utf-8", "surrogateescape").strip(" \n\0")

    def data(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            # Absent on this kind of device or kernel, or the device does not answer: unknown in either case.
            return None

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def ends(self, path: str, size: int) -> tuple[bytes, bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, HEAD_BYTES, 0), os.pread(fd, TAIL_BYTES, max(0, size - TAIL_BYTES))
        finally:
            os.close(fd)

    def usage(self, mountpoint: str) -> tuple[int, int] | None:
        try:
            status = os.statvfs(mountpoint)
        except OSError:
            # Hidden under a later mount, or not for this user.
            return None
        return status.f_blocks * status.f_frsize, status.f_bfree * status.f_frsize

    def btrfs_id(self, mountpoint: str) -> str | None:
        try:
            fd = os.open(mountpoint, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Hidden under a later mount, or not for this user.
            return None
        try:
            return str(uuid.UUID(bytes=fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, bytes(1024))[16:32]))
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise
        finally:
            os.close(fd)


def service_manager(module: AnsibleModule) -> str:
    """The kind of service manager that runs this server."""
    if os.path.isdir("/run/systemd/system"):
        return "systemd"
    if module.get_bin_path("rc-service"):
        return "openrc"
    return "sysv" if os.path.isdir("/etc/init.d") else "none"


def knows_service(module: AnsibleModule, manager: str, name: str) -> bool:
    """Whether the service manager could stop the service *name*."""
    if not name or "/" in name or name.startswith("-"):
        return False
    if manager == "systemd":
        command = [module.get_bin_path("systemctl", required=True), "show", "--property=LoadState", "--", name]
        return bool(module.run_command(command)[1].strip() == "LoadState=loaded")
    if manager == "openrc":
        return bool(module.run_command([module.get_bin_path("rc-service", required=True), "--exists", name])[0] == 0)
    return manager == "sysv" and os.access(os.path.join("/etc/init.d", name), os.X_OK)


def clock_synchronised() -> bool | None:
    """Whether the kernel says that its clock is kept by NTP; None when it does not tell."""
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return None if answer < 0 else answer != TIME_ERROR


def has_tool(name: str) -> bool:
    """Whether the program *name* is on the path, which always includes that of the super-user."""
    try:
        get_bin_path(name)
    except ValueError:
        return False
    return True


def ssh_host_keys() -> list[str]:
    """The server's public SSH host keys, type and key without comment: they go where its disk goes."""
    keys = []
    for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub")):
        with open(path, encoding="ascii", errors="replace") as file:
            keys.append(" ".join(file.read().split()[:2]))
    return keys


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str", "default": []},
            "controller_time": {"type": "float"},
            "tools": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    system = LiveSystem()
    epoch = time.time()
    manager = service_manager(module)
    memory = parse_meminfo(system.text("/proc/meminfo") or "")
    disks, findings = find_disks(system)
    findings += host_findings(
        root=os.geteuid() == 0,
        python=sys.version_info[:3],
        memory=memory,
        epoch=epoch,
        controller_time=module.params["controller_time"],
        disks=disks,
        unknown_services=[name for name in module.params["services"] if not knows_service(module, manager, name)],
    )
    facts = {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "firmware": "uefi" if system.exists("/sys/firmware/efi") else "bios",
        "distribution": parse_os_release(system.text("/etc/os-release") or system.text("/usr/lib/os-release") or ""),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "memory": memory,
        "ssh_host_keys": ssh_host_keys(),
        "boot_id": system.text("/proc/sys/kernel/random/boot_id"),
        "clock": {"epoch": epoch, "synchronised": clock_synchronised()},
        "tools": [name for name in module.params["tools"] if has_tool(name)],
        "service_manager": manager,
        "disks": disks,
    }
    module.exit_json(changed=False, facts=facts, findings=[finding.record() for finding in by_severity(findings)])


if __name__ == "__main__":
    main()
