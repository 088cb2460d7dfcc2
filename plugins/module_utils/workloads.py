# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What runs on a source and needs a thought before it is cut over, told by the names of processes.

Pure: processes are records made from /proc by the module ``preflight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .findings import Finding

# Product and the service that the distributions' packages call it by. /proc/PID/comm has 15 characters (proc(5)).
DATABASES: Mapping[str, tuple[str, str]] = {
    "postgres": ("PostgreSQL", "postgresql"),
    "postmaster": ("PostgreSQL", "postgresql"),
    "mysqld": ("MySQL", "mysql"),
    "mariadbd": ("MariaDB", "mariadb"),
    "mongod": ("MongoDB", "mongod"),
    "redis-server": ("Redis", "redis-server"),
    "valkey-server": ("Valkey", "valkey-server"),
    "sqlservr": ("SQL Server", "mssql-server"),
    "db2sysc": ("Db2", "db2"),
    "clickhouse-serv": ("ClickHouse", "clickhouse-server"),
    "influxd": ("InfluxDB", "influxdb"),
    "etcd": ("etcd", "etcd"),
    "beam.smp": ("RabbitMQ or CouchDB", "rabbitmq-server"),
    "slapd": ("OpenLDAP", "slapd"),
    "ns-slapd": ("389 Directory Server", "dirsrv.target"),
    "cockroach": ("CockroachDB", "cockroach"),
}
# Oracle names its background processes ora_pmon_SID, Elasticsearch and Cassandra are Java: their services tell.
ORACLE = re.compile(r"ora_pmon_")
JAVA_SERVICES = re.compile(r"(elasticsearch|opensearch|cassandra|kafka|zookeeper|solr|neo4j)")
CONTAINER_ENGINES = {"dockerd": "docker", "podman": "podman", "crio": "crio", "containerd": "containerd"}
KUBERNETES = {"kubelet": "kubelet", "k3s-server": "k3s", "k3s-agent": "k3s-agent", "k0s": "k0s", "rke2": "rke2-server"}
GUEST_TOOLS: Mapping[str, str] = {
    "vmtoolsd": "VMware",
    "VGAuthService": "VMware",
    "VBoxService": "VirtualBox",
    "hv_kvp_daemon": "Hyper-V",
    "hv_vss_daemon": "Hyper-V",
    "hypervkvpd": "Hyper-V",
    "xe-daemon": "Xen",
    "qemu-ga": "QEMU",
    "prltoolsd": "Parallels",
    "amazon-ssm-agen": "AWS",
    "ssm-agent-worke": "AWS",
    "waagent": "Azure",
    "google_guest_ag": "Google Cloud",
    "google_osconfig": "Google Cloud",
    "aliyun-service": "Alibaba Cloud",
    "AliYunDun": "Alibaba Cloud",
    "AliYunDunMonito": "Alibaba Cloud",
}
IN_CONTAINER = re.compile(r"docker[-/]|libpod|kubepods|cri-containerd|/lxc/|machine\.slice")


@dataclass(frozen=True)
class Process:
    """``unit`` is the systemd unit it belongs to, None where nothing tells; ``contained``: it runs in a container."""

    name: str
    unit: str | None = None
    contained: bool = False

    def record(self) -> dict[str, Any]:
        return asdict(self)


def process_from(comm: str, cgroup: str | None) -> Process:
    """The process with this name and this text of /proc/PID/cgroup (cgroups(7))."""
    path = cgroup or ""
    units = re.findall(r"/([^/\n]+\.service)", path)
    return Process(comm, _plain(units[-1]) if units else None, IN_CONTAINER.search(path) is not None)


def of_interest(processes: Iterable[Process]) -> list[Process]:
    """Those that a finding may be about, each kind once, in a stable order."""
    kept = {
        process
        for process in processes
        if process.name in DATABASES
        or process.name in CONTAINER_ENGINES
        or process.name in KUBERNETES
        or process.name in GUEST_TOOLS
        or ORACLE.match(process.name)
        or (process.name == "java" and JAVA_SERVICES.search(process.unit or ""))
    }
    return sorted(kept, key=lambda process: (process.name, process.unit or "", process.contained))


