# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleetlift_agent import freeze
from fleetlift_agent.errors import AgentError
from fleetlift_agent.freeze import FIFREEZE, FITHAW, FilesystemFreezer, mounts_of_disks

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import MIB, HostTree, MountNamespace, eventually, loop_device, mount_namespace, run

pytestmark = pytest.mark.root

AGENT = Path(__file__).resolve().parents[3] / "agent"
SIZE = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}


@dataclass(frozen=True)
class Filesystem:
    """A mounted filesystem that only this test uses, reached at ``path``."""

    kind: str
    device: Path
    mountpoint: str
    path: Path

    def thaw(self) -> bool:
        """Undo a freeze; whether there was one."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


class Writer:
    """A process that creates one file; while its filesystem is frozen the kernel holds it in state D."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(["touch", directory / f"written-{time.monotonic_ns()}"])

    def held(self) -> bool:
        if self.process.poll() is not None:
            return False
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"

    def finished(self) -> bool:
        return self.process.poll() == 0


def may_lower_the_memory_score() -> bool:
    """CAP_SYS_RESOURCE (bit 24), which root lacks in some containers."""
    status = Path("/proc/self/status").read_text()
    return bool(int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16) >> 24 & 1)


@contextlib.contextmanager
def mounted(namespace: MountNamespace, directory: Path, kind: str, mountpoint: str) -> Iterator[Filesystem]:
    with loop_device(directory / f"{kind}{mountpoint.replace('/', '-')}.img", SIZE[kind]) as device:
        run(f"mkfs.{kind}", "-q", device)
        namespace.run("mkdir", "-p", mountpoint)
        namespace.run("mount", device, mountpoint)
        filesystem = Filesystem(kind, device, mountpoint, namespace.root / mountpoint.lstrip("/"))
        try:
            yield filesystem
        finally:
            filesystem.thaw()
            namespace.run("umount", "--lazy", mountpoint)


@pytest.fixture
def namespace() -> Iterator[MountNamespace]:
    with mount_namespace() as created:
        yield created


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def filesystem(request: pytest.FixtureRequest, namespace: MountNamespace, tmp_path: Path) -> Iterator[Filesystem]:
    with mounted(namespace, tmp_path, request.param, "/mnt/data") as created:
        yield created


@pytest.fixture
def ext4(namespace: MountNamespace, tmp_path: Path) -> Iterator[Filesystem]:
    with mounted(namespace, tmp_path, "ext4", "/mnt/data") as created:
        yield created


def test_frozen_filesystem_holds_writers_until_thawed(filesystem: Filesystem) -> None:
    with FilesystemFreezer([filesystem.path], timeout=30) as freezer:
        assert not freezer.is_frozen()
        freezer.freeze()
        assert freezer.is_frozen()
        writer = Writer(filesystem.path)
        assert eventually(writer.held)
        freezer.thaw()
        assert eventually(writer.finished)
        assert not freezer.is_frozen()
        freezer.thaw()
    assert freezer.thawed_by is None


def test_frozen_filesystem_is_complete_on_its_device(ext4: Filesystem, tmp_path: Path) -> None:
    (ext4.path / "committed").write_text("before the freeze")
    with FilesystemFreezer([ext4.path], timeout=30) as freezer:
        freezer.freeze()
        copy = tmp_path / "copy.img"
        run("dd", f"if={ext4.device}", f"of={copy}", "bs=1M", "iflag=direct", "status=none")
        assert freezer.is_frozen()
    run("e2fsck", "-fn", copy)
    assert run("debugfs", "-R", "cat /committed", copy).endswith("before the freeze")


