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
  sample_seconds:
    description:
      - How long the disks are watched, at least, to tell how much is written to them. With V(0) they are not.
    type: float
    default: 1.0
  probe_address:
    description:
      - Where to measure the path to, usually the address of the target. Whatever listens at O(probe_port) there must
        read what comes and throw it away, as C(socat -u TCP-LISTEN:5201,fork /dev/null) does.
      - Before the landing there is nothing on the target that would, so that nothing is measured if this is not set.
    type: str
  probe_port:
    description:
      - The port to measure the path to.
    type: int
  probe_bytes:
    description:
      - The most bytes to send for the measurement, which also ends after five seconds.
    type: int
    default: 8388608
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
    probe:
      description:
        - The measurement of the path to O(probe_address).
      type: dict
      contains:
        bytes_per_second:
          description: What the path carried; null when it was not measured.
          type: float
          sample: 11796480.0
        bytes:
          description: How many bytes the other end acknowledged.
          type: int
          sample: 8388608
        seconds:
          description: In how many seconds.
          type: float
          sample: 0.711
        address:
          description: The address of the other end, null when none was given.
          type: str
          sample: 203.0.113.11
        port:
          description: The port of the other end, null when none was given.
          type: int
          sample: 5201
        reason:
          description: Why it was not measured, null when it was.
          type: str
          sample: null
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
        used_bytes:
          description: What the mounted filesystems of this disk say is in use; null when none is mounted.
          type: int
          sample: 4294967296
        write_bytes_per_second:
          description:
            - How much was written to it while the module ran, O(sample_seconds) at least; null when it is not known.
          type: float
          sample: 524288.0
        write_bytes_per_second_since_boot:
          description: How much was written to it on average since the server booted; null when it is not known.
          type: float
          sample: 73728.0
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
from ansible_collections.fleetlift.cvm.plugins.module_utils.bandwidth_probe import Probe, measure, not_measured
from ansible_collections.fleetlift.cvm.plugins.module_utils.disk_activity import (
    parse_diskstats,
    parse_uptime,
    write_rate,
)
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

# The longest that the measurement of the path may take.
PROBE_SECONDS = 5.0


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


def probe(params: dict) -> Probe:
    """The measurement that the module's options ask for."""
    if not (params["probe_address"] and params["probe_port"]):
        return not_measured("nothing was named that would read what is sent")
    return measure(
        params["probe_address"],
        params["probe_port"],
        limit_bytes=params["probe_bytes"],
        limit_seconds=PROBE_SECONDS,
    )


class Activity:
    """Watches what is written to the disks from when it is made until it is asked."""

    def __init__(self, system: LiveSystem) -> None:
        self._system = system
        self._begun = time.monotonic()
        self._before = self._look()

    def _look(self) -> dict[str, int]:
        return parse_diskstats(self._system.text("/proc/diskstats") or "")

    def add_to(self, disks: list[dict], at_least: float) -> None:
        """Write the rates into the records of *disks*, after *at_least* seconds of watching."""
        if at_least > 0:
            time.sleep(max(0.0, self._begun + at_least - time.monotonic()))
        after, seconds = self._look(), time.monotonic() - self._begun
        uptime = parse_uptime(self._system.text("/proc/uptime") or "")
        for disk in disks:
            rate = write_rate(disk["name"], self._before, after, seconds if at_least > 0 else 0, uptime)
            disk["write_bytes_per_second"] = rate.sampled
            disk["write_bytes_per_second_since_boot"] = rate.since_boot


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str", "default": []},
            "controller_time": {"type": "float"},
            "tools": {"type": "list", "elements": "str", "default": []},
            "sample_seconds": {"type": "float", "default": 1.0},
            "probe_address": {"type": "str"},
            "probe_port": {"type": "int"},
            "probe_bytes": {"type": "int", "default": 8388608},
        },
        required_by={"probe_address": "probe_port"},
        supports_check_mode=True,
    )
    system = LiveSystem()
    activity = Activity(system)
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
        "probe": probe(module.params).record(),
        "disks": disks,
    }
    activity.add_to(disks, module.params["sample_seconds"])
    module.exit_json(changed=False, facts=facts, findings=[finding.record() for finding in by_severity(findings)])


if __name__ == "__main__":
    main()
