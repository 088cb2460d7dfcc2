# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Preparing: a copy is adapted, the user's own file never, and nothing is left behind whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import image_files
import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.images import prepare as preparing
from ansible_collections.fleetlift.cvm.plugins.module_utils.images import qemu
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.estimate import Assumptions
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.header import ImageFile
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.inspection import Inspected, Order, inspect
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.judgement import Look, Wishes
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.prepare import Wish, prepare
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.recognise import recognise
from ansible_collections.fleetlift.cvm.plugins.module_utils.upload_progress import UploadProgress
from image_files import KERNEL, MIB, VIRTIO
from play_here import play

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[3]
AGENT = str(REPOSITORY / "agent")
OPTIONS = {
    "skip": [],
    "firmware": "auto",
    "grow": False,
    "root": "",
    "network": {},
    "consoles": [],
    "cloud_init": "safe",
    "timeout": 600,
}
# Stands for the program of the image that makes its initramfs. It is run in the image, which has nothing but busybox.
MKINITRAMFS = f"""#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
cd /spare && find . | cpio -o -H newc > $out && echo made for {KERNEL}
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """A raw disk of a guest whose initramfs lacks virtio, and whose tools can make another one."""
    workshop = tmp_path_factory.mktemp("guest")
    root = image_files.system(workshop / "root", in_initramfs=["ata_piix"])
    (root / "usr/sbin").mkdir()
    for name in VIRTIO:
        module = root / f"spare/usr/lib/modules/{KERNEL}/kernel/{name}.ko"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.touch()
    busybox = Path("/bin/busybox").read_bytes()
    (root / "usr/bin/dash").write_bytes(busybox)
    for name in ("sh", "find", "cpio"):
        (root / "usr/bin" / name).unlink(missing_ok=True)
        (root / "usr/bin" / name).write_bytes(busybox)
        (root / "usr/bin" / name).chmod(0o755)
    (root / "usr/sbin/mkinitramfs").write_text(MKINITRAMFS)
    (root / "usr/sbin/mkinitramfs").chmod(0o755)
    (root / "etc/initramfs-tools").mkdir()
    (root / "etc/network").mkdir()
    (root / "etc/network/interfaces").write_text("auto ens33\niface ens33 inet static\n address 10.1.1.5/24\n")
    for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
    image_files.filesystem(workshop / "volume", "ext4", root, 48 * MIB)
    return image_files.disk(workshop / "guest.raw", workshop / "volume")


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def do(path, dest, **given):
    """The module's result."""
    options = {**OPTIONS, **given.pop("options", {})}
    return prepare(Wish(str(path), str(dest), options, **given), AGENT, UploadProgress(0))


def look(path):
    return inspect(str(path), Order(AGENT), Wishes(), Assumptions(12.5e6))


