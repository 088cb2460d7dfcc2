# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole adaptation on real disks: partition tables, filesystems, and the copy's own generator in a chroot."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import server_disk
from block_devices import eventually, run
from fleetlift_agent.adapt import copy
from fleetlift_agent.errors import AgentError
from server_disk import DRIVERS, MIB, VERSION, Server

INITRD = f"boot/initrd.img-{VERSION}"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def modules_in(initramfs: bytes) -> set[str]:
    listed = subprocess.run(["cpio", "--quiet", "-t"], input=initramfs, stdout=subprocess.PIPE, check=True)
    return {Path(line).name for line in listed.stdout.decode().splitlines()}


def codes(answer: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in answer["findings"]}


def table(image: Path) -> dict[str, Any]:
    """The partition table as sfdisk finds it, which must have nothing to say against it."""
    said = run("sfdisk", "--verify", image)
    assert "No errors detected" in said, said
    found: dict[str, Any] = json.loads(run("sfdisk", "--json", image))["partitiontable"]
    return found


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return server_disk.make(tmp_path / "disk.img")


def test_a_copy_gets_virtio_and_names_that_it_has_on_the_target(server: Server) -> None:
    answer = server.adapt()
    assert answer["ok"] and answer["changed"], answer
    files = server.files()
    assert {f"{name}.ko" for name in DRIVERS} <= modules_in(files[INITRD])
    assert b"\nUUID=" in b"\n" + files["etc/fstab"] and b"/dev/sda1" not in files["etc/fstab"]
    assert b"/dev/sdq1 /backup ext4 defaults,nofail 0 0" in files["etc/fstab"]
    assert b"iface eth0 inet dhcp" in files["etc/network/interfaces"]
    assert not [name for name in files if name.endswith(".fleetlift")]


def test_a_check_shows_every_change_and_writes_no_byte(server: Server) -> None:
    before = digest(server.image)
    looked = server.adapt(check=True, diff=True)
    assert digest(server.image) == before
    shown = {change["path"]: change for change in looked["changes"] if change["path"]}
    assert "nofail" in shown["/etc/fstab"]["after"] and "nofail" not in shown["/etc/fstab"]["before"]
    done = server.adapt()
    assert [change["path"] for change in looked["changes"]] == [change["path"] for change in done["changes"]]


def test_a_second_run_changes_nothing(server: Server) -> None:
    server.adapt()
    first = server.files()
    again = server.adapt()
    assert (again["ok"], again["changed"], again["changes"]) == (True, False, [])
    assert server.files() == first


def test_undoing_gives_every_byte_of_every_file_back(server: Server) -> None:
    before = server.files()
    server.adapt()
    assert server.files() != before
    undone = server.adapt(undo=True)
    assert undone["ok"] and undone["changed"]
    assert server.files() == before


def test_originals_and_a_record_of_all_changes_lie_on_the_copy(server: Server) -> None:
    before = server.files()
    answer = server.adapt()
    with server.mounted() as root:
        record = json.loads((root / "var/lib/fleetlift/adapt.json").read_text())
        kept = root / "var/lib/fleetlift/originals"
        assert {change["path"] for change in record["changes"]} >= {
            change["path"] for change in answer["changes"] if change["path"]
        }
        for name in ("etc/fstab", "etc/network/interfaces", INITRD):
            assert (kept / name).read_bytes() == before[name]


def test_a_power_loss_while_the_initramfs_is_made_costs_nothing_and_the_next_run_completes(
    server: Server, tmp_path: Path
) -> None:
    before = server.files()
    with server.mounted() as root:
        (root / "wait").touch()
    adapting = server.run()
    # Once the generator has said so, and that has reached the disk.
    assert eventually(lambda: b"reached\n" in server.image.read_bytes(), 60)
    # What is in the file now is what a disk holds that has lost its power: nothing that was only in memory.
    cut = server.moved_to(tmp_path / "cut.img")
    adapting.kill()
    adapting.communicate()

    with cut.mounted() as root:
        assert (root / INITRD).read_bytes() == before[INITRD]
        (root / "wait").unlink()
        (root / "reached").unlink(missing_ok=True)
    answer = cut.adapt()

    assert answer["ok"], answer
    files = cut.files()
    assert {f"{name}.ko" for name in DRIVERS} <= modules_in(files[INITRD])
    assert not [name for name in files if name.endswith(".fleetlift")]
    cut.adapt(undo=True)
    assert cut.files() == before


def test_an_adaptation_that_is_killed_leaves_no_mount_and_no_loop_device(server: Server) -> None:
    with server.mounted() as root:
        (root / "wait").touch()
    adapting = server.run()
    assert eventually(lambda: b"reached\n" in server.image.read_bytes(), 60)
    adapting.kill()
    adapting.communicate()
    assert eventually(lambda: not run("losetup", "--associated", server.image), 30)
    assert str(server.image) not in Path("/proc/mounts").read_text()


