# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real daemons on loop devices, talking TLS over the loopback interface."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent import control, tracing
from fleetlift_agent.errors import AgentError
from fleetlift_agent.replica import ReplicaDisk
from fleetlift_agent.tracefs import find_tracefs
from fleetlift_agent.tracing import TrackedDisk
from fleetlift_agent.unplanned import UnplannedDisks

AGENT = Path(__file__).resolve().parents[3] / "agent"
MIB = 1 << 20
# include/uapi/linux/loop.h
_LOOP_SET_FD, _LOOP_CLR_FD = 0x4C00, 0x4C01


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Poll until `condition()` is truthy and return it."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        + ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


class Loop:
    """A loop device over a sparse file."""

    def __init__(self, path: Path, size: int) -> None:
        self.file = path
        self.size = size
        with path.open("wb") as stream:
            stream.truncate(size)
        done = subprocess.run(
            ["losetup", "--find", "--show", "--direct-io=off", str(path)], check=True, capture_output=True, text=True
        )
        self.device = Path(done.stdout.strip())

    def detach(self) -> None:
        subprocess.run(["losetup", "--detach", str(self.device)], check=True)

    def reappear(self) -> None:
        """Vanish, and come back under the same number: at once, before somebody else is given it."""
        image = os.open(self.file, os.O_RDWR)
        self._order(_LOOP_CLR_FD, 0)
        # A killed process may still be about to close it.
        wait_for(lambda: not Path(f"/sys/block/{self.device.name}/loop").exists(), f"{self.device} is gone")
        self._order(_LOOP_SET_FD, image)
        os.close(image)

    def _order(self, number: int, argument: int) -> None:
        descriptor = os.open(self.device, os.O_RDWR)
        try:
            fcntl.ioctl(descriptor, number, argument)
        finally:
            os.close(descriptor)

    def write(self, offset: int, data: bytes) -> None:
        """Write through to the file behind the device."""
        descriptor = os.open(self.device, os.O_RDWR)
        try:
            os.pwrite(descriptor, data, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def content(self, size: int | None = None) -> bytes:
        with self.file.open("rb") as stream:
            return stream.read(self.size if size is None else size)


@dataclass
class OpenedTarget:
    """A target disk as the receiver opens it."""

    fd: int
    serial: str
    logical_block_size: int = 512


@contextmanager
def replica_on(path: Path, room: int, size: int) -> Iterator[tuple[Loop, ReplicaDisk]]:
    """A replica of `size` bytes on a new disk that has room for more."""
    loop = Loop(path, room)
    descriptor = os.open(loop.device, os.O_RDWR | os.O_EXCL)
    try:
        disk = ReplicaDisk("d0", OpenedTarget(descriptor, "disk-replica"), size)
        yield loop, disk
        disk.close()
    finally:
        os.close(descriptor)
        loop.detach()


class Agent:
    """One daemon in a directory of its own."""

    def __init__(self, directory: Path, config: dict[str, Any], targets: dict[str, str]) -> None:
        self.directory = directory
        self.config = config
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(AGENT),
            "FLEETLIFT_TEST_TARGETS": json.dumps(targets),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.interpreter = [sys.executable]
        self.write_config()

    def write_config(self, **changes: Any) -> None:
        self.config.update(changes)
        (self.directory / "config.json").write_text(json.dumps(self.config))

    def run(self, *arguments: str, data: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [*self.interpreter, str(Path(__file__).with_name("loop_agent.py")), *arguments],
            input=json.dumps(data) if data is not None else "",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def start(self) -> dict[str, Any]:
        status, reply = self.run("start", "--dir", str(self.directory))
        assert status == 0, reply
        return reply

    def ctl(self, command: str, **arguments: Any) -> dict[str, Any]:
        """As the command line does, without the cost of another interpreter."""
        reply = control.ask(self.directory, command, arguments, 60)
        assert reply["ok"], reply
        return reply

    def refused(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The error record of a command that must fail."""
        try:
            reply = control.ask(self.directory, command, arguments, 60)
        except AgentError as failure:
            return failure.record()
        assert not reply["ok"], reply
        error: dict[str, Any] = reply["error"]
        return error

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return state

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    @property
    def pid(self) -> int:
        return int((self.directory / "daemon.pid").read_text())

    def alive(self) -> bool:
        path = self.directory / "daemon.pid"
        return path.exists() and Path(f"/proc/{path.read_text().strip()}/cmdline").exists() and not self._zombie()

    def _zombie(self) -> bool:
        return "\nState:\tZ" in Path(f"/proc/{self.pid}/status").read_text()

    def kill(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.alive(), "the daemon is dead")

    def phase(self, *names: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for one of these phases; a failed daemon fails the test at once."""

        def reached() -> dict[str, Any] | None:
            state = self.state
            if state["phase"] == "failed" and "failed" not in names:
                raise AssertionError(f"{state['error']}\n{self.log}")
            return state if state["phase"] in names else None

        try:
            state: dict[str, Any] = wait_for(reached, f"phase {names}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state}\n{self.log}") from error
        return state

    def cutover_phase(self, *names: str, seconds: float = 30.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            cutover = self.state["cutover"]
            return cutover if cutover and cutover["phase"] in names else None

        try:
            cutover: dict[str, Any] = wait_for(reached, f"cutover phase {names}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state}\n{self.log}") from error
        return cutover


class Pair:
    """A sender and a receiver with one disk each."""

    def __init__(self, root: Path, disks: list[tuple[Loop, Loop]], port: int, *, tracking: bool) -> None:
        self.disks = disks
        for role in ("sender", "receiver"):
            (root / role / "tls").mkdir(parents=True)
        for own, other in (("sender", "receiver"), ("receiver", "sender")):
            certificate, key = make_certificate(root, own)
            certificate.replace(root / own / "tls" / "cert.pem")
            key.replace(root / own / "tls" / "key.pem")
            (root / other / "tls" / "peer.pem").write_bytes((root / own / "tls" / "cert.pem").read_bytes())
        tls = {"certificate": "tls/cert.pem", "key": "tls/key.pem", "peer_certificate": "tls/peer.pem"}
        common = {"schema": 1, "migration": "web1", "tls": tls, "peer_timeout": 5}
        targets = {f"disk-{number}": str(target.device) for number, (_source, target) in enumerate(disks)}
        self.sender = Agent(
            root / "sender",
            {
                **common,
                "role": "sender",
                "peer": {"host": "127.0.0.1", "port": port},
                "disks": [
                    {"id": f"d{n}", "device": str(source.device), "size": source.size, "target_serial": f"disk-{n}"}
                    for n, (source, _target) in enumerate(disks)
                ],
                "bandwidth_limit": None,
                "max_passes": 5,
                "max_downtime": 30,
                "change_tracking": tracking,
                # What this host runs from is none of the migration's business.
                "left_behind": [disk["device"] for disk in UnplannedDisks([]).in_use()],
            },
            targets,
        )
        self.receiver = Agent(
            root / "receiver",
            {
                **common,
                "role": "receiver",
                "listen": {"host": "127.0.0.1", "port": port},
                "disks": [
                    {"id": f"d{n}", "serial": f"disk-{n}", "size": source.size}
                    for n, (source, _target) in enumerate(disks)
                ],
            },
            targets,
        )

    def start(self) -> None:
        self.receiver.start()
        self.sender.start()

    def replicate(self, **arguments: Any) -> dict[str, Any]:
        """Until in sync; returns the sender's state."""
        self.sender.ctl("replicate", **arguments)
        return self.sender.phase("in_sync")

    def refresh(self) -> dict[str, Any]:
        """Another replication of a pair that may be in sync already; returns the sender's state."""
        passes = len(self.sender.state["passes"])
        self.sender.ctl("replicate", refresh=True)
        wait_for(lambda: len(self.sender.state["passes"]) > passes, "another pass")
        return self.sender.phase("in_sync")

    def prepare(self, **arguments: Any) -> dict[str, Any]:
        """Cut over up to `prepared` (or its failure); returns the cutover's record."""
        self.sender.ctl("cutover", **{"services": [], "freeze": False, **arguments})
        return self.sender.cutover_phase("prepared", "aborted")

    def assert_identical(self) -> None:
        for source, target in self.disks:
            assert source.content() == target.content(source.size)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def remove_trace(pair: Pair) -> None:
    """What a killed sender left in the kernel for the next one."""
    disks = [TrackedDisk.open("", source.device, source.size) for source, _target in pair.disks]
    tracing.remove_trace(pair.sender.directory.parent, "web1", disks)


@contextmanager
def instance_of(pair: Pair) -> Iterator[Path]:
    """The directory in which the sender traces."""
    root = find_tracefs(pair.sender.directory.parent)
    try:
        disks = [TrackedDisk.open("", source.device, source.size) for source, _target in pair.disks]
        yield root.path / "instances" / tracing.instance_name("web1", disks)
    finally:
        root.close()


MakePair = Callable[..., Pair]


@contextmanager
def pair_factory() -> Iterator[MakePair]:
    """Builds pairs in a tmpfs directory: make_pair(source_size, target_size=None, disks=1, tracking=False)."""
    root = Path(tempfile.mkdtemp(prefix="fleetlift-test-", dir="/dev/shm"))
    pairs: list[Pair] = []
    loops: list[Loop] = []

    def make(size: int, target_size: int | None = None, disks: int = 1, tracking: bool = False) -> Pair:
        base = root / str(len(pairs))
        base.mkdir()
        made = []
        for number in range(disks):
            for name, length in (("source", size), ("target", target_size or size)):
                loops.append(Loop(base / f"{name}{number}.img", length))
            made.append((loops[-2], loops[-1]))
        pairs.append(Pair(base, made, free_port(), tracking=tracking))
        return pairs[-1]

    try:
        yield make
    finally:
        for pair in pairs:
            for agent in (pair.sender, pair.receiver):
                if agent.alive():
                    agent.kill()
            remove_trace(pair)
        for loop in loops:
            loop.detach()
        shutil.rmtree(root)