def loops():
    """The files behind the loop devices of this machine."""
    return {path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")}


def nothing_left(directory):
    """Neither half files nor mounts nor loop devices."""
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert not any(str(directory) in file for file in loops())


@pytest.mark.parametrize("name", ["stream vmdk", "raw"])
def test_the_copy_gets_what_it_needs_and_the_users_file_stays(name, guest, tmp_path):
    source = image_files.converted(guest, tmp_path, name)
    before = digest(source)

    result = do(source, tmp_path / "ready.qcow2")

    assert result["changed"] is True
    assert {change["concern"] for change in result["changes"]} >= {"fstab", "initramfs", "network"}
    after = look(tmp_path / "ready.qcow2")
    assert after["image"]["format"] == "qcow2"
    assert after["virtio"] is True
    assert after["ok"] is True
    assert look(source)["virtio"] is False
    assert digest(source) == before
    record = json.loads((tmp_path / "ready.qcow2.adapt.json").read_text())
    assert record["changes"] == result["changes"]
    nothing_left(tmp_path)


def test_a_prepared_image_may_be_raw(guest, tmp_path):
    do(guest, tmp_path / "ready.raw", format="raw")

    assert look(tmp_path / "ready.raw")["virtio"] is True
    nothing_left(tmp_path)


def test_the_disk_and_what_is_on_it_grow_to_the_size_that_is_asked_for(tmp_path):
    """On XFS: for a mounted ext4 the kernel wants a capability that root lacks in some containers."""
    root = image_files.system(tmp_path / "root")
    for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
    image_files.filesystem(tmp_path / "volume", "xfs", root, 300 * MIB)
    source = image_files.disk(tmp_path / "guest.raw", tmp_path / "volume")
    size = source.stat().st_size + 64 * MIB

    result = do(source, tmp_path / "ready.raw", format="raw", grow_to=size)

    assert "GROW_FAILED" not in [finding["code"] for finding in result["findings"]]
    after = look(tmp_path / "ready.raw")
    assert after["image"]["virtual_size"] == size
    partition = after["partitions"][0]
    assert partition["start"] + partition["size"] == size
    with (tmp_path / "ready.raw").open("rb") as file:
        file.seek(partition["start"])
        # fs/xfs/libxfs/xfs_format.h: sb_blocksize and sb_dblocks.
        _magic, block, blocks = struct.unpack(">4sIQ", file.read(16))
    assert partition["size"] - block * blocks < MIB
    assert look(source)["image"]["virtual_size"] == size - 64 * MIB
    with pytest.raises(Refusal, match="OPTION_OUT_OF_RANGE"):
        do(source, tmp_path / "smaller.qcow2", grow_to=size - 65 * MIB)


def test_a_second_run_does_nothing_until_the_image_or_the_options_change(guest, tmp_path):
    source = tmp_path / "guest.raw"
    source.write_bytes(guest.read_bytes())
    first = do(source, tmp_path / "ready.qcow2")

    again = do(source, tmp_path / "ready.qcow2")
    assert (again["changed"], again["changes"]) == (False, first["changes"])

    assert do(source, tmp_path / "ready.qcow2", options={"cloud_init": "keep"})["changed"] is True
    os.utime(source)
    assert do(source, tmp_path / "ready.qcow2", options={"cloud_init": "keep"})["changed"] is True
    with (tmp_path / "ready.qcow2").open("ab") as file:
        file.write(b"written to since")
    assert do(source, tmp_path / "ready.qcow2", options={"cloud_init": "keep"})["changed"] is True
    (tmp_path / "ready.qcow2.adapt.json").write_text("[]")
    assert do(source, tmp_path / "ready.qcow2", options={"cloud_init": "keep"})["changed"] is True


def test_check_mode_shows_the_changes_and_makes_nothing(guest, tmp_path):
    result = do(guest, tmp_path / "ready.qcow2", check_mode=True, diff=True)

    assert result["changed"] is True
    assert "/etc/fstab" in [each["before_header"] for each in result["diff"]]
    assert list(tmp_path.iterdir()) == []
    nothing_left(tmp_path)


def test_what_the_adaptation_refuses_leaves_nothing(guest, tmp_path):
    with pytest.raises(Refusal, match="ROOT_NOT_FOUND"):
        do(guest, tmp_path / "ready.qcow2", options={"root": "UUID=0000"})

    assert list(tmp_path.iterdir()) == []
    nothing_left(tmp_path)


def test_an_adaptation_that_takes_too_long_is_stopped(guest, tmp_path, monkeypatch):
    def late(*words, **options):
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(preparing.subprocess, "run", late)
    monkeypatch.setattr(preparing, "look_at", lambda file, _order: looked)
    with ImageFile(str(guest)) as file:
        looked = Inspected(Look(guest.name, file.size, recognise(file), qemu.Consistency(True)))

    with pytest.raises(Refusal, match="ADAPT_TIMEOUT"):
        do(guest, tmp_path / "ready.qcow2")

    assert list(tmp_path.iterdir()) == []


def test_an_adaptation_that_says_nothing_is_a_record(guest, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_program", lambda _agent: ["-c", "raise SystemExit(3)"])

    with pytest.raises(Refusal, match="ADAPT_UNREADABLE: .* status 3"):
        do(guest, tmp_path / "ready.qcow2")

    assert list(tmp_path.iterdir()) == []


def test_a_guest_that_wrote_the_header_of_an_image_to_its_disk_is_copied_as_it_is(guest, tmp_path):
    """The first sector of a raw disk is the guest's: it must not make its copy another format."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of this host" * 1000)
    evil = tmp_path / "evil.qcow2"
    image_files.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, evil)
    raw = tmp_path / "disk.raw"
    raw.write_bytes(evil.read_bytes()[:440] + guest.read_bytes()[440:])
    source = tmp_path / "disk.vmdk"
    image_files.run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, source)

    do(source, tmp_path / "ready.qcow2")

    assert look(tmp_path / "ready.qcow2")["virtio"] is True


def test_who_is_not_root_is_told_so_before_anything_is_copied(guest, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.os, "geteuid", lambda: 1000)

    with pytest.raises(Refusal, match="NOT_ROOT"):
        do(guest, tmp_path / "ready.qcow2")

    assert list(tmp_path.iterdir()) == []


def test_the_module_runs_in_a_play_and_shows_the_difference(guest, tmp_path):
    made = tmp_path / "images"
    made.mkdir()
    task = {"path": str(guest), "dest": str(made / "ready.qcow2"), "network": {"mode": "dhcp"}}

    status, output = play(tmp_path, [{"fleetlift.cvm.image_prepare": task}], "--check", "--diff")

    assert status == 0, output
    assert "-/dev/sda1 / ext4" in output
    assert list(made.iterdir()) == []

    status, output = play(tmp_path, [{"fleetlift.cvm.image_prepare": task}])
    assert status == 0, output
    assert look(made / "ready.qcow2")["ok"] is True


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_while_the_copy_is_mounted_leaves_nothing(how, tmp_path):
    """The program of the image that makes the initramfs hangs, so that the copy is mounted at this moment."""
    root = image_files.system(tmp_path / "root", in_initramfs=[])
    (root / "usr/sbin").mkdir()
    (root / "usr/bin/sh").unlink()
    for name in ("sh", "sleep"):
        (root / "usr/bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (root / "usr/bin" / name).chmod(0o755)
    (root / "usr/sbin/mkinitramfs").write_text("#!/bin/sh\nexec sleep 600\n")
    (root / "usr/sbin/mkinitramfs").chmod(0o755)
    for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp", "etc/initramfs-tools"):
        (root / name).mkdir(parents=True)
    image_files.filesystem(tmp_path / "volume", "ext4", root, 32 * MIB)
    source = image_files.disk(tmp_path / "guest.raw", tmp_path / "volume")
    images = tmp_path / "images"
    images.mkdir()
    arguments = {"path": str(source), "dest": str(images / "ready.qcow2"), "agent": AGENT}
    words = [sys.executable, str(Path(__file__).with_name("run_module.py")), "image_prepare"]
    collections = next(path for path in sys.path if Path(path, "ansible_collections/fleetlift").is_dir())
    environment = {**os.environ, "PYTHONPATH": collections}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as module:
        module.stdin.write(json.dumps(arguments).encode())
        module.stdin.close()
        deadline = time.monotonic() + 120
        while not any(str(images) in file for file in loops()) and time.monotonic() < deadline:
            time.sleep(0.02)
        mounted = any(str(images) in file for file in loops())
        module.send_signal(how)
        module.wait()
    assert mounted
    deadline = time.monotonic() + 60
    while any(str(images) in file for file in loops()) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not (images / "ready.qcow2").exists()
    if how == signal.SIGTERM:
        nothing_left(images)
    else:
        # The kernel ends what the run began; its half file is taken over by the next run.
        assert not any(str(images) in file for file in loops())