def workload_findings(processes: Sequence[Process], services: Sequence[str]) -> list[Finding]:
    """What of *processes* is not among the *services* that the cutover stops, or will not do on the target."""
    return [
        *_databases(processes, services),
        *_containers(processes, services),
        *_kubernetes(processes),
        *_guest_tools(processes),
    ]


def _databases(processes: Sequence[Process], services: Sequence[str]) -> list[Finding]:
    wanting: dict[str, str] = {}
    for process in processes:
        product, service = _database(process)
        if product and not process.contained and not _stopped(process, service, services):
            wanting[process.unit or service] = product
    return [
        Finding(
            "DATABASE_NOT_STOPPED",
            "warning",
            service,
            f"{product} runs and is not among the services that the cutover stops. Its files are copied as a power"
            " failure would leave them: it recovers from its log, and what it had not written is lost.",
            f"Add it to fleetlift_services, behind what uses it: [..., {service}].",
            {"service": service, "services": list(services)},
        )
        for service, product in sorted(wanting.items())
    ]


def _database(process: Process) -> tuple[str, str]:
    if ORACLE.match(process.name):
        return "Oracle Database", process.unit or "oracle"
    if process.name == "java":
        found = JAVA_SERVICES.search(process.unit or "")
        return (found[1].capitalize(), found[1]) if found else ("", "")
    return DATABASES.get(process.name, ("", ""))


def _stopped(process: Process, service: str, services: Sequence[str]) -> bool:
    """Whether one of *services* is its unit, the template of it, or the name that the packages give it."""
    unit = process.unit or service
    names = {unit, unit.partition("@")[0], service}
    return any(_plain(name) in names for name in services)


def _containers(processes: Sequence[Process], services: Sequence[str]) -> list[Finding]:
    engines = sorted({CONTAINER_ENGINES[process.name] for process in processes if process.name in CONTAINER_ENGINES})
    # Under Kubernetes and Docker alike containerd does the work, and is stopped by stopping them.
    engines = [engine for engine in engines if engine != "containerd"] or engines
    inside = sorted({process.name for process in processes if process.contained and process.name in DATABASES})
    if not engines or (set(engines) <= {_plain(name) for name in services} and not inside):
        return []
    held = f" Databases run inside: {', '.join(inside)}." if inside else ""
    return [
        Finding(
            "CONTAINERS_RUN",
            "warning",
            ", ".join(engines),
            f"Containers may run here ({', '.join(engines)}).{held} Their layers and volumes are copied with the disk,"
            " and they start again on the target by their restart policies.",
            f"Add the engine to fleetlift_services, so that they are at rest for the last pass: [..., {engines[0]}].",
            {"engines": engines, "databases": inside},
        )
    ]


def _kubernetes(processes: Sequence[Process]) -> list[Finding]:
    found = sorted({KUBERNETES[process.name] for process in processes if process.name in KUBERNETES})
    if not found:
        return []
    return [
        Finding(
            "KUBERNETES_NODE",
            "warning",
            ", ".join(found),
            "This server is a node of a Kubernetes cluster, which knows it by its address: that changes.",
            "Drain it before the cutover. Better: join a new node in the cloud, and remove this one.",
            {"services": found},
        )
    ]


def _guest_tools(processes: Sequence[Process]) -> list[Finding]:
    platforms: dict[str, list[str]] = {}
    for process in processes:
        if process.name in GUEST_TOOLS:
            platforms.setdefault(GUEST_TOOLS[process.name], []).append(process.name)
    return [
        Finding(
            "GUEST_TOOLS",
            "note",
            platform,
            f"The tools of the old platform run here ({platform}: {', '.join(sorted(set(names)))}).",
            "Nothing: the boot adaptation disables them in the copy. Uninstall them when the server is there to stay.",
            {"processes": sorted(set(names))},
        )
        for platform, names in sorted(platforms.items())
    ]


def _plain(name: str) -> str:
    return name[: -len(".service")] if name.endswith(".service") else name
