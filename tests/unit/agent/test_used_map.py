# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map of a disk: what it calls free is missed by nobody, whatever the filesystem, layout and moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fleetlift_agent.devices import MountRecord, SourceDisk, mounts_on, open_source
from fleetlift_agent.extents import EXTENT, extent_count
from fleetlift_agent.freeze import FIFREEZE, FITHAW
from fleetlift_agent.usedblocks import UsedMap, used_map
from fleetlift_agent.usedblocks.device_mapper import Target, parse_table
from fleetlift_agent.usedblocks.volume import ReadInFull

sys.path.insert(0, str(Path(__file__).parent))
from block_devices import MIB, HostTree, MountNamespace, mount_namespace, run
from recorded_tables import write_table
from used_filesystems import churn, copy_sparse, loop_over, memory_directory, mounted_at, spoil, tree_digest

pytestmark = pytest.mark.root

LAYOUTS: dict[str, tuple[str, int, list[str]]] = {
    "ext4": ("ext4", 400, []),
    "ext4 without a journal": ("ext4", 300, ["-O", "^has_journal"]),
    "ext3": ("ext3", 300, []),
    "ext2": ("ext2", 300, []),
    "xfs": ("xfs", 500, []),
    "xfs, 1 KiB blocks": ("xfs", 400, ["-b", "size=1024"]),
    "xfs with reverse mapping": ("xfs", 500, ["-m", "rmapbt=1"]),
    "xfs, sectors of 4 KiB": ("xfs", 400, ["-s", "size=4096"]),
    "btrfs": ("btrfs", 600, []),
    "btrfs, single metadata": ("btrfs", 400, ["-m", "single"]),
    "btrfs, mixed groups": ("btrfs", 150, ["--mixed"]),
    "btrfs, old features": ("btrfs", 400, ["-O", "^skinny-metadata,^no-holes", "-R", "^free-space-tree"]),
}


@dataclass(frozen=True)
class Source:
    """A filesystem directly on a disk, mounted in a namespace."""

    image: Path
    disk: SourceDisk
    namespace: MountNamespace
    root: Path
    kind: str

    def mounts(self) -> list[MountRecord]:
        number = os.fstat(self.disk.fd).st_rdev
        return mounts_on((number,), self.namespace.mountinfo, root=self.namespace.root)

    def map(self, *, frozen: bool) -> UsedMap:
        return used_map(self.disk, self.mounts(), frozen=frozen, root=self.namespace.root)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            run("sync", "--file-system", self.root)
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(descriptor, FITHAW, 0)
        finally:
            os.close(descriptor)


@pytest.fixture(scope="module")
def namespace() -> Iterator[MountNamespace]:
    with mount_namespace() as namespace:
        yield namespace


@pytest.fixture
def directory() -> Iterator[Path]:
    with memory_directory() as directory:
        yield directory


def blank(image: Path, size: int) -> Path:
    with image.open("wb") as file:
        file.truncate(size)
    return image


def make_filesystem(kind: str, device: Path, options: Iterable[str] = ()) -> None:
    run(f"mkfs.{kind}", "-q", *(("-F",) if kind.startswith("ext") else ("-f",)), *options, device)


@contextlib.contextmanager
def source(directory: Path, namespace: MountNamespace, layout: str) -> Iterator[Source]:
    kind, size, options = LAYOUTS[layout]
    image = blank(directory / "source.img", size * MIB)
    # Old data everywhere: what is free is not zero.
    spoil(image, [(0, 80 * MIB)])
    make_filesystem(kind, image, options)
    with (
        loop_over(image) as device,
        open_source(device, size * MIB) as disk,
        mounted_at(namespace, device, "/mnt/source", kind) as root,
    ):
        yield Source(image, disk, namespace, root, kind)


