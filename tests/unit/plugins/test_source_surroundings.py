# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the preflight reads of a source's kernel, workloads, storage and addresses, on samples from real servers."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud.target import Target
from ansible_collections.fleetlift.cvm.plugins.module_utils.kernel_support import (
    DRIVERS,
    driver_states,
    full_read_seconds,
    initramfs_drivers,
    kernel_findings,
    parse_lockdown,
    parse_secure_boot,
    tracing,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.own_addresses import (
    is_searched,
    mentions,
    parse_fib_trie,
    parse_if_inet6,
    parse_listeners,
    pointing_at,
    resolving_to,
    seen_as,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.path_findings import rate_findings, reach_findings
from ansible_collections.fleetlift.cvm.plugins.module_utils.reach import attempts, proxy_address
from ansible_collections.fleetlift.cvm.plugins.module_utils.security_groups import Rule
from ansible_collections.fleetlift.cvm.plugins.module_utils.source_facts import parse_mountinfo
from ansible_collections.fleetlift.cvm.plugins.module_utils.storage_layers import layer_findings, network_mounts
from ansible_collections.fleetlift.cvm.plugins.module_utils.storage_transport import transport_of
from ansible_collections.fleetlift.cvm.plugins.module_utils.vendor_systems import is_listed
from ansible_collections.fleetlift.cvm.plugins.module_utils.workloads import (
    of_interest,
    process_from,
    workload_findings,
)
from connect_proxy import connect_proxy
from hypothesis import given
from hypothesis import strategies as st

# --- the kernel

# modules.dep of Debian 12 (6.1) and of CentOS 7 (3.10); modules.builtin of Ubuntu 22.04, which builds virtio_pci in.
DEBIAN_DEP = """\
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/net/net_failover.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_legacy_dev.ko
"""
CENTOS_DEP = """\
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
"""
UBUNTU_BUILTIN = (
    "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\nkernel/drivers/net/virtio_net.ko\n"
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((DEBIAN_DEP, "kernel/fs/ext4.ko\n", None), "module"),
        ((CENTOS_DEP, "", None), "module"),
        ((CENTOS_DEP, UBUNTU_BUILTIN, None), "builtin"),
        (("kernel/drivers/ata/ahci.ko:\n", "kernel/fs/ext4.ko\n", None), "absent"),
        (("", None, None), "unknown"),
        ((None, None, "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_NET=y\n"), "builtin"),
        ((None, None, "# CONFIG_VIRTIO_BLK is not set\nCONFIG_EXT4_FS=y\n"), "absent"),
        (("kernel/x/not_virtio_blk.ko:\nkernel/x/virtio_blk_old.ko:\n", "kernel/a.ko\n", None), "absent"),
    ],
)
def test_drivers_are_found_where_the_kernel_keeps_them(files: tuple[Any, Any, Any], expected: str) -> None:
    assert set(driver_states(*files).values()) == {expected}


def test_initramfs_is_read_from_the_listing_of_either_tool() -> None:
    lsinitramfs = "usr/lib/modules/6.1.0-18-amd64/kernel/drivers/block/virtio_blk.ko\nusr/bin/sh\n"
    lsinitrd = (
        "-rw-r--r--   1 root     root        11912 Jan  1  1970 "
        "usr/lib/modules/3.10.0-1160.el7.x86_64/kernel/drivers/virtio/virtio_pci.ko.xz\n"
    )
    assert initramfs_drivers(lsinitramfs) == {"virtio_pci": False, "virtio_blk": True, "virtio_net": False}
    assert initramfs_drivers(lsinitrd) == {"virtio_pci": True, "virtio_blk": False, "virtio_net": False}


def test_a_driver_that_is_only_in_the_kernel_is_not_missed_in_the_initramfs() -> None:
    sound = dict.fromkeys(DRIVERS, "builtin")
    findings = kernel_findings(
        release="6.1.0", drivers=sound, initramfs=dict.fromkeys(DRIVERS, False),
        traced=tracing("6.1.0", None, None, None), disks=[], selinux="disabled",
    )  # fmt: skip
    assert findings == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none [integrity] confidentiality\n", "integrity"), ("[none] integrity confidentiality", "none"), (None, None)],
)
def test_lockdown_is_the_word_in_brackets(text: str | None, expected: str | None) -> None:
    assert parse_lockdown(text) == expected


