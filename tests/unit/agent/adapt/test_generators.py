# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which program makes an initramfs, with which words, and what its configuration becomes, by what is on the copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleetlift_agent.adapt import initramfs
from fleetlift_agent.adapt.kernels import Kernel, installed
from fleetlift_agent.adapt.names import Names
from fleetlift_agent.adapt.situation import Situation
from fleetlift_agent.adapt.tree import Tree

DRIVERS = "virtio_pci virtio_blk virtio_scsi virtio_net"


def tree_with(root: Path, *paths: str, initrd: str = "boot/initrd.img-5.1") -> Tree:
    """A copy with one kernel whose drivers are modules, and these files, which are programs."""
    modules = root / "lib/modules/5.1"
    modules.mkdir(parents=True)
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-5.1").write_bytes(b"kernel")
    (root / initrd).write_bytes(b"")
    (modules / "modules.dep").write_text("".join(f"kernel/{name}.ko:\n" for name in DRIVERS.split()))
    (modules / "modules.builtin").write_text("")
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text('INITRD_MODULES="ata_piix"\n' if path == "etc/sysconfig/kernel" else "")
    return Tree(root)


def kernel_of(tree: Tree) -> Kernel:
    (kernel,) = installed(tree)
    return kernel


@pytest.mark.parametrize(
    ("paths", "initrd", "words"),
    [
        (("usr/sbin/mkinitramfs",), "boot/initrd.img-5.1", ["/usr/sbin/mkinitramfs", "-o", "OUT", "5.1"]),
        (
            ("usr/bin/dracut", "sbin/mkinitrd"),
            "boot/initramfs-5.1.img",
            ["/usr/bin/dracut", "--force", "--add-drivers", DRIVERS, "OUT", "5.1"],
        ),
        (
            ("usr/bin/dracut", "usr/sbin/mkinitramfs", "etc/kernel/postinst.d/dracut"),
            "boot/initrd.img-5.1",
            ["/usr/bin/dracut", "--force", "--add-drivers", DRIVERS, "OUT", "5.1"],
        ),
        (
            ("sbin/mkinitrd",),
            "boot/initrd-5.1.img",
            ["/sbin/mkinitrd", "-f", *(f"--with={each}" for each in DRIVERS.split()), "OUT", "5.1"],
        ),
        (
            ("sbin/mkinitrd", "etc/SuSE-release"),
            "boot/initrd-5.1",
            ["/sbin/mkinitrd", "-k", "vmlinuz-5.1", "-i", "initrd-5.1.new", "-m", DRIVERS],
        ),
    ],
    ids=["initramfs-tools", "dracut", "dracut on Debian", "mkinitrd", "mkinitrd of SUSE"],
)
def test_the_program_that_the_kernels_package_would_call_makes_the_image(
    paths: tuple[str, ...], initrd: str, words: list[str], tmp_path: Path
) -> None:
    tree = tree_with(tmp_path, *paths, initrd=initrd)
    generator = initramfs.generator_of(tree)
    assert generator is not None
    kernel = kernel_of(tree)
    assert kernel.initramfs == f"/{initrd}"
    out = f"{kernel.initramfs}.new"
    assert generator.command(kernel, out) == [out if word == "OUT" else word for word in words]


@pytest.mark.parametrize(
    ("paths", "path", "expected"),
    [
        (("usr/sbin/mkinitramfs",), "/etc/initramfs-tools/modules", "virtio_blk\n"),
        (("usr/bin/dracut",), "/etc/dracut.conf.d/zz-fleetlift.conf", f'add_drivers+=" {DRIVERS} "'),
        (("usr/bin/dracut",), "/etc/dracut.conf.d/zz-fleetlift.conf", 'hostonly="no"'),
        (("sbin/mkinitrd",), "/etc/modprobe.conf", "alias scsi_hostadapter virtio_blk\n"),
        (
            ("sbin/mkinitrd", "etc/SuSE-release", "etc/sysconfig/kernel"),
            "/etc/sysconfig/kernel",
            f'"ata_piix {DRIVERS}"',
        ),
    ],
)
def test_later_images_get_the_drivers_as_well(paths: tuple[str, ...], path: str, expected: str, tmp_path: Path) -> None:
    tree = tree_with(tmp_path, *paths)
    needs, _findings = initramfs.plan(tree, Situation(Names(()), "bios"), [])
    assert [need.kernel.version for need in needs] == ["5.1"]
    assert expected in (tree.read(path) or "")


def test_every_kernel_gets_its_image_and_one_with_the_drivers_built_in_needs_none(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "usr/sbin/mkinitramfs")
    second = tmp_path / "lib/modules/6.2"
    second.mkdir()
    (second / "modules.dep").write_text("")
    (second / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in DRIVERS.split()))
    third = tmp_path / "lib/modules/6.3"
    third.mkdir()
    (third / "modules.dep").write_text((tmp_path / "lib/modules/5.1/modules.dep").read_text())
    for version in ("6.2", "6.3"):
        (tmp_path / f"boot/vmlinuz-{version}").write_bytes(b"kernel")
    needs, findings = initramfs.plan(tree, Situation(Names(()), "bios"), [])
    assert [need.kernel.version for need in needs] == ["5.1", "6.3"]
    assert not [finding for finding in findings if finding.severity == "blocker"]