def test_the_device_manager_waits_for_the_mounts_and_not_for_the_initramfs(server: Server) -> None:
    with server.mounted() as root:
        (root / "wait").touch()
    device = run("losetup", "--find", "--show", server.image)
    try:
        adapting = replace(server, image=Path(device)).run()
        try:
            assert eventually(lambda: b"reached\n" in server.image.read_bytes(), 60)
            with open(device, "rb") as disk:
                # As the device manager takes it before it looks at a disk.
                fcntl.flock(disk, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            adapting.kill()
            adapting.communicate()
    finally:
        run("losetup", "--detach", device)


def test_two_adaptations_of_one_disk_do_not_run_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "_LOCK_SECONDS", 0.1)
    with copy.held(server.image, tmp_path), pytest.raises(AgentError) as caught, copy.held(server.image, tmp_path):
        pass
    assert caught.value.code == "ADAPT_BUSY"


def test_a_generator_that_fails_leaves_the_old_image_and_says_what_it_said(server: Server) -> None:
    before = server.files()
    with server.mounted() as root:
        (root / "usr/sbin/mkinitramfs").write_text("#!/bin/sh\necho no space left >&2\nexit 3\n")
    answer = server.adapt()
    assert not answer["ok"]
    assert answer["error"]["code"] == "INITRAMFS_FAILED"
    assert "no space left" in json.dumps(answer["error"]["evidence"])
    assert server.files()[INITRD] == before[INITRD]


def test_a_generator_that_leaves_a_driver_out_is_not_believed(server: Server) -> None:
    before = server.files()
    with server.mounted() as root:
        (root / "usr/sbin/mkinitramfs").write_text('#!/bin/sh\necho -n | cpio -o -H newc >"$2"\n')
    answer = server.adapt()
    assert answer["error"]["code"] == "INITRAMFS_INCOMPLETE"
    assert server.files()[INITRD] == before[INITRD]


def may_resize_ext4() -> bool:
    """Whether this process has CAP_SYS_RESOURCE (bit 24), which the kernel wants for a mounted ext4."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> 24 & 1)


ONLINE_EXT4 = pytest.mark.skipif(not may_resize_ext4(), reason="root may not resize a mounted ext4 here")


@pytest.mark.parametrize("filesystem", [pytest.param("ext4", marks=ONLINE_EXT4), "xfs", "btrfs"])
@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_partition_and_filesystem_grow_to_a_larger_disk_when_asked(filesystem: str, kind: str, tmp_path: Path) -> None:
    small = server_disk.make(tmp_path / "small.img", filesystem=filesystem, table=kind)
    large = small.moved_to(tmp_path / "large.img", 512 * MIB)

    answer = large.adapt(options={"grow": True})

    assert answer["ok"] and codes(answer).isdisjoint({"GROW_FAILED", "GROW_NOT_POSSIBLE"}), answer
    (part,) = table(large.image)["partitions"]
    assert part["start"] * 512 == small.start and part["size"] * 512 > 505 * MIB
    with large.mounted() as root:
        status = os.statvfs(root)
    assert status.f_blocks * status.f_frsize > 400 * MIB
    assert [each["action"] for each in answer["changes"] if "filesystem has" in each["action"]]
    again = large.adapt(options={"grow": True})
    assert (again["ok"], again["changed"]) == (True, False), again


def test_a_filesystem_that_does_not_grow_is_named_and_the_copy_adapted_all_the_same(tmp_path: Path) -> None:
    small = server_disk.make(tmp_path / "small.img", filesystem="xfs")
    large = small.moved_to(tmp_path / "large.img", 512 * MIB)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "xfs_growfs").write_text("#!/bin/sh\necho it is too hot >&2\nexit 1\n")
    (programs / "xfs_growfs").chmod(0o755)

    order = ["mount --bind", str(programs / "xfs_growfs"), run("which", "xfs_growfs")]
    answer = large.adapt(options={"grow": True}, before=" ".join(order))

    (failed,) = (finding for finding in answer["findings"] if finding["code"] == "GROW_FAILED")
    assert answer["ok"] and "too hot" in failed["evidence"]["output"]
    assert {f"{name}.ko" for name in DRIVERS} <= modules_in(large.files()[INITRD])


def test_without_being_asked_only_the_backup_of_the_table_moves(tmp_path: Path) -> None:
    small = server_disk.make(tmp_path / "small.img", table="gpt")
    before = table(small.image)
    large = small.moved_to(tmp_path / "large.img", 512 * MIB)

    answer = large.adapt()

    after = table(large.image)
    assert answer["ok"] and after["partitions"][0]["size"] == before["partitions"][0]["size"]
    assert after["lastlba"] * 512 > 510 * MIB
    with large.image.open("rb") as file:
        file.seek(512 * MIB - 512)
        assert file.read(8) == b"EFI PART"


def test_a_swap_partition_in_the_way_of_growing_is_named_and_left_alone(tmp_path: Path) -> None:
    small = server_disk.make(tmp_path / "small.img", swap=16 * MIB)
    before = table(small.image)["partitions"]
    large = small.moved_to(tmp_path / "large.img", 512 * MIB)

    answer = large.adapt(options={"grow": True})

    assert answer["ok"] and "GROW_NOT_POSSIBLE" in codes(answer)
    assert [part["size"] for part in table(large.image)["partitions"]] == [part["size"] for part in before]