def test_secure_boot_is_the_byte_behind_the_attributes() -> None:
    assert parse_secure_boot(b"\6\0\0\0\1") is True
    assert parse_secure_boot(b"\6\0\0\0\0") is False
    assert parse_secure_boot(None) is None
    assert parse_secure_boot(b"\6\0") is None


@pytest.mark.parametrize(
    ("release", "lockdown", "filesystems", "available"),
    [
        ("6.1.0-18-amd64", "none", "nodev\tsysfs\nnodev\ttracefs\n\text4\n", True),
        ("3.10.0-1160.el7.x86_64", None, "nodev\tdebugfs\n", True),
        ("5.14.0-362.el9", "integrity", "nodev\ttracefs\n", True),
        ("5.14.0-362.el9", "confidentiality", "nodev\ttracefs\n", False),
        ("2.6.32-754.el6.x86_64", None, "nodev\tdebugfs\n", False),
        ("6.1.0", None, "nodev\tsysfs\n\text4\n", False),
    ],
)
def test_changes_can_be_tracked_where_tracefs_may_be_used(
    release: str, lockdown: str | None, filesystems: str, available: bool
) -> None:
    found = tracing(release, lockdown, None, filesystems)
    assert found.available is available
    assert (found.reason is None) is available


def test_full_read_is_as_long_as_the_slowest_disk_and_unknown_without_a_sample() -> None:
    fast = {"size": 100, "used_bytes": 50, "read_bytes_per_second": 10.0}
    slow = {"size": 100, "used_bytes": None, "read_bytes_per_second": 2.0}
    assert full_read_seconds([fast, slow]) == 50.0
    assert full_read_seconds([fast, {**slow, "read_bytes_per_second": None}]) is None


# --- what runs


@pytest.mark.parametrize(
    ("comm", "cgroup", "unit", "contained"),
    [
        (
            "postgres",
            "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
            "postgresql@15-main",
            False,
        ),
        (
            "mysqld",
            "4:pids:/system.slice/mysqld.service\n1:name=systemd:/system.slice/mysqld.service\n",
            "mysqld",
            False,
        ),
        ("postgres", "0::/system.slice/docker-0a1b2c.scope\n", None, True),
        ("redis-server", "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-99.scope\n", None, True),
        ("postgres", None, None, False),
    ],
)
def test_process_belongs_to_its_service_or_container(
    comm: str, cgroup: str | None, unit: str | None, contained: bool
) -> None:
    process = process_from(comm, cgroup)
    assert (process.unit, process.contained) == (unit, contained)


POSTGRES = process_from("postgres", "0::/system.slice/system-postgresql.slice/postgresql@15-main.service")


@pytest.mark.parametrize(
    "services",
    [["postgresql"], ["postgresql@15-main"], ["postgresql.service"], ["nginx", "postgresql@15-main.service"]],
)
def test_database_that_the_cutover_stops_is_no_finding(services: list[str]) -> None:
    assert workload_findings([POSTGRES], services) == []


def test_database_that_keeps_running_is_named_with_its_service() -> None:
    [finding] = workload_findings(of_interest([POSTGRES, POSTGRES, process_from("bash", None)]), ["nginx"])
    assert (finding.code, finding.evidence["service"]) == ("DATABASE_NOT_STOPPED", "postgresql@15-main")


def test_database_in_a_container_is_the_engines_matter() -> None:
    inside = process_from("postgres", "0::/system.slice/docker-0a1b2c.scope")
    engine = process_from("dockerd", "0::/system.slice/docker.service")
    [finding] = workload_findings(of_interest([inside, engine, process_from("containerd", None)]), ["docker"])
    assert (finding.code, finding.evidence) == ("CONTAINERS_RUN", {"engines": ["docker"], "databases": ["postgres"]})
    assert workload_findings([engine], ["docker"]) == []


def test_java_is_a_database_by_its_service_only() -> None:
    search = process_from("java", "0::/system.slice/elasticsearch.service")
    assert of_interest([process_from("java", "0::/system.slice/tomcat.service")]) == []
    assert [finding.evidence["service"] for finding in workload_findings(of_interest([search]), [])] == [
        "elasticsearch"
    ]


