# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon: opens what config.json names, detaches, answers commands until told to end."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from fleetlift_agent import activated, devices, memory
from fleetlift_agent.config import Config, load_config
from fleetlift_agent.control import Command, ControlServer
from fleetlift_agent.errors import AgentError
from fleetlift_agent.hash_pool import HashPool
from fleetlift_agent.mask import NullMask, UsedBlocksMask
from fleetlift_agent.quiesce import Quiesce
from fleetlift_agent.receiver import VERIFY_THREADS, Receiver
from fleetlift_agent.replica import ReplicaDisk
from fleetlift_agent.replication import Replication
from fleetlift_agent.sender import Route, SenderDisk, pool_size
from fleetlift_agent.state import State
from fleetlift_agent.tls import load_identity
from fleetlift_agent.tracing import NullTracker, TrackedDisk, Tracker, open_tracker, remove_trace

log = logging.getLogger(__name__)

LOCK, PID, LOG = "daemon.lock", "daemon.pid", "agent.log"
_START_SECONDS = 60.0
_LOG_LIMIT = 4 << 20
# Locked memory counts whole thread stacks, and the default of 8 MiB is never used.
_STACK = 512 << 10


@dataclass(frozen=True)
class Openers:
    """How disks are found and opened."""

    source: Callable[[Path, int], devices.SourceDisk] = devices.open_source
    target: Callable[[str, int], devices.TargetDisk] = devices.find_target


def start(directory: Path, openers: Openers = Openers()) -> dict[str, Any]:
    """Start the daemon of `directory` and wait until it answers. Idempotent. Raises AgentError."""
    load_config(directory)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detach_and_run(directory, writer, openers)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    try:
        report = json.loads(answer)
    except ValueError:
        raise AgentError(
            "AGENT_START_FAILED",
            "The agent ended before it was ready",
            f"Read {directory / LOG} on this host",
            subject=str(directory),
        ) from None
    if "error" in report:
        raise AgentError.from_record(report["error"])
    return dict(report)


def clean(directory: Path) -> dict[str, Any]:
    """Remove the trace of a sender that did not end by itself. Idempotent; nothing else outlives a daemon."""
    config = load_config(directory)
    if config.role != "sender":
        return {"removed": False}
    disks = [
        TrackedDisk.open(disk.id, disk.device, disk.size)
        for disk in config.disks
        if disk.device is not None and disk.device.exists()
    ]
    return {"removed": remove_trace(directory, config.migration, disks)}


def _detach_and_run(directory: Path, report: int, openers: Openers) -> None:
    """In the forked child: become a daemon and never return."""
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    status = 1
    try:
        os.chdir(directory)
        os.umask(0o077)
        _redirect(directory / LOG)
        _run_reporting(directory, report, openers)
        status = 0
    except AgentError as error:
        log.error("%s", error)
        os.write(report, json.dumps({"error": error.record()}).encode())
    except BaseException:
        log.exception("the daemon ended")
    finally:
        logging.shutdown()
        os._exit(status)


def _run_reporting(directory: Path, report: int, openers: Openers) -> None:
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(report, json.dumps({"pid": _running_pid(directory), "already_running": True}).encode())
        os.close(report)
        return
    (directory / PID).write_text(f"{os.getpid()}\n", encoding="ascii")

    def ready() -> None:
        os.write(report, json.dumps({"pid": os.getpid(), "already_running": False}).encode())
        os.close(report)

    Daemon(directory, load_config(directory), openers).run(ready)


def _running_pid(directory: Path) -> int:
    """The pid of the daemon that holds the lock; it may be about to write it."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        text = (directory / PID).read_text(encoding="ascii") if (directory / PID).exists() else ""
        if text.strip().isdigit():
            return int(text)
        if time.monotonic() > deadline:
            raise AgentError("AGENT_START_FAILED", "Another agent holds the lock without a pid", "Try again")
        time.sleep(0.05)


def _redirect(path: Path) -> None:
    """Standard streams and log into the agent's directory, so that nothing ties the daemon to its terminal."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    null = os.open(os.devnull, os.O_RDWR)
    stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(null)
    os.close(stream)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )


class Daemon:
    """One daemon of either role; `run` returns after `shutdown` or SIGTERM."""

    def __init__(self, directory: Path, config: Config, openers: Openers) -> None:
        self._directory = directory
        self._config = config
        self._openers = openers
        self._ending = threading.Event()

    def run(self, ready: Callable[[], None]) -> None:
        threading.stack_size(_STACK)
        # A .pyc written next to a module would wait for a frozen filesystem.
        sys.dont_write_bytecode = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ending.set())
        with ExitStack() as resources:
            if self._config.role == "sender":
                state, commands = self._sender(resources)
            else:
                state, commands = self._receiver(resources)
            resources.callback(state.close)
            server = ControlServer(
                self._directory, {"status": lambda _: state.snapshot(), "shutdown": self._shutdown, **commands}
            )
            resources.callback(server.drain)
            server.start()
            log.info("%s of %s is ready", self._config.role, self._config.migration)
            ready()
            # An event waited for without a timeout would keep signals from being noticed on old Pythons.
            while not self._ending.wait(1.0):
                continue
        log.info("ended")

    def _shutdown(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        self._ending.set()
        return {}

    def _sender(self, resources: ExitStack) -> tuple[State, dict[str, Command]]:
        config = self._config
        sources = []
        for disk in config.disks:
            assert disk.device is not None
            source = self._openers.source(disk.device, disk.size)
            resources.callback(source.close)
            sources.append(source)
        identity = load_identity(config.tls, server=False)
        state = State(
            self._directory / "state.json",
            config.migration,
            "sender",
            "idle",
            [
                {
                    "id": disk.id,
                    "device": str(disk.device),
                    "serial": source.serial,
                    "size": disk.size,
                    "target_serial": disk.serial,
                    "root_hash": None,
                }
                for disk, source in zip(config.disks, sources)
            ],
        )
        tracked = [
            TrackedDisk.open(disk.id, source.path, disk.size, disk.serial)
            for disk, source in zip(config.disks, sources)
        ]
        hashes = HashPool(pool_size(config.connections))
        replication = Replication(
            hashes=hashes,
            migration=config.migration,
            disks=[SenderDisk(disk.id, source, disk.serial) for disk, source in zip(config.disks, sources)],
            tracked=tracked,
            open_tracker=self._tracker_opener(tracked),
            mask=UsedBlocksMask(sources, self._directory) if config.skip_free else NullMask(self._directory),
            audit=config.audit,
            route=Route(
                config.host,
                config.port,
                identity,
                config.connections,
                config.peer_timeout,
                config.proxy,
                config.compression,
            ),
            quiesce=Quiesce([source.path for source in sources], self._directory, config.left_behind),
            state=state,
            bandwidth_limit=config.bandwidth_limit,
            max_passes=config.max_passes,
            max_downtime=config.max_downtime,
        )
        for note in memory.preload_and_lock():
            log.warning("%s", note)
        hashes.start()
        resources.callback(hashes.close)
        resources.callback(replication.close)
        state.start_ticker(replication.publish)
        return state, {
            "replicate": replication.replicate,
            "set": replication.set,
            "stop": replication.stop,
            "cutover": replication.cutover,
            "release": replication.release,
            "abort": replication.abort,
            "give_back": replication.give_back,
        }

    def _tracker_opener(self, disks: list[TrackedDisk]) -> Callable[[], Tracker]:
        if not self._config.change_tracking:
            return lambda: NullTracker(disks, "it is switched off in the configuration")
        return lambda: open_tracker(self._directory, self._config.migration, disks)

    def _receiver(self, resources: ExitStack) -> tuple[State, dict[str, Command]]:
        config = self._config
        replicas = []
        targets = []
        activated.release([disk.serial for disk in config.disks])
        for disk in config.disks:
            target = self._openers.target(disk.serial, disk.size)
            resources.callback(target.close)
            targets.append(target)
            replicas.append(ReplicaDisk(disk.id, target, disk.size))
        identity = load_identity(config.tls, server=True)
        listener = listen(config.host, config.port)
        state = State(
            self._directory / "state.json",
            config.migration,
            "receiver",
            "listening",
            [
                {
                    "id": disk.id,
                    "device": str(target.path),
                    "serial": target.serial,
                    "size": disk.size,
                    "target_serial": disk.serial,
                    "root_hash": None,
                }
                for disk, target in zip(config.disks, targets)
            ],
        )
        # Of each connection one for what is read and one for what is written, and those of the reading back.
        hashes = HashPool(2 * config.connections + 2 * VERIFY_THREADS + 1)
        hashes.start()
        resources.callback(hashes.close)
        receiver = Receiver(
            hashes=hashes,
            migration=config.migration,
            disks=replicas,
            identity=identity,
            listener=listener,
            directory=self._directory,
            state=state,
            peer_timeout=config.peer_timeout,
            scrub_interval=config.scrub_interval,
        )
        resources.callback(receiver.close)
        receiver.start()
        state.start_ticker(lambda: None)
        return state, {}


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises AgentError LISTEN_FAILED."""
    try:
        return socket.create_server((host, port), backlog=64, reuse_port=False)
    except OSError as error:
        raise AgentError(
            "LISTEN_FAILED",
            f"The receiver cannot listen on {host}:{port}: {error.strerror or error}",
            "End what uses this port in the landing, or choose another agent port for this migration",
            {"host": host, "port": port},
            subject="receiver",
        ) from error
