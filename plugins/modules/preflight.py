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
  - Reads F(/sys), F(/proc), F(/etc), the kernel's files and the first and last bytes of each disk. Needs no tool such
    as C(lsblk) on the server and changes nothing.
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
  connect:
    description:
      - Where the source will have to connect to. Each place is tried once, and nothing is sent.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description:
          - The address.
        type: str
        required: true
      port:
        description:
          - The TCP port.
        type: int
        required: true
      proxy:
        description:
          - Whether O(proxy) is used on this way, if there is one.
        type: bool
        default: false
  proxy:
    description:
      - The HTTP proxy through which the agent will connect, such as V(http://10.0.0.5:3128). It is asked for a tunnel
        (C(CONNECT)), and nothing is sent through it.
    type: str
  connect_timeout:
    description:
      - Seconds to wait for an answer.
    type: float
    default: 4.0
  own_addresses:
    description:
      - Addresses by which others know the server and which it may not know itself, such as one that a router
        translates. What names them in F(/etc) is in RV(facts.addresses), together with what names the server's own.
    type: list
    elements: str
    default: []
  names:
    description:
      - Names to look up. Those that resolve to an address of the server are in RV(facts.addresses). Its own name is
        among them.
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
    kernel_drivers:
      description:
        - Where the running kernel has the drivers for the target's hardware, V(builtin), V(module), V(absent) or
          V(unknown).
      type: dict
      sample: {virtio_pci: builtin, virtio_blk: module, virtio_net: module}
    initramfs_drivers:
      description:
        - Which of them its initramfs holds; null where it was not or could not be looked into.
      type: dict
      sample: {virtio_pci: true, virtio_blk: true, virtio_net: false}
    tracing:
      description:
        - Whether the kernel can tell which blocks change, as C(available), and if not, why, as C(reason). C(lockdown)
          and C(secure_boot) are null where there is no such thing.
      type: dict
      sample: {available: true, reason: null, lockdown: none, secure_boot: null}
    selinux:
      description: The mode of SELinux, V(enforcing), V(permissive) or V(disabled).
      type: str
      sample: disabled
    processes:
      description: Databases, container engines and tools of the old platform that run, with the service they belong to.
      type: list
      elements: dict
      sample: [{name: postgres, unit: postgresql@15-main, contained: false}]
    addresses:
      description:
        - The server's addresses as C(own), and what names them. C(listeners) listen at one address only, C(mentions)
          are lines of files, C(names) resolve to one of them.
      type: dict
      sample:
        own: [10.96.0.11]
        listeners: [{address: 10.96.0.11, port: 8080}]
        mentions: [{file: /etc/hosts, line: 2, address: 10.96.0.11}]
        names: [{name: web1.example.com, addresses: [10.96.0.11]}]
    network_mounts:
      description: Where something is mounted from another server.
      type: list
      elements: dict
      sample: [{mountpoint: /srv/share, source: "nas:/share", filesystem: nfs4}]
    reach:
      description:
        - How connecting to each of O(connect) ended. V(open) means that something listens, V(refused) that nothing
          does, but the answer came back, V(timeout) that nothing came back, V(no_route) that the server has no route
          there, V(unreachable) that a router knows none or nobody has the address, V(failed) anything else.
        - Through O(proxy) V(open) means that there was a tunnel, V(proxy_waits) that the other end refused or did not
          answer, V(proxy_refuses) that the proxy gives none, V(proxy_silent) that the proxy cannot be spoken to.
        - C(local) is the server's own address on this way.
      type: list
      elements: dict
      sample:
        - address: 203.0.113.11
          port: 443
          outcome: refused
          detail: Connection refused
          seconds: 0.012
          local: 10.96.0.11
    proxy:
      description: The proxies that the server's environment names, without user and password.
      type: list
      elements: str
      sample: [http://10.0.0.5:3128]
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
        number:
          description: The kernel's number of the device, major and minor.
          type: str
          sample: "8:0"
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
        physical_block_size:
          description: The unit in which the disk itself writes.
          type: int
          sample: 4096
        transport:
          description: How it is connected, such as V(scsi), V(virtio), V(iscsi), V(fc), V(nvme) or V(other).
          type: str
          sample: scsi
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
        read_bytes_per_second:
          description:
            - How fast a piece of it could be read, past the cache. Measured only where changes cannot be tracked, since
              the last pass then reads the disk; null otherwise.
          type: float
          sample: 188743680.0
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

import os
import platform
import sys
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetlift.cvm.plugins.module_utils.bandwidth_probe import Probe, measure, not_measured
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import by_severity
from ansible_collections.fleetlift.cvm.plugins.module_utils.kernel_support import (
    boot_space_finding,
    driver_states,
    kernel_findings,
    tracing,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.live_system import (
    Activity,
    LiveSystem,
    addresses_of,
    clock_synchronised,
    has_tool,
    initramfs_of,
    kernel_config,
    knows_service,
    lockdown,
    processes,
    proxies,
    sample_reading,
    secure_boot,
    selinux_mode,
    service_manager,
    ssh_host_keys,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.reach import attempts, proxy_address
from ansible_collections.fleetlift.cvm.plugins.module_utils.source_facts import (
    find_disks,
    host_findings,
    parse_meminfo,
    parse_mountinfo,
    parse_os_release,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.storage_layers import layer_findings, network_mounts
from ansible_collections.fleetlift.cvm.plugins.module_utils.vendor_systems import distribution_finding
from ansible_collections.fleetlift.cvm.plugins.module_utils.workloads import workload_findings

# The longest that the measurement of the path may take.
PROBE_SECONDS = 5.0


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


def way_round(params: dict) -> tuple[str, int] | None:
    """Host and port of the proxy that the module's options name. Raises ``ValueError`` for what is none."""
    return proxy_address(params["proxy"]) if params["proxy"] else None


def look(module: AnsibleModule) -> dict:
    """The module's result."""
    params = module.params
    system = LiveSystem()
    activity = Activity(system)
    epoch = time.time()
    release = platform.release()
    manager = service_manager(module)
    memory = parse_meminfo(system.text("/proc/meminfo") or "")
    distribution = parse_os_release(system.text("/etc/os-release") or system.text("/usr/lib/os-release") or "")
    mounts = parse_mountinfo(system.text("/proc/self/mountinfo") or "")
    disks, findings = find_disks(system)
    modules = f"/lib/modules/{release}"
    drivers = driver_states(
        system.text(f"{modules}/modules.dep"), system.text(f"{modules}/modules.builtin"), kernel_config(system, release)
    )
    initramfs = initramfs_of(module, system, release) if "module" in drivers.values() else None
    traced = tracing(release, lockdown(system), secure_boot(system), system.text("/proc/filesystems"))
    for disk in disks:
        disk["read_bytes_per_second"] = None if traced.available else sample_reading(disk["path"], disk["size"])
    running = processes(system)
    selinux = selinux_mode(system)
    findings += host_findings(
        root=os.geteuid() == 0,
        python=sys.version_info[:3],
        memory=memory,
        epoch=epoch,
        controller_time=params["controller_time"],
        disks=disks,
        unknown_services=[name for name in params["services"] if not knows_service(module, manager, name)],
    )
    findings += layer_findings(disks, mounts)
    findings += kernel_findings(
        release=release, drivers=drivers, initramfs=initramfs, traced=traced, disks=disks, selinux=selinux
    )
    findings += workload_findings(running, params["services"])
    findings += [each for each in (boot_space_finding(disks), distribution_finding(distribution)) if each]
    facts = {
        "hostname": platform.node(),
        "kernel": release,
        "architecture": platform.machine(),
        "firmware": "uefi" if system.exists("/sys/firmware/efi") else "bios",
        "distribution": distribution,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "memory": memory,
        "ssh_host_keys": ssh_host_keys(),
        "boot_id": system.text("/proc/sys/kernel/random/boot_id"),
        "clock": {"epoch": epoch, "synchronised": clock_synchronised()},
        "tools": [name for name in params["tools"] if has_tool(name)],
        "service_manager": manager,
        "kernel_drivers": drivers,
        "initramfs_drivers": initramfs,
        "tracing": traced.record(),
        "selinux": selinux,
        "processes": [process.record() for process in running],
        "network_mounts": network_mounts(mounts),
        "addresses": addresses_of(system, params["own_addresses"], params["names"]),
        "proxy": proxies(system),
        "reach": [each.record() for each in attempts(params["connect"], params["connect_timeout"], way_round(params))],
        "probe": probe(params).record(),
        "disks": disks,
    }
    activity.add_to(disks, params["sample_seconds"])
    return {"facts": facts, "findings": [finding.record() for finding in by_severity(findings)]}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str", "default": []},
            "controller_time": {"type": "float"},
            "tools": {"type": "list", "elements": "str", "default": []},
            "connect": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "proxy": {"type": "bool", "default": False},
                },
            },
            "proxy": {"type": "str"},
            "connect_timeout": {"type": "float", "default": 4.0},
            "own_addresses": {"type": "list", "elements": "str", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "sample_seconds": {"type": "float", "default": 1.0},
            "probe_address": {"type": "str"},
            "probe_port": {"type": "int"},
            "probe_bytes": {"type": "int", "default": 8388608},
        },
        required_by={"probe_address": "probe_port"},
        supports_check_mode=True,
    )
    try:
        way_round(module.params)
    except ValueError as error:
        module.fail_json(msg=f"PROXY_INVALID: {error}. Next: correct proxy (fleetlift_proxy).")
    module.exit_json(changed=False, **look(module))


if __name__ == "__main__":
    main()