# --- storage


@pytest.mark.parametrize(
    ("path", "transport"),
    [
        ("/sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vda", "virtio"),
        ("/sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda", "ata"),
        ("/sys/devices/platform/host3/session1/target3:0:0/3:0:0:0/block/sdc", "iscsi"),
        ("/sys/devices/pci0000:00/0000:3b:00.0/host7/rport-7:0-3/target7:0:0/7:0:0:1/block/sdd", "fc"),
        ("/sys/devices/pci0000:00/0000:00:10.0/host2/target2:0:0/2:0:0:0/block/sda", "scsi"),
        ("/sys/devices/pci0000:00/0000:02:00.0/nvme/nvme0/nvme0n1", "nvme"),
        ("/sys/devices/vbd-51712/block/xvda", "xen"),
        ("/sys/block/sda", "other"),
    ],
)
def test_transport_of_a_disk_is_in_its_place_in_sysfs(path: str, transport: str) -> None:
    assert transport_of(path) == transport


def test_mounts_of_other_servers_are_listed_and_local_ones_are_not() -> None:
    mounts = parse_mountinfo(
        "40 1 0:51 / /srv/share rw - nfs4 nas.example.com:/share rw\n"
        "41 1 0:52 / /mnt/win rw - cifs //files/data rw\n"
        "42 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    )
    assert [mount["mountpoint"] for mount in network_mounts(mounts)] == ["/srv/share", "/mnt/win"]
    assert [finding.subject for finding in layer_findings([], mounts)] == ["/srv/share", "/mnt/win"]


def test_a_small_efi_partition_is_not_worth_a_word() -> None:
    disk = {
        "path": "/dev/sda", "size": 20 << 30, "partitions": [{"path": "/dev/sda1", "size": 512 << 20}],
        "filesystems": [{"device": "/dev/sda1", "type": "vfat", "mountpoints": ["/boot/efi"]}],
        "holders": [], "swap": [], "transport": "scsi",
    }  # fmt: skip
    assert layer_findings([disk], []) == []


@pytest.mark.parametrize(
    ("distribution", "listed"),
    [
        ({"id": "centos", "version": "7"}, True),
        ({"id": "ubuntu", "version": "20.04"}, True),
        ({"id": "ubuntu", "version": "22.04"}, False),
        ({"id": "sles", "version": "15.5"}, True),
        ({"id": "rocky", "version": "9.3"}, False),
        ({"id": "arch", "version": ""}, False),
    ],
)
def test_the_vendors_list_is_read_by_id_and_major_version(distribution: dict[str, str], listed: bool) -> None:
    assert is_listed(distribution) is listed


# --- addresses

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.96.0.0/24 2 0 2
        |-- 10.96.0.11
           /32 host LOCAL
        |-- 10.96.0.255
           /32 link BROADCAST
Local:
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 10.96.0.11
           /32 host LOCAL
        |-- 169.254.3.4
           /32 host LOCAL
"""
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0B00600A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3
   3: 0B00600A:A0E2 0C00600A:0016 01 00000000:00000000 00:00000000 00000000     0        0 4
"""


def test_own_addresses_are_those_that_others_know() -> None:
    assert parse_fib_trie(FIB_TRIE) == ["10.96.0.11"]
    inet6 = "fe8000000000000000163efffe000001 02 40 20 80     eth0\n20010db8000000000000000000000011 02 40 00 80 eth0\n"
    assert parse_if_inet6(inet6) == ["2001:db8::11"]


def test_listeners_are_those_at_one_address() -> None:
    assert parse_listeners(TCP, "") == [{"address": "10.96.0.11", "port": 8080}]


def test_mentions_are_whole_addresses_in_lines_that_are_no_comment() -> None:
    text = "listen 10.96.0.11:80;\n# was 10.96.0.11\nallow 10.96.0.110;\nallow 110.96.0.11;\nserver 10.96.0.11;\n"
    found = mentions("/etc/nginx/nginx.conf", text, ["10.96.0.11"])
    assert [entry["line"] for entry in found] == [1, 5]
    assert "listen" not in str(found)
    assert mentions("/etc/hosts", text, []) == []


def test_network_configuration_is_left_to_the_boot_adaptation() -> None:
    assert not is_searched("/etc/netplan/50-cloud-init.yaml")
    assert is_searched("/etc/hosts")


def test_what_points_at_the_addresses_is_said_in_lines() -> None:
    record = {
        "listeners": [{"address": "10.96.0.11", "port": 8080}],
        "mentions": [{"file": "/etc/hosts", "line": 2, "address": "10.96.0.11"}],
        "names": resolving_to({"web1.example.com": ["10.96.0.11", "10.0.0.1"], "other": ["10.0.0.2"]}, ["10.96.0.11"]),
    }
    assert pointing_at(record) == [
        "10.96.0.11:8080 is listened at",
        "/etc/hosts:2 names 10.96.0.11",
        "web1.example.com resolves to 10.96.0.11",
    ]


@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_fib_trie(text)
    parse_if_inet6(text)
    parse_listeners(text, text)
    mentions("/etc/x", text, ["10.96.0.11"])
    driver_states(text, text, text)
    initramfs_drivers(text)
    tracing(text, parse_lockdown(text), None, text)
    process_from(text, text)


# --- the path

TARGET = Target(
    instance_id="ins-webtgt01",
    state="RUNNING",
    ingress=(Rule("sg-1", 0, "ACCEPT", "ALL", "ALL", "0.0.0.0/0"),),
    security_groups=("sg-1",),
)


def reach(**outcomes: str) -> list[tuple[str, str]]:
    state = outcomes.pop("state", "RUNNING")
    tried = [
        {"address": "10.97.0.11", "port": int(port[1:]), "outcome": outcome, "detail": "as it said"}
        for port, outcome in outcomes.items()
    ]
    target = Target(**{**vars(TARGET), "state": state})
    return [(finding.code, finding.severity) for finding in reach_findings(target, {"reach": tried}, 443, 22)]


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ({"p443": "refused", "p22": "open"}, []),
        ({"p443": "open"}, []),
        ({"p443": "timeout", "p22": "open"}, [("PORT_FILTERED", "warning")]),
        ({"p443": "timeout", "p22": "timeout"}, [("PORT_FILTERED", "blocker")]),
        ({"p443": "timeout", "p22": "timeout", "state": "STOPPED"}, [("PORT_NOT_PROBED", "note")]),
        ({"p443": "timeout", "state": "RESCUE_MODE"}, [("PORT_FILTERED", "blocker")]),
        ({"p443": "failed"}, [("PORT_FILTERED", "blocker")]),
        ({"p443": "no_route", "state": "STOPPED"}, [("NO_ROUTE_TO_TARGET", "blocker")]),
        ({"p443": "unreachable"}, [("NO_ROUTE_TO_TARGET", "blocker")]),
        ({"p443": "unreachable", "state": "STOPPED"}, [("PORT_NOT_PROBED", "note")]),
        ({"p443": "proxy_waits", "p22": "timeout"}, [("PORT_NOT_PROBED", "note")]),
        ({"p443": "proxy_refuses"}, [("PROXY_UNUSABLE", "blocker")]),
        ({"p443": "proxy_silent", "state": "STOPPED"}, [("PROXY_UNUSABLE", "blocker")]),
    ],
)
def test_only_what_is_certain_blocks_before_there_is_a_landing(
    tried: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    assert reach(**tried) == expected


def test_a_proxy_that_will_not_be_used_is_mentioned() -> None:
    tried = [{"address": "10.97.0.11", "port": 443, "outcome": "no_route", "detail": ""}]
    [finding] = reach_findings(TARGET, {"reach": tried, "proxy": ["http://10.0.0.5:3128"]}, 443, 22)
    assert "http://10.0.0.5:3128" in finding.cause


def test_attempts_end_as_the_system_says() -> None:
    with socket.socket() as listening, socket.socket() as silent:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        silent.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (listening, silent)]
        tried = attempts([{"address": "127.0.0.1", "port": port} for port in ports], 5.0)
    assert [(attempt.outcome, attempt.local) for attempt in tried] == [("open", "127.0.0.1"), ("refused", "127.0.0.1")]
    assert attempts([], 1.0) == []


