# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map of what a disk holds: which bytes its filesystems call free, and why the rest must be read.

When what is read is valid:

* A frozen filesystem has written out its journal and its caches, and an unmounted or read-only one has none: its
  metadata is read from the disk, past the page cache, and the map is right to the byte as long as it stays so.
* Of a mounted filesystem that is not frozen, ext2/3/4 keep their bitmaps in the page cache of the very node that is
  mounted, and are read through it; XFS is asked through FS_IOC_GETFSMAP; btrfs has its last complete transaction on
  the disk. Such a map is a hint: blocks may be in use that it calls free. Whoever skips what a hint calls free has to
  send what :meth:`UsedMap.newly_used` lists once a map of the frozen filesystem exists.
* A volume of the device mapper that is made of plain stretches of one disk (LVM's linear volumes) is mapped like a
  partition; what lies between the volumes, LVM's own metadata among it, is read.
* Whatever is unknown, layered otherwise, inconsistent or in unexplained use is not free, and the summary says why.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fleetlift_agent.devices import MountRecord, mounted_btrfs, sysfs_of, under
from fleetlift_agent.extents import EXTENT

from . import btrfs, ext, fsmap, swap, xfs
from .device_mapper import Segment, SegmentedDevice, Target, on_disk, segments
from .device_mapper import read_table as read_mapping
from .partitions import Partition, read_table
from .runs import FreeRuns
from .signatures import FILESYSTEMS, signatures
from .volume import BufferedDevice, DirectDevice, ReadInFull, Volume

# A live btrfs is read again when a transaction ended in between; they are half a minute apart.
_ATTEMPTS = 3


class Disk(Protocol):
    """A whole disk opened for direct reads, such as :class:`fleetlift_agent.devices.SourceDisk`; sizes in bytes."""

    @property
    def fd(self) -> int: ...

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...

    @property
    def logical_block_size(self) -> int: ...


@dataclass(frozen=True)
class VolumeUse:
    """What the map says about one volume: bytes, how they were found, or why the volume is read in full.

    ``exact`` means that nothing in use is called free; otherwise the free bytes are a hint.
    """

    name: str
    start: int
    size: int
    content: str
    derived_from: str
    exact: bool
    free: int
    read_in_full: str | None
    # Where it lies on the disk, as (start, end).
    stretches: tuple[tuple[int, int], ...] = ()

    @property
    def used(self) -> int:
        return self.size - self.free

    def record(self) -> dict[str, Any]:
        record = {**asdict(self), "used": self.used}
        del record["stretches"]
        return record


class UsedMap:
    """The bytes of a disk that need not be read. At most 32 MiB (2**21 runs), whatever the disk's size."""

    def __init__(self, size: int, free: FreeRuns, volumes: Sequence[VolumeUse]) -> None:
        self._free = free
        self.size = size
        self.volumes = tuple(volumes)

    @property
    def exact(self) -> bool:
        """Whether everything called free was free for certain when the map was made."""
        return all(volume.exact for volume in self.volumes)

    @property
    def free(self) -> int:
        """Bytes of the disk that are called free."""
        return self._free.total

    @property
    def used(self) -> int:
        return self.size - self.free

    @property
    def runs(self) -> FreeRuns:
        """The bytes that are called free."""
        return self._free

    @property
    def swap(self) -> FreeRuns:
        """Those of them that are the inside of swap space: written all the time, and read by nobody later."""
        runs = FreeRuns()
        for first, last in sorted(
            stretch for volume in self.volumes if volume.content == "swap" for stretch in volume.stretches
        ):
            for start, end in self._free.within(first, last):
                runs.add(start, end)
        return runs

    @property
    def summary(self) -> list[dict[str, Any]]:
        """The volumes as records, in the order of the disk."""
        return [volume.record() for volume in self.volumes]

    def free_ranges(self, extent: int) -> list[tuple[int, int]]:
        """The free byte ranges (start, end) inside of an extent, counted from its start, ascending."""
        base = extent * EXTENT
        return [(start - base, end - base) for start, end in self._free.within(base, min(base + EXTENT, self.size))]

    def free_disk_ranges(self) -> Iterator[tuple[int, int]]:
        """All free byte ranges of the disk, ascending."""
        return iter(self._free)

    def newly_used(self, hint: UsedMap) -> Iterator[tuple[int, int]]:
        """The byte ranges of the disk that *hint* called free and this map does not, ascending."""
        return hint._free.without(self._free)


def used_map(
    disk: Disk,
    mounts: Sequence[MountRecord],
    *,
    frozen: bool,
    sys: Path = Path("/sys"),
    dev: Path = Path("/dev"),
    root: Path = Path("/"),
    mapping: Callable[[int], list[Target]] = read_mapping,
) -> UsedMap:
    """The map of *disk*.

    ``mounts`` are the mounts on the disk and its partitions (:func:`fleetlift_agent.devices.mounts_on`), found below
    ``root``; ``frozen`` says that each of them that can be written is frozen and stays so while the map is made.
    ``mapping`` tells the table of a device of the device mapper.
    Never fails: what cannot be read or understood is simply not free.
    """
    return _Mapper(disk, mounts, frozen, sys, dev, root, mapping).map()


@dataclass(frozen=True)
class _Place:
    """One volume of the disk. ``number`` is that of its block device; None when the kernel has none for it."""

    name: str
    start: int
    size: int
    number: int | None
    parts: tuple[Segment, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.parts or (Segment(0, self.size, self.start),)


class _Mapper:
    def __init__(
        self,
        disk: Disk,
        mounts: Sequence[MountRecord],
        frozen: bool,
        sys: Path,
        dev: Path,
        root: Path,
        mapping: Callable[[int], list[Target]],
    ) -> None:
        self._disk = disk
        self._mounts = mounts
        self._frozen = frozen
        self._sys = sys
        self._dev = dev
        self._root = root
        self._mapping = mapping
        self._number = os.fstat(disk.fd).st_rdev
        self._device = DirectDevice(disk.fd, disk.logical_block_size)

    def map(self) -> UsedMap:
        volumes = []
        ranges: list[tuple[int, int]] = []
        try:
            places = self._places()
        except (ReadInFull, OSError) as error:
            volumes.append(_in_full(_Place(self._disk.path.name, 0, self._disk.size, None), "unknown", str(error)))
            return UsedMap(self._disk.size, FreeRuns(), volumes)
        numbers = {place.number: (place.start, place.size) for place in places}
        for outer in places:
            try:
                inside = self._inside(outer, numbers)
            except (OSError, ValueError) as error:
                volumes.append(_in_full(outer, "unknown", f"it is part of volumes that cannot be read: {_text(error)}"))
                continue
            except ReadInFull as error:
                volumes.append(_in_full(outer, "unknown", _text(error)))
                continue
            for place in inside:
                use, runs = self._volume(place)
                volumes.append(use)
                for start, end in runs:
                    ranges += on_disk(place.segments, start, end - start)
        free = FreeRuns()
        # Volumes may lie on the disk in any order.
        for start, end in sorted(ranges):
            free.add(start, end)
        return UsedMap(self._disk.size, free, volumes)

    def _inside(self, place: _Place, places: dict[int | None, tuple[int, int]]) -> list[_Place]:
        """The volumes that the device mapper cuts a place into; itself when there are none.

        Raises :class:`ReadInFull` when they are not plain stretches of this disk.
        """
        holders = [] if place.number is None else self._holders(place.number)
        if not holders or not all(name.startswith("dm-") for name in holders):
            return [place]
        numbers = {number: where for number, where in places.items() if number is not None}
        found = []
        for name in holders:
            major, minor = (self._sys / "block" / name / "dev").read_text(encoding="ascii").strip().split(":")
            number = os.makedev(int(major), int(minor))
            parts = segments(self._mapping(number), numbers)
            size = sum(part.length for part in parts)
            found.append(_Place(name, min(part.position for part in parts), size, number, parts))
        taken = sorted((part.position, part.position + part.length) for inner in found for part in inner.parts)
        if any(first[1] > second[0] for first, second in zip(taken, taken[1:])):
            raise ReadInFull("it is part of volumes that overlap")
        # One that reaches over two partitions of the disk belongs to the first of them.
        own = [inner for inner in found if place.start <= inner.start < place.start + place.size]
        return sorted(own, key=lambda inner: inner.start)

    def _places(self) -> list[_Place]:
        """The volumes of the disk, ascending. What lies between them is read in full."""
        whole = _Place(self._disk.path.name, 0, self._disk.size, self._number)
        kernel = self._kernel_partitions()
        table = read_table(self._device, self._disk.size, self._disk.logical_block_size)
        if not kernel and (not table or self._mounts_of(self._number)):
            return [whole]
        content = signatures(Volume(self._device, 0, self._disk.size))
        if content and not kernel:
            raise ReadInFull(f"the disk has a partition table and holds {_join(content)} as a whole")
        plain = [part for part in table if not part.container]
        containers = {part.start for part in table if part.container}
        unknown = [part for start, part in kernel.items() if start not in containers]
        places = [self._partition(part, kernel) for part in plain]
        known = {place.name for place in places if place.number is not None}
        if any(name not in known for name, _number, _size in unknown):
            raise ReadInFull("the kernel's partitions are not those of the partition table")
        if self._mounts_of(self._number) or self._holders(self._number):
            raise ReadInFull("the disk has partitions and is in use as a whole")
        return places

    def _kernel_partitions(self) -> dict[int, tuple[str, int, int]]:
        """By their start in bytes: name, device number and size in bytes of the partitions the kernel knows."""
        found = {}
        directory = sysfs_of(self._number, self._sys)
        for child in sorted(directory.iterdir()):
            if (child / "partition").exists():
                # In units of 512 bytes whatever the disk's sectors are: block/partitions/core.c.
                start, size = (int((child / name).read_text(encoding="ascii")) * 512 for name in ("start", "size"))
                major, minor = (child / "dev").read_text(encoding="ascii").strip().split(":")
                found[start] = (child.name, os.makedev(int(major), int(minor)), size)
        return found

    def _partition(self, part: Partition, kernel: dict[int, tuple[str, int, int]]) -> _Place:
        name, number, size = kernel.get(part.start, ("", 0, 0))
        if size == part.size:
            return _Place(name, part.start, part.size, number)
        return _Place(f"{self._disk.path.name} from byte {part.start}", part.start, part.size, None)

    def _volume(self, place: _Place) -> tuple[VolumeUse, FreeRuns]:
        volume = Volume(self._device, place.start, place.size)
        if place.parts:
            volume = Volume(SegmentedDevice(self._device, place.parts), 0, place.size)
        content = "unknown"
        try:
            mounts = self._mounts_of(place.number) if place.number is not None else []
            content = self._content(volume, place, mounts)
            derived_from, exact, runs = self._free_runs(volume, place, content, mounts)
        except (ReadInFull, OSError, ValueError) as error:
            return _in_full(place, content, _text(error)), FreeRuns()
        stretches = tuple((part.position, part.position + part.length) for part in place.segments)
        use = VolumeUse(place.name, place.start, place.size, content, derived_from, exact, runs.total, None, stretches)
        return use, runs

    def _content(self, volume: Volume, place: _Place, mounts: list[MountRecord]) -> str:
        """The one filesystem on the volume; its mounts decide between signatures that were left behind."""
        found = signatures(volume)
        mounted = {"ext" if mount.filesystem in ("ext2", "ext3", "ext4") else mount.filesystem for mount in mounts}
        holders = self._holders(place.number) if place.number is not None else []
        if holders:
            raise ReadInFull(f"it is part of {', '.join(holders)}")
        if not found:
            raise ReadInFull("it holds nothing that is known here")
        if mounted:
            if len(mounted) == 1 and mounted <= found and mounted <= set(FILESYSTEMS):
                return mounted.pop()
            raise ReadInFull(f"it is mounted as {_join(mounted)} and looks like {_join(found)}")
        if len(found) > 1:
            raise ReadInFull(f"it looks like {_join(found)} at once")
        content = found.pop()
        if content not in FILESYSTEMS:
            raise ReadInFull(f"it holds {content}")
        return content

    def _free_runs(
        self, volume: Volume, place: _Place, content: str, mounts: list[MountRecord]
    ) -> tuple[str, bool, FreeRuns]:
        """Where the answer comes from, whether it is exact, and the free ranges of the volume."""
        if content == "swap":
            return "swap header", True, swap.free_runs(volume)
        if any("norecovery" in mount.super_options or "noload" in mount.super_options for mount in mounts):
            raise ReadInFull("it is mounted without a replay of its journal")
        if not mounts:
            return self._of_unmounted(volume, place, content)
        if self._frozen or all(mount.read_only for mount in mounts):
            return self._of_still(volume, content, place, mounts)
        return self._of_live(volume, content, place, mounts)

    def _of_unmounted(self, volume: Volume, place: _Place, content: str) -> tuple[str, bool, FreeRuns]:
        self._check_nobody_uses(place)
        if content == "ext":
            if ext.needs_recovery(volume):
                raise ReadInFull("it was not cleanly unmounted")
            return "block bitmaps on the disk", True, ext.free_runs(volume, live=False)
        if content == "btrfs":
            return "extent tree on the disk", True, btrfs.free_runs(volume)
        raise ReadInFull("it is not mounted, and only a mount tells whether its log is empty")

    def _of_still(
        self, volume: Volume, content: str, place: _Place, mounts: list[MountRecord]
    ) -> tuple[str, bool, FreeRuns]:
        if content == "ext":
            return "block bitmaps on the disk", True, ext.free_runs(volume, live=False)
        if content == "btrfs":
            return "extent tree on the disk", True, btrfs.free_runs(volume)
        runs = xfs.free_runs(volume)
        known = self._asked_from_kernel(place, mounts)
        if known is None:
            return "free space trees on the disk", True, runs
        if list(known) != list(runs):
            raise ReadInFull("its free space on the disk is not what the kernel knows: it is not frozen")
        return "free space trees on the disk, confirmed by the kernel", True, runs

    def _of_live(
        self, volume: Volume, content: str, place: _Place, mounts: list[MountRecord]
    ) -> tuple[str, bool, FreeRuns]:
        if content == "ext":
            with ExitStack() as stack:
                descriptor = self._open_node(place, 0)
                stack.callback(os.close, descriptor)
                cached = Volume(BufferedDevice(descriptor), 0, place.size)
                return "block bitmaps in the page cache", False, ext.free_runs(cached, live=True)
        if content == "btrfs":
            for attempt in range(_ATTEMPTS):
                try:
                    return "extent tree of the last transaction", False, btrfs.free_runs(volume)
                except ReadInFull:
                    if attempt + 1 == _ATTEMPTS:
                        raise
        xfs.parse_superblock(volume.read(0, 512), volume.size)
        known = self._asked_from_kernel(place, mounts)
        if known is not None:
            return "free space as the kernel knows it", False, known
        return "free space trees on the disk, some time ago", False, xfs.free_runs(volume)

    def _asked_from_kernel(self, place: _Place, mounts: list[MountRecord]) -> FreeRuns | None:
        """None where the kernel cannot be asked: too old, or every mountpoint is hidden by another mount."""
        for mount in mounts:
            try:
                descriptor = os.open(under(self._root, mount.mountpoint), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                # Mounted over, or outside of this process' root: another mount may be reached.
                continue
            try:
                if os.fstat(descriptor).st_dev == mount.device:
                    return fsmap.free_runs(descriptor, mount.device, place.size)
            finally:
                os.close(descriptor)
        return None

    def _mounts_of(self, number: int) -> list[MountRecord]:
        found = []
        for mount in self._mounts:
            if mount.device == number or mount.filesystem == "btrfs" and self._is_btrfs_on(mount, number):
                found.append(mount)
        return found

    def _is_btrfs_on(self, mount: MountRecord, number: int) -> bool:
        """Btrfs makes up a device number: recognised by the filesystem id (see devices.mounts_on)."""
        try:
            descriptor = self._open_number(number, 0)
        except OSError:
            # Without its node the device cannot be the source of a mount that is found here.
            return False
        try:
            raw = BufferedDevice(descriptor).read(btrfs.SUPERBLOCK, 4096)
        except OSError:
            # Smaller than any btrfs.
            return False
        finally:
            os.close(descriptor)
        return raw[64:72] == btrfs.MAGIC and mounted_btrfs(under(self._root, mount.mountpoint)) == raw[32:48]

    def _holders(self, number: int) -> list[str]:
        directory = sysfs_of(number, self._sys) / "holders"
        return sorted(holder.name for holder in directory.iterdir()) if directory.is_dir() else []

    def _check_nobody_uses(self, place: _Place) -> None:
        """A mount that is not known here (another namespace), a mapping, a RAID: all hold the device exclusively."""
        try:
            descriptor = self._open_number(self._number if place.number is None else place.number, os.O_EXCL)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise ReadInFull("something that is not known here uses it") from error
            raise
        os.close(descriptor)

    def _open_node(self, place: _Place, flags: int) -> int:
        if place.number is None:
            raise ReadInFull("the kernel has no device for it")
        return self._open_number(place.number, flags)

    def _open_number(self, number: int, flags: int) -> int:
        """Open the block device with this number by its node. Raises OSError, also when the node is another device."""
        name = os.path.basename(os.path.realpath(sysfs_of(number, self._sys)))
        node = self._dev / name.replace("!", "/")
        descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC | flags)
        if os.fstat(descriptor).st_rdev != number:
            os.close(descriptor)
            raise OSError(errno.ENXIO, f"{node} is another device")
        return descriptor


def _in_full(place: _Place, content: str, reason: str) -> VolumeUse:
    return VolumeUse(place.name, place.start, place.size, content, "", True, 0, reason)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _join(words: set[str]) -> str:
    return " and ".join(sorted(words))