def check(kind: str, image: Path) -> int:
    """The status of the filesystem's own check."""
    command = {"xfs": ["xfs_repair", "-n"], "btrfs": ["btrfs", "check", "--check-data-csum"]}
    return subprocess.run(
        [*command.get(kind, ["e2fsck", "-fn"]), str(image)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ).returncode


def assert_sound(kind: str, image: Path, namespace: MountNamespace, digest: str) -> None:
    """The copy passes its check and holds the same tree. Mounting it writable replays what a freeze leaves in a log."""
    if kind != "xfs":
        assert check(kind, image) == 0
    with loop_over(image) as device, mounted_at(namespace, device, "/mnt/copy", kind) as root:
        assert tree_digest(root) == digest
    assert check(kind, image) == 0


def through_extents(used: UsedMap) -> list[tuple[int, int]]:
    """The free ranges of the disk as a reader meets them, extent by extent."""
    return [
        (extent * EXTENT + start, extent * EXTENT + end)
        for extent in range(extent_count(used.size))
        for start, end in used.free_ranges(extent)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [1])
def test_nobody_misses_what_a_frozen_filesystem_calls_free(
    layout: str, seed: int, directory: Path, namespace: MountNamespace
) -> None:
    copy = directory / "copy.img"
    with source(directory, namespace, layout) as origin:
        churn(origin.root, seed, steps=150, budget=24 * MIB)
        with origin.frozen():
            used = origin.map(frozen=True)
            digest = tree_digest(origin.root)
            copy_sparse(origin.image, copy)
    assert used.exact and [volume.read_in_full for volume in used.volumes] == [None]
    assert spoil(copy, through_extents(used)) == used.free > used.size // 2
    assert_sound(origin.kind, copy, namespace, digest)


@pytest.mark.parametrize("layout", ["ext4", "xfs", "btrfs"])
def test_free_space_in_a_thousand_pieces_is_mapped(layout: str, directory: Path, namespace: MountNamespace) -> None:
    """Trees of more than one level, whose leaves follow each other."""
    copy = directory / "copy.img"
    with source(directory, namespace, layout) as origin:
        for number in range(3000):
            (origin.root / f"f{number}").write_bytes(os.urandom(4096))
        run("sync", "--file-system", origin.root)
        for number in range(0, 3000, 2):
            (origin.root / f"f{number}").unlink()
        with origin.frozen():
            used = origin.map(frozen=True)
            digest = tree_digest(origin.root)
            copy_sparse(origin.image, copy)
    assert used.exact and len(list(used.free_disk_ranges())) > 1000
    spoil(copy, used.free_disk_ranges())
    assert_sound(origin.kind, copy, namespace, digest)


@pytest.mark.parametrize("layout", ["ext4", "xfs", "btrfs"])
def test_hint_and_what_was_taken_into_use_since_are_enough(
    layout: str, directory: Path, namespace: MountNamespace
) -> None:
    copy = directory / "copy.img"
    with source(directory, namespace, layout) as origin:
        churn(origin.root, 2, steps=80, budget=24 * MIB)
        hint = origin.map(frozen=False)
        churn(origin.root, 3, steps=80, budget=24 * MIB)
        with origin.frozen():
            used = origin.map(frozen=True)
            digest = tree_digest(origin.root)
            copy_sparse(origin.image, copy)
    assert not hint.exact and hint.free and used.exact
    current = copy_sparse(copy, directory / "current.img")
    spoil(copy, hint.free_disk_ranges())
    # What the sender adds after the freeze.
    with current.open("rb") as data, copy.open("r+b") as file:
        for start, end in used.newly_used(hint):
            data.seek(start)
            file.seek(start)
            file.write(data.read(end - start))
    assert sum(end - start for start, end in used.newly_used(hint)) > MIB
    assert_sound(origin.kind, copy, namespace, digest)


@pytest.mark.parametrize("layout", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("lost", ["data", "metadata"])
def test_one_used_block_called_free_is_noticed(
    layout: str, lost: str, directory: Path, namespace: MountNamespace
) -> None:
    """The proofs above are some: they fail for a map that is wrong by a single block of 4 KiB."""
    copy = directory / "copy.img"
    content = os.urandom(4096)
    name = "name-" + os.urandom(12).hex()
    with source(directory, namespace, layout) as origin:
        churn(origin.root, 4, steps=60, budget=12 * MIB)
        (origin.root / name).write_bytes(content * 8)
        with origin.frozen():
            used = origin.map(frozen=True)
            digest = tree_digest(origin.root)
            copy_sparse(origin.image, copy)
    image = copy.read_bytes()
    if lost == "data":
        blocks = [image.index(content)]
    else:
        # Every copy of it that is in use, or a filesystem with two of them repairs the loss.
        blocks = [at for at in positions(image, name.encode()) if not is_free(used, at)]
    spoil(copy, [(at // 4096 * 4096, at // 4096 * 4096 + 4096) for at in blocks])
    with pytest.raises((AssertionError, OSError)):
        assert_sound(origin.kind, copy, namespace, digest)


def positions(image: bytes, text: bytes) -> Iterator[int]:
    position = image.find(text)
    while position >= 0:
        yield position
        position = image.find(text, position + 1)


def is_free(used: UsedMap, position: int) -> bool:
    return any(start <= position % EXTENT < end for start, end in used.free_ranges(position // EXTENT))


@pytest.mark.parametrize("layout", ["ext4", "xfs"])
def test_file_on_a_live_filesystem_is_not_called_free(layout: str, directory: Path, namespace: MountNamespace) -> None:
    """Its blocks are in the journal only; the bitmaps on the disk know nothing of them yet."""
    with source(directory, namespace, layout) as origin:
        path = origin.root / "new"
        path.write_bytes(os.urandom(MIB))
        run("sync", "--file-system", origin.root)
        with path.open("rb") as file:
            block = os.statvfs(path).f_bsize
            first = int.from_bytes(fcntl.ioctl(file, 1, bytes(4)), sys.byteorder) * block
        hint = origin.map(frozen=False)
        free = hint.free_ranges(first // EXTENT)
        assert hint.free
        assert not any(start <= first % EXTENT < end for start, end in free)


@pytest.mark.parametrize("layout", ["ext4", "xfs"])
def test_filesystem_that_is_not_frozen_is_not_believed_to_be(
    layout: str, directory: Path, namespace: MountNamespace
) -> None:
    with source(directory, namespace, layout) as origin:
        churn(origin.root, 5, steps=30, budget=12 * MIB)
        (used,) = origin.map(frozen=True).volumes
        assert used.read_in_full is not None and used.free == 0


def test_mounted_elsewhere_is_read_in_full(directory: Path, namespace: MountNamespace) -> None:
    with source(directory, namespace, "btrfs") as origin:
        used = used_map(origin.disk, [], frozen=True)
        assert [volume.read_in_full for volume in used.volumes] == ["something that is not known here uses it"]


def swap_disk(image: Path, *options: str) -> Path:
    run("mkswap", *options, blank(image, 64 * MIB))
    return image


def map_of(image: Path) -> UsedMap:
    """The map of a disk that nothing uses."""
    with loop_over(image) as device, open_source(device, image.stat().st_size) as disk:
        return used_map(disk, [], frozen=True)


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_only_the_header_of_swap_is_kept(page: int, directory: Path) -> None:
    used = map_of(swap_disk(directory / "swap.img", "--pagesize", str(page)))
    assert list(used.free_disk_ranges()) == [(page, 64 * MIB)]
    assert used.free_ranges(0) == [(page, EXTENT)] and used.free_ranges(63) == [(0, EXTENT)]
    assert used.summary[0]["content"] == "swap" and used.summary[0]["used"] == page


def test_bad_pages_and_the_end_behind_swap_are_read(directory: Path) -> None:
    image = swap_disk(directory / "swap.img")
    with image.open("r+b") as file:
        file.seek(1028)
        file.write((999).to_bytes(4, "little") + (2).to_bytes(4, "little"))
        file.seek(1536)
        file.write((7).to_bytes(4, "little") + (500).to_bytes(4, "little"))
    pages = [(1, 7), (8, 500), (501, 1000)]
    assert list(map_of(image).free_disk_ranges()) == [(first * 4096, last * 4096) for first, last in pages]


def test_hibernated_system_is_read_in_full(directory: Path) -> None:
    image = swap_disk(directory / "swap.img")
    with image.open("r+b") as file:
        file.seek(4086)
        file.write(b"S1SUSPEND\0")
    assert map_of(image).free == 0


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_partitions_are_mapped_and_all_between_them_is_read(
    label: str, directory: Path, namespace: MountNamespace
) -> None:
    image = blank(directory / "disk.img", 900 * MIB)
    spoil(image, [(0, 900 * MIB)])
    write_table(image, label)
    digests = {}
    for number, (kind, start, size) in enumerate(PARTS[label]):
        with loop_over(image, "--offset", str(start * MIB), "--sizelimit", str(size * MIB)) as device:
            if kind == "swap":
                run("mkswap", device)
            elif kind:
                make_filesystem(kind, device)
                with mounted_at(namespace, device, "/mnt/part", kind) as root:
                    churn(root, number, steps=40, budget=6 * MIB)
                    digests[number] = tree_digest(root)
    used = map_of(image)
    assert [(volume.start, volume.size) for volume in used.volumes] == [
        (start * MIB, size * MIB) for _kind, start, size in PARTS[label]
    ]
    expected = {"ext4": "ext", "": "unknown"}
    assert [volume.content for volume in used.volumes] == [expected.get(kind, kind) for kind, *_ in PARTS[label]]
    for volume in used.volumes:
        assert (volume.read_in_full is None) == (volume.free > 0) == (volume.content not in ("unknown", "xfs"))
    inside = [(start * MIB, (start + size) * MIB) for _kind, start, size in PARTS[label]]
    for start, end in used.free_disk_ranges():
        assert any(first <= start and end <= last for first, last in inside)
    spoil(image, used.free_disk_ranges())
    for number, (kind, start, size) in enumerate(PARTS[label]):
        if number in digests:
            with (
                loop_over(image, "--offset", str(start * MIB), "--sizelimit", str(size * MIB)) as device,
                mounted_at(namespace, device, "/mnt/part", kind) as root,
            ):
                assert tree_digest(root) == digests[number]


# Kind, start and size in MiB; the table of MBR kind also has an extended partition from 280 to 880 MiB.
PARTS = {
    "dos": [("ext4", 1, 200), ("swap", 210, 64), ("btrfs", 282, 120), ("xfs", 410, 320)],
    "gpt": [("ext4", 1, 200), ("swap", 210, 64), ("xfs", 280, 320), ("", 620, 16), ("btrfs", 700, 150)],
}


def test_mounted_partition_is_found_through_the_kernels_own(directory: Path, namespace: MountNamespace) -> None:
    """A partition of its own device number, frozen and live, as the kernel shows it in /sys."""
    image = blank(directory / "disk.img", 900 * MIB)
    write_table(image, "dos")
    copy = directory / "copy.img"
    with contextlib.ExitStack() as stack:
        disk_device = stack.enter_context(loop_over(image))
        device = stack.enter_context(loop_over(image, "--offset", str(MIB), "--sizelimit", str(200 * MIB)))
        make_filesystem("ext4", device)
        host = HostTree.create(directory / "host")
        block = host.add_disk("sda", disk_device, "serial")
        host.add_partition("sda", "sda1", device)
        (block / "sda1/start").write_text("2048\n")
        (block / "sda1/size").write_text("409600\n")
        disk = stack.enter_context(open_source(disk_device, 900 * MIB))
        root = stack.enter_context(mounted_at(namespace, device, "/mnt/source", "ext4"))
        churn(root, 6, steps=60, budget=12 * MIB)
        number = device.stat().st_rdev
        mounts = mounts_on((number,), namespace.mountinfo, sys=host.sys, dev=host.dev, root=namespace.root)
        origin = Source(image, disk, namespace, root, "ext4")
        view = {"sys": host.sys, "dev": host.dev, "root": namespace.root}
        hint = used_map(disk, mounts, frozen=False, **view)
        assert hint.volumes[0].derived_from == "block bitmaps in the page cache"
        with origin.frozen():
            used = used_map(disk, mounts, frozen=True, **view)
            digest = tree_digest(root)
            copy_sparse(image, copy)
        assert [(volume.name, volume.free > 0) for volume in used.volumes][:2] == [
            ("sda1", True),
            (f"{disk.path.name} from byte {210 * MIB}", False),
        ]
        (block / "sda1/size").write_text("409608\n")
        (full,) = used_map(disk, mounts, frozen=True, **view).volumes
        assert full.read_in_full == "the kernel's partitions are not those of the partition table"
        (block / "sda1/size").write_text("409600\n")
        (block / "sda1/holders").mkdir()
        (block / "sda1/holders/dm-0").mkdir()
        full, *_rest = used_map(disk, mounts, frozen=True, **view).volumes
        assert str(full.read_in_full).startswith("it is part of volumes that cannot be read: ")
    spoil(copy, used.free_disk_ranges())
    with loop_over(copy, "--offset", str(MIB), "--sizelimit", str(200 * MIB)) as device:
        assert_sound("ext4", device, namespace, digest)


@pytest.mark.parametrize(
    ("offset", "content", "reason"),
    [
        (0, b"LUKS\xba\xbe", "it looks like LUKS and ext at once"),
        (512, b"LABELONE", "it looks like LVM and ext at once"),
        (64 * MIB - 65536, b"\xfc\x4e\x2b\xa9", "it looks like RAID and ext at once"),
        (4086, b"SWAPSPACE2", "it looks like ext and swap at once"),
        (1024 + 0x38, b"\0\0", "it holds nothing that is known here"),
    ],
)
def test_layers_and_contradictions_are_read_in_full(offset: int, content: bytes, reason: str, directory: Path) -> None:
    image = blank(directory / "disk.img", 64 * MIB)
    make_filesystem("ext4", image)
    assert map_of(image).free > 0
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    (volume,) = map_of(image).volumes
    assert (volume.read_in_full, volume.free) == (reason, 0)


@pytest.mark.parametrize("position", [512 + 40, 1024 + 56, 512 + 16])
def test_damaged_table_is_read_in_full(position: int, directory: Path) -> None:
    image = blank(directory / "disk.img", 900 * MIB)
    write_table(image, "gpt")
    run("mkfs.ext4", "-q", "-E", f"offset={MIB}", image, "64M")
    assert map_of(image).free > 0
    with image.open("r+b") as file:
        file.seek(position)
        file.write(b"\xff")
    (volume,) = map_of(image).volumes
    assert volume.free == 0 and "GUID partition table" in str(volume.read_in_full)


class Mapper:
    """A device mapper that knows the tables it is given: the machine that runs the tests may have none."""

    def __init__(self, tables: dict[Path, list[Target]]) -> None:
        self._tables = {device.stat().st_rdev: table for device, table in tables.items()}

    def __call__(self, number: int) -> list[Target]:
        return self._tables[number]


def linear(disk: Path, *stretches: tuple[int, int]) -> list[Target]:
    """The table of a volume of stretches (start, length) of the disk, in MiB."""
    number = disk.stat().st_rdev
    table, at = [], 0
    for start, length in stretches:
        where = f"{os.major(number)}:{os.minor(number)} {start * MIB // 512}"
        table.append(Target(at * MIB, length * MIB, "linear", where))
        at += length
    return table


def hold(host: HostTree, holder: str, device: Path) -> None:
    """Have the device mapper's `holder`, which is the device, hold the disk sda."""
    (host.sys / "block/sda/holders" / holder).symlink_to(host.add_disk(holder, device, "", link=False))


def test_linear_volume_is_mapped_through_to_its_disk(directory: Path, namespace: MountNamespace) -> None:
    """A mounted ext4 that the kernel shows as dm-0, live and frozen, in the middle of a disk."""
    image = blank(directory / "disk.img", 400 * MIB)
    spoil(image, [(0, 400 * MIB)])
    copy = directory / "copy.img"
    with contextlib.ExitStack() as stack:
        disk_device = stack.enter_context(loop_over(image))
        device = stack.enter_context(loop_over(image, "--offset", str(50 * MIB), "--sizelimit", str(200 * MIB)))
        make_filesystem("ext4", device)
        host = HostTree.create(directory / "host")
        host.add_disk("sda", disk_device, "serial")
        hold(host, "dm-0", device)
        disk = stack.enter_context(open_source(disk_device, 400 * MIB))
        root = stack.enter_context(mounted_at(namespace, device, "/mnt/source", "ext4"))
        churn(root, 8, steps=60, budget=12 * MIB)
        numbers = (disk_device.stat().st_rdev, device.stat().st_rdev)
        mounts = mounts_on(numbers, namespace.mountinfo, sys=host.sys, dev=host.dev, root=namespace.root)
        mapping = Mapper({device: linear(disk_device, (50, 200))})
        view = {"sys": host.sys, "dev": host.dev, "root": namespace.root, "mapping": mapping}
        hint = used_map(disk, mounts, frozen=False, **view)
        assert hint.volumes[0].derived_from == "block bitmaps in the page cache"
        with Source(image, disk, namespace, root, "ext4").frozen():
            used = used_map(disk, mounts, frozen=True, **view)
            digest = tree_digest(root)
            copy_sparse(image, copy)
    (volume,) = used.volumes
    assert (volume.name, volume.start, volume.size, volume.exact) == ("dm-0", 50 * MIB, 200 * MIB, True)
    assert volume.free > 100 * MIB
    assert all(start >= 50 * MIB and end <= 250 * MIB for start, end in used.free_disk_ranges())
    spoil(copy, used.free_disk_ranges())
    with loop_over(copy, "--offset", str(50 * MIB), "--sizelimit", str(200 * MIB)) as device:
        assert_sound("ext4", device, namespace, digest)


def test_stretches_of_a_volume_may_lie_in_any_order(directory: Path, namespace: MountNamespace) -> None:
    volume = blank(directory / "volume.img", 200 * MIB)
    spoil(volume, [(0, 200 * MIB)])
    with loop_over(volume) as device:
        make_filesystem("ext4", device)
        with mounted_at(namespace, device, "/mnt/volume", "ext4") as root:
            churn(root, 9, steps=60, budget=12 * MIB)
            digest = tree_digest(root)
    stretches = ((210, 70), (20, 100), (130, 30))
    disk = blank(directory / "disk.img", 300 * MIB)
    spoil(disk, [(0, 300 * MIB)])
    content = volume.read_bytes()

    def scatter(there: Path, write: bool) -> None:
        at = 0
        with there.open("r+b") as file:
            for start, length in stretches:
                file.seek(start * MIB)
                if write:
                    file.write(content[at * MIB : (at + length) * MIB])
                else:
                    gathered.append(file.read(length * MIB))
                at += length

    gathered: list[bytes] = []
    scatter(disk, write=True)
    with loop_over(disk) as disk_device, loop_over(volume) as device:
        host = HostTree.create(directory / "host")
        host.add_disk("sda", disk_device, "serial")
        hold(host, "dm-0", device)
        mapping = Mapper({device: linear(disk_device, *stretches)})
        with open_source(disk_device, 300 * MIB) as source:
            used = used_map(source, [], frozen=False, sys=host.sys, dev=host.dev, root=directory, mapping=mapping)
    assert used.volumes[0].content == "ext"
    assert used.free > 100 * MIB
    spoil(disk, used.free_disk_ranges())
    scatter(disk, write=False)
    volume.write_bytes(b"".join(gathered))
    with loop_over(volume) as device:
        assert_sound("ext4", device, namespace, digest)


@pytest.mark.parametrize(
    ("kind", "stretches", "elsewhere", "reason"),
    [
        ("striped", ((10, 60),), False, "it is part of a volume of the kind striped"),
        ("linear", ((10, 60),), True, "it is part of a volume that reaches over several disks"),
        ("linear", ((10, 60), (200, 60)), False, "it is part of a volume whose table does not fit it"),
        ("linear", (), False, "it is part of a volume without a table"),
        ("linear", ((10, 60), (40, 20)), False, "it is part of volumes that overlap"),
    ],
)
def test_volume_that_is_no_plain_stretch_of_the_disk_is_read_in_full(
    kind: str, stretches: tuple[tuple[int, int], ...], elsewhere: bool, reason: str, directory: Path
) -> None:
    disk, volume = blank(directory / "disk.img", 200 * MIB), blank(directory / "volume.img", 64 * MIB)
    make_filesystem("ext4", volume)
    with loop_over(disk) as disk_device, loop_over(volume) as device:
        host = HostTree.create(directory / "host")
        host.add_disk("sda", disk_device, "serial")
        hold(host, "dm-0", device)
        table = linear(device if elsewhere else disk_device, *stretches)
        mapping = Mapper({device: [replace(target, kind=kind) for target in table]})
        with open_source(disk_device, 200 * MIB) as source:
            used = used_map(source, [], frozen=True, sys=host.sys, dev=host.dev, root=directory, mapping=mapping)
    (found,) = used.volumes
    assert (found.read_in_full, used.free) == (reason, 0)


def test_table_is_read_from_what_the_kernel_answers() -> None:
    """Built by include/uapi/linux/dm-ioctl.h: each target says where the next one begins, from the first one on."""
    texts = (b"8:2 2048\0", b"8:17 384\0")
    sizes = [(40 + len(text) + 7) // 8 * 8 for text in texts]
    body = b"".join(
        (struct.pack("<QQiI16s", start, length, 0, sum(sizes[: at + 1]), b"linear") + text).ljust(sizes[at], b"\0")
        for at, (start, length, text) in enumerate(((0, 8192, texts[0]), (8192, 4096, texts[1])))
    )

    def answer(flags: int) -> bytes:
        header = struct.pack("<3IIIIiIIIQ", 4, 48, 0, 65536, 312, 2, 1, flags, 0, 0, os.makedev(254, 0))
        return header.ljust(312, b"\0") + body

    assert parse_table(answer(0)) == [
        Target(0, 8192 * 512, "linear", "8:2 2048"),
        Target(8192 * 512, 4096 * 512, "linear", "8:17 384"),
    ]
    with pytest.raises(ReadInFull, match="larger"):
        parse_table(answer(1 << 8))