def test_leaving_the_context_thaws(ext4: Filesystem) -> None:
    with FilesystemFreezer([ext4.path], timeout=30) as freezer:
        freezer.freeze()
    assert not ext4.thaw()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_agent_leaves_no_frozen_filesystem(filesystem: Filesystem, number: signal.Signals) -> None:
    program = (
        "import sys, signal, time; from pathlib import Path; from fleetlift_agent.freeze import FilesystemFreezer\n"
        "freezer = FilesystemFreezer([Path(sys.argv[1])], timeout=600).__enter__(); freezer.freeze()\n"
        "print('frozen', flush=True); signal.pause()"
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", program, filesystem.path],
        env={"PYTHONPATH": str(AGENT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "frozen\n"
    writer = Writer(filesystem.path)
    assert eventually(writer.held)
    agent.send_signal(number)
    assert eventually(writer.finished, seconds=1)
    # The watchdog holds nothing of the agent's either: whoever reads the agent's output sees its end.
    assert agent.stdout.read() == ""
    agent.wait()


def test_child_of_the_agent_does_not_keep_the_watchdog_waiting(ext4: Filesystem) -> None:
    """A process that the agent forked holds the agent's descriptors and survives it."""
    program = (
        "import os, sys, signal; from pathlib import Path; from fleetlift_agent.freeze import FilesystemFreezer\n"
        "freezer = FilesystemFreezer([Path(sys.argv[1])], timeout=600).__enter__(); freezer.freeze()\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "signal.pause()"
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", program, ext4.path], env={"PYTHONPATH": str(AGENT)}, stdout=subprocess.PIPE, text=True
    )
    assert agent.stdout is not None
    child = int(agent.stdout.readline())
    try:
        agent.kill()
        agent.wait()
        assert eventually(Writer(ext4.path).finished, seconds=1)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_passed_deadline_thaws_and_is_known(ext4: Filesystem) -> None:
    with FilesystemFreezer([ext4.path], timeout=0.3) as freezer:
        started = time.monotonic()
        freezer.freeze()
        writer = Writer(ext4.path)
        assert eventually(writer.held)
        assert eventually(writer.finished)
        assert 0.3 <= time.monotonic() - started < 1
        assert freezer.thawed_by == "watchdog"
        assert not freezer.is_frozen()
        with pytest.raises(AgentError) as caught:
            freezer.extend(10)
        assert caught.value.code == "FREEZE_LOST"
    assert freezer.thawed_by == "watchdog"


def test_extended_deadline_keeps_the_freeze(ext4: Filesystem) -> None:
    with FilesystemFreezer([ext4.path], timeout=0.5) as freezer:
        freezer.freeze()
        started = time.monotonic()
        freezer.extend(30)
        assert eventually(lambda: time.monotonic() - started > 1)
        assert freezer.is_frozen()
        assert ext4.thaw()


def test_deadline_after_a_thaw_is_no_lost_freeze(ext4: Filesystem) -> None:
    with FilesystemFreezer([ext4.path], timeout=0.3) as freezer:
        freezer.freeze()
        freezer.thaw()
        started = time.monotonic()
        assert eventually(lambda: time.monotonic() - started > 0.8)
        assert freezer.thawed_by is None


def test_freeze_without_its_watchdog_is_given_up(ext4: Filesystem) -> None:
    with FilesystemFreezer([ext4.path], timeout=30) as freezer:
        freezer.freeze()
        assert freezer.watchdog_pid is not None
        os.kill(freezer.watchdog_pid, signal.SIGKILL)
        assert eventually(lambda: not freezer.is_frozen())
        assert not ext4.thaw()
        assert freezer.thawed_by == "watchdog"


def slow_watchdog(seconds: float) -> Any:
    """A watchdog for which there was no processor time at first."""
    start = freeze._watchdog_process

    def started_late(*arguments: Any) -> None:
        time.sleep(seconds)
        start(*arguments)

    return started_late


def test_watchdog_may_take_long_to_start_but_not_to_answer(ext4: Filesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "_REPLY_TIMEOUT", 0.2)
    monkeypatch.setattr(freeze, "_watchdog_process", slow_watchdog(1.0))
    with FilesystemFreezer([ext4.path], timeout=30) as freezer:
        assert freezer.watchdog_pid is not None


def test_watchdog_that_does_not_start_is_named(ext4: Filesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "_START_TIMEOUT", 0.1)
    monkeypatch.setattr(freeze, "_watchdog_process", slow_watchdog(1.0))
    with pytest.raises(AgentError) as caught, FilesystemFreezer([ext4.path], timeout=30):
        pass
    assert caught.value.code == "WATCHDOG_FAILED"


def test_watchdog_is_a_session_of_its_own_and_locked_in_memory(ext4: Filesystem) -> None:
    with FilesystemFreezer([ext4.path], timeout=30) as freezer:
        watchdog = freezer.watchdog_pid
        assert watchdog is not None
        assert os.getsid(watchdog) == watchdog != os.getsid(0)
        status = Path(f"/proc/{watchdog}/status").read_text()
        locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck:"))
        if may_lower_the_memory_score():
            assert Path(f"/proc/{watchdog}/oom_score_adj").read_text() == "-1000\n"
        assert locked > 0
        held = sorted(os.readlink(f"/proc/{watchdog}/fd/{name}") for name in os.listdir(f"/proc/{watchdog}/fd"))
        assert len(held) == 2
        assert held[1].startswith("socket:")
    assert not Path(f"/proc/{watchdog}").exists()


def test_freezer_works_from_a_thread(ext4: Filesystem) -> None:
    """A daemon freezes in the thread that serves the command."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with FilesystemFreezer([ext4.path], timeout=30) as freezer:
                freezer.freeze()
                assert freezer.is_frozen()
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert not failures
    assert not ext4.thaw()


def test_failed_freeze_thaws_those_frozen_before(namespace: MountNamespace, tmp_path: Path) -> None:
    with (
        mounted(namespace, tmp_path, "ext4", "/mnt/first") as first,
        mounted(namespace, tmp_path, "ext4", "/mnt/second") as second,
        FilesystemFreezer([first.path, second.path], timeout=30) as freezer,
    ):
        fd = os.open(second.path, os.O_RDONLY)
        fcntl.ioctl(fd, FIFREEZE, 0)
        os.close(fd)
        with pytest.raises(AgentError) as caught:
            freezer.freeze()
        assert caught.value.code == "FREEZE_FAILED"
        assert caught.value.subject == str(second.path)
        assert not freezer.is_frozen()
        assert not first.thaw()
        # What someone else froze is not ours to thaw.
        freezer.close()
        assert second.thaw()


def test_filesystem_without_freeze_is_an_error(namespace: MountNamespace) -> None:
    with (
        FilesystemFreezer([namespace.root / "mnt"], timeout=30) as freezer,
        pytest.raises(AgentError) as caught,
    ):
        freezer.freeze()
    assert caught.value.code == "FREEZE_FAILED"


def test_missing_mount_is_an_error_and_leaves_nothing(ext4: Filesystem, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AgentError) as caught, FilesystemFreezer([ext4.path, tmp_path / "gone"], timeout=30):
        pass
    assert caught.value.code == "FREEZE_FAILED"
    assert len(os.listdir("/proc/self/fd")) == before


def test_mounts_of_a_disk_are_found_once_without_read_only_ones(
    filesystem: Filesystem, namespace: MountNamespace
) -> None:
    namespace.run("mkdir", "-p", filesystem.mountpoint + "/sub", "/mnt/aliased/deep/down", "/mnt/z")
    namespace.run("mount", "--bind", filesystem.mountpoint + "/sub", "/mnt/aliased/deep/down")
    namespace.run("mount", "--bind", filesystem.mountpoint, "/mnt/z")

    def found() -> list[Path]:
        return mounts_of_disks([filesystem.device], mountinfo=namespace.mountinfo, root=namespace.root)

    assert len(found()) == 1
    with FilesystemFreezer(found(), timeout=30) as freezer:
        freezer.freeze()
        writer = Writer(filesystem.path)
        assert eventually(writer.held)
    assert eventually(writer.finished)
    namespace.run("umount", "/mnt/z")
    namespace.run("umount", "/mnt/aliased/deep/down")
    namespace.run("mount", "-o", "remount,ro", filesystem.mountpoint)
    assert found() == []


def test_disks_without_filesystems_have_no_mounts(
    filesystem: Filesystem, namespace: MountNamespace, tmp_path: Path
) -> None:
    with loop_device(tmp_path / "empty.img", 64 * MIB) as empty:
        assert mounts_of_disks([empty], mountinfo=namespace.mountinfo, root=namespace.root) == []


def test_mounts_come_deepest_first(namespace: MountNamespace, tmp_path: Path) -> None:
    with (
        mounted(namespace, tmp_path, "ext4", "/mnt/var") as var,
        mounted(namespace, tmp_path, "btrfs", "/mnt/var/lib/db") as database,
        mounted(namespace, tmp_path, "xfs", "/mnt/srv") as srv,
    ):
        devices = [var.device, srv.device, database.device]
        found = mounts_of_disks(devices, mountinfo=namespace.mountinfo, root=namespace.root)
        assert found == [database.path, srv.path, var.path]


def test_mounts_on_partitions_and_volumes_belong_to_the_disk(namespace: MountNamespace, tmp_path: Path) -> None:
    with (
        loop_device(tmp_path / "disk.img", 64 * MIB) as disk,
        mounted(namespace, tmp_path, "ext4", "/mnt/boot") as boot,
        mounted(namespace, tmp_path, "btrfs", "/mnt/volume") as volume,
    ):
        host = HostTree.create(tmp_path / "host")
        block = host.add_disk("sda", disk, "SN-1")
        host.add_partition("sda", "sda1", boot.device)
        (block / "holders/dm-0").symlink_to(host.add_disk("dm-0", volume.device, ""))
        found = mounts_of_disks([disk], mountinfo=namespace.mountinfo, sys=host.sys, dev=host.dev, root=namespace.root)
        assert found == [boot.path, volume.path]


def test_second_device_of_a_btrfs_leads_to_its_mount(namespace: MountNamespace, tmp_path: Path) -> None:
    with loop_device(tmp_path / "a.img", SIZE["btrfs"]) as one, loop_device(tmp_path / "b.img", SIZE["btrfs"]) as two:
        run("mkfs.btrfs", "-q", one, two)
        run("btrfs", "device", "scan", one, two)
        namespace.run("mount", one, "/mnt")
        try:
            for device in (one, two):
                found = mounts_of_disks([device], mountinfo=namespace.mountinfo, root=namespace.root)
                assert found == [namespace.root / "mnt"]
        finally:
            namespace.run("umount", "/mnt")
            run("btrfs", "device", "scan", "--forget", one)


def test_btrfs_is_found_under_another_name_of_its_device(namespace: MountNamespace, tmp_path: Path) -> None:
    """Where the mount was made under a name that does not exist here, only the filesystem id tells."""
    with mounted(namespace, tmp_path, "btrfs", "/mnt/data") as data:
        host = HostTree.create(tmp_path / "host")
        host.add_disk("sda", data.device, "SN-1")
        mountinfo = tmp_path / "mountinfo"
        mountinfo.write_text(namespace.mountinfo.read_text().replace(str(data.device), "/dev/elsewhere"))
        found = mounts_of_disks(
            [host.dev / "sda"], mountinfo=mountinfo, sys=host.sys, dev=host.dev, root=namespace.root
        )
        assert found == [data.path]


def test_hidden_filesystem_is_refused(namespace: MountNamespace, tmp_path: Path) -> None:
    with mounted(namespace, tmp_path, "ext4", "/mnt/data") as hidden:
        namespace.run("mount", "-t", "tmpfs", "tmpfs", "/mnt/data")
        try:
            with pytest.raises(AgentError) as caught:
                mounts_of_disks([hidden.device], mountinfo=namespace.mountinfo, root=namespace.root)
            assert caught.value.code == "FILESYSTEM_UNREACHABLE"
        finally:
            namespace.run("umount", "/mnt/data")


def test_plain_file_has_no_mounts(tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(bytes(MIB))
    with pytest.raises(AgentError) as caught:
        mounts_of_disks([file])
    assert caught.value.code == "SOURCE_DISK_NOT_A_DISK"