def test_proxy_is_asked_for_a_tunnel_where_the_place_says_so() -> None:
    with connect_proxy() as proxy, socket.socket() as listening, socket.socket() as silent:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        silent.bind(("127.0.0.1", 0))
        open_port, closed_port = (each.getsockname()[1] for each in (listening, silent))

        def tried(port: int) -> str:
            places = [{"address": "127.0.0.1", "port": port, "proxy": True}]
            return attempts(places, 5.0, ("127.0.0.1", proxy.port))[0].outcome

        assert (tried(open_port), tried(closed_port)) == ("open", "proxy_waits")
        proxy.refusal = "407 Proxy Authentication Required"
        assert tried(open_port) == "proxy_refuses"
        proxy.refusal = ""
        asked = len(proxy.asked)
        place = {"address": "127.0.0.1", "port": open_port, "proxy": False}
        assert attempts([place], 5.0, ("127.0.0.1", proxy.port))[0].outcome == "open"
        assert attempts([{**place, "proxy": True}], 5.0)[0].outcome == "open"
        assert len(proxy.asked) == asked
    nobody = [{"address": "127.0.0.1", "port": 443, "proxy": True}]
    assert attempts(nobody, 5.0, ("127.0.0.1", closed_port))[0].outcome == "proxy_silent"


