# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab of its own for each test, and the checks that nothing of it is left on the machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import baseroot, diskbuild, loopdisk
from lab.command import run
from lab.ledger import Ledger
from lab.machines.namespace import NamespaceMachine
from lab.machines.protocol import MachineDisk
from lab.network import Network
from lab.place import DEFAULT_DIRECTORY, Place
from lab.site import MachineSite
from lab.sweep import sweep

MIB = 1024 * 1024
DISK_SIZE = 1024 * MIB


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def eventually(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Poll ``condition`` until it holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.02)


def traces(place: Place) -> dict[str, list[str]]:
    """What of a lab can be seen on the machine."""
    prefix = f"fl-{place.name}-"
    return {
        "namespaces": [line.split()[0] for line in run(["ip", "netns"]).splitlines() if line.startswith(prefix)],
        "loops": [device.path for device in loopdisk.attached_under(place.directory)],
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if str(place.directory) in line],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{prefix}*")],
        "processes": [
            line for line in run(["ps", "ax", "-o", "args"]).splitlines() if f"--name {place.name} serve" in line
        ],
        "directory": [str(place.directory)] if place.directory.exists() else [],
    }


@dataclass
class Bench:
    """The parts of a lab, without its daemon and its cloud."""

    place: Place
    ledger: Ledger
    network: Network
    site: MachineSite
    template: Path
    powered_off: list[str]
    machines: list[NamespaceMachine] = field(default_factory=list)

    def disk(self, name: str, *, filled: bool = True) -> MachineDisk:
        """A disk with a root filesystem on it, or a blank one."""
        file = self.place.directory / f"{name}.img"
        if filled:
            run(["cp", "--sparse=always", str(self.template), str(file)])
        else:
            loopdisk.create_sparse(file, 64 * MIB)
        return MachineDisk(file, f"SERIAL-{name}")

    def source(self, name: str, *disks: MachineDisk, number: int = 11) -> NamespaceMachine:
        """A source server, off, at 10.96.0.``number``."""
        self.network.connect(name, [f"10.96.0.{number}"], "10.96.0.1", guarded=False)
        self.machines.append(self.site.source(name, list(disks) or [self.disk(name)]))
        return self.machines[-1]

    def instance(self, name: str, *disks: MachineDisk, number: int = 11) -> NamespaceMachine:
        """An instance, off, at 10.97.0.``number`` and 203.0.113.``number``."""
        self.network.connect(name, [f"10.97.0.{number}", f"203.0.113.{number}"], "10.97.0.1", guarded=True)
        self.machines.append(self.site.instance(name, list(disks)))
        return self.machines[-1]

    def ssh(self, address: str, command: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine, from where the controller is."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=2"]
        options.append("NumberOfPasswordPrompts=1")
        environment = dict(os.environ)
        key = ["-i", str(self.place.key), "-o", "BatchMode=yes"]
        if password is not None:
            askpass = self.place.directory / "askpass"
            askpass.write_text(f"#!/bin/sh\necho '{password}'\n")
            askpass.chmod(0o700)
            environment |= {"SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
            key = ["-o", "PubkeyAuthentication=no"]
        words = ["ip", "netns", "exec", self.network.controller, "ssh", "-F", "none", *key]
        for option in options:
            words += ["-o", option]
        return subprocess.run(
            [*words, f"root@{address}", command],
            capture_output=True,
            text=True,
            env=environment,
            timeout=30,
            check=False,
        )

    def answers(self, address: str) -> Callable[[], bool]:
        """A condition: the machine lets the lab's key in."""
        return lambda: self.ssh(address, "true").returncode == 0


@pytest.fixture(scope="session")
def base_root() -> Path:
    """The base root that all labs share."""
    return baseroot.build(Path(os.environ.get("FLEETLIFT_LAB_DIR") or DEFAULT_DIRECTORY) / "cache", print)


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SSH key."""
    path = tmp_path_factory.mktemp("key") / "id_ed25519"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)])
    return path


@pytest.fixture(scope="session")
def template(base_root: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a root filesystem that lets ``key`` in."""
    directory = tmp_path_factory.mktemp("template")
    file = directory / "root.img"
    loopdisk.create_sparse(file, DISK_SIZE)
    diskbuild.make_filesystem(file, "ext4")
    with loopdisk.mounted(file, directory / "mnt") as root:
        run(["cp", "-a", f"{base_root}/.", str(root)])
        diskbuild.give_identity(root, "template", key.with_suffix(".pub").read_text())
    return file


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The place of a lab that no other test uses."""
    return Place(tmp_path, f"t{os.getpid()}")


@pytest.fixture
def bench(place: Place, base_root: Path, key: Path, template: Path) -> Iterator[Bench]:
    """A lab's network and site; swept away afterwards, whatever the test left."""
    place.create()
    place.key.parent.mkdir()
    for path in (key, key.with_suffix(".pub")):
        run(["cp", "-p", str(path), str(place.key.parent)])
    ledger = Ledger(place.ledger)
    network = Network(place.name, ledger)
    powered_off: list[str] = []
    site = MachineSite(place.directory / "machines", base_root, network, ledger, powered_off.append)
    try:
        network.start()
        bench = Bench(place, ledger, network, site, template, powered_off)
        yield bench
        for machine in bench.machines:
            machine.stop(hard=True)
    finally:
        sweep(place, ledger.read())
    assert not any(traces(place).values()), traces(place)