@pytest.mark.parametrize(
    "url",
    [
        "10.0.0.5:3128",
        "https://10.0.0.5:3128",
        "http://10.0.0.5",
        "http://u:p@10.0.0.5:3128",
        "http://a:b",
        "http://[::1",
    ],
)
def test_what_is_no_proxy_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="proxy") as caught:
        proxy_address(url)
    assert "u:p" not in str(caught.value)
    assert proxy_address("http://10.0.0.5:3128/") == ("10.0.0.5", 3128)


@pytest.mark.parametrize(
    ("local", "remote", "known", "expected"),
    [
        ("10.96.0.11", "10.97.0.11", [], "10.96.0.11"),
        ("198.51.100.7", "203.0.113.11", ["192.0.2.1"], "198.51.100.7"),
        # Something translates on the way: to the server's public address, if it has one that is known.
        ("10.96.0.11", "203.0.113.11", [], None),
        ("10.96.0.11", "203.0.113.11", ["10.96.0.11", "198.51.100.7"], "198.51.100.7"),
        ("10.96.0.11", "203.0.113.11", ["198.51.100.7", "198.51.100.8"], None),
        ("198.51.100.7", "10.97.0.11", ["198.51.100.7"], None),
        ("100.64.3.4", "192.168.1.1", [], "100.64.3.4"),
        ("fd00::1", "fd00::2", [], "fd00::1"),
        (None, "203.0.113.11", ["198.51.100.7"], None),
        ("10.96.0.11", "gateway.example.com", [], None),
    ],
)
def test_target_sees_the_source_by_the_address_that_nothing_translates(
    local: str | None, remote: str, known: list[str], expected: str | None
) -> None:
    assert seen_as([{"address": remote, "port": 443, "local": local}], known) == expected


def test_nothing_is_known_of_a_way_that_was_not_tried() -> None:
    assert seen_as([], ["198.51.100.7"]) is None
    assert seen_as([{"address": "203.0.113.11", "port": 443}], []) is None


def rates(sampled: float, since_boot: float, probe: float | None = None, limit: int = 0) -> list[str]:
    disk = {
        "path": "/dev/sda", "write_bytes_per_second": sampled, "write_bytes_per_second_since_boot": since_boot,
    }  # fmt: skip
    other = {"path": "/dev/sdz", "write_bytes_per_second": 1e12, "write_bytes_per_second_since_boot": 1e12}
    facts = {"disks": [disk, other], "probe": {"bytes_per_second": probe}}
    return [finding.severity for finding in rate_findings("web1", facts, ["/dev/sda"], limit)]


def test_writes_are_compared_with_what_is_known_of_the_path() -> None:
    assert rates(9e6, 9e6) == []
    assert rates(1e6, 1e6, probe=10e6) == []
    assert rates(6e6, 1e6, probe=10e6) == ["warning"]
    assert rates(20e6, 1e6, probe=10e6) == ["warning"]
    assert rates(20e6, 11e6, probe=10e6) == ["blocker"]
    assert rates(6e6, 6e6, probe=100e6, limit=5_000_000) == ["blocker"]
