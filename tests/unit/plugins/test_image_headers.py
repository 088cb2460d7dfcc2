# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Headers come from anybody: whatever the bytes are, the answer is a header, and a sound one is read exactly."""

from __future__ import annotations

import os
import struct

import image_files
import pytest
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import Refusal
from ansible_collections.fleetlift.cvm.plugins.module_utils.images import (
    estimate,
    foreign,
    qcow2,
    sampling,
    vdi,
    vhd,
    vhdx,
    vmdk,
)
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.header import Header, ImageFile
from ansible_collections.fleetlift.cvm.plugins.module_utils.images.recognise import name_fits, recognise
from hypothesis import assume, given
from hypothesis import strategies as st
from image_files import MIB


class Memory:
    """Bytes as a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0
        # A hostile header must not make us read a lot.
        assert length <= 128 * MIB
        return self._data[offset : offset + length]


SIGNATURES = [
    (0, qcow2.MAGIC + b"\0\0\0\x02"),
    (0, qcow2.MAGIC + b"\0\0\0\x03"),
    (0, vmdk.SPARSE + b"\x01\0\0\0"),
    (0, vmdk.ESX_SPARSE + b"\x01\0\0\0"),
    (0, b"# Disk DescriptorFile\n"),
    (vdi.MAGIC_AT, vdi.MAGIC + b"\x01\0\x01\0"),
    (0, vhdx.MAGIC),
    (0, vhd.COOKIE),
]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=4096))
def test_any_bytes_behind_a_signature_are_a_header(signature, noise):
    offset, magic = signature
    data = bytearray(noise.ljust(offset + len(magic), b"\0"))
    data[offset : offset + len(magic)] = magic

    header = recognise(Memory(bytes(data)))

    assert header.format in ("qcow2", "vmdk", "vdi", "vhdx", "vhd")


@given(st.binary(max_size=2048))
def test_any_bytes_at_all_are_something(noise):
    assert recognise(Memory(noise)).format


class Images(dict):
    """Bytes by the name of their format; a failure does not print them."""

    def __repr__(self) -> str:
        return f"{len(self)} images"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The same disk in every format, as bytes."""
    workshop = tmp_path_factory.mktemp("images")
    disk = workshop / "disk.raw"
    disk.write_bytes(bytes(range(256)) * 256 + bytes(3 * MIB))
    return Images({name: image_files.converted(disk, workshop, name).read_bytes() for name in image_files.FORMATS})


@given(data=st.data())
def test_a_sound_header_with_any_bytes_changed_does_no_harm(images, data):
    name = data.draw(st.sampled_from(sorted(images)))
    changed = bytearray(images[name])
    for _number in range(data.draw(st.integers(1, 4))):
        # Where the headers and tables are; VHDX has them up to 3 MiB.
        at = data.draw(st.integers(0, min(len(changed), 2048) - 1))
        changed[at] = data.draw(st.integers(0, 255))

    header = recognise(Memory(bytes(changed)))

    assert header.format
    assert header.virtual_size is None or header.virtual_size >= 0


@given(data=st.data())
def test_a_file_that_was_cut_off_is_never_taken_for_a_whole_one_by_its_tables(images, data):
    name = data.draw(st.sampled_from(["qcow2", "dynamic vhd", "stream vmdk", "vdi"]))
    whole = images[name]
    needed = recognise(Memory(whole)).least_size
    # Behind it are the padding and the end marks of a stream.
    assert name == "qcow2" or len(whole) - needed <= 65536
    cut = whole[: data.draw(st.integers(1024, needed - 1))]

    header = recognise(Memory(cut))

    assert header.problem or header.least_size > len(cut)


@pytest.mark.parametrize(
    "name", ["qcow2", "dynamic vhd", "fixed vhd", "sparse vmdk", "stream vmdk", "vdi", "vhdx", "raw"]
)
def test_sizes_are_read_exactly_and_a_whole_file_is_not_short(name, images):
    header = recognise(Memory(images[name]))

    assert header.problem == ""
    assert header.least_size <= len(images[name])
    assert 0 <= header.virtual_size - (3 * MIB + 65536) < MIB


@given(st.integers(1, 1 << 50), st.integers(9, 21), st.integers(0, 3), st.binary(max_size=64))
def test_a_qcow2_header_is_read_field_by_field(size, cluster_bits, snapshots, name):
    cluster = 1 << cluster_bits
    entries = -(-size // (cluster * (cluster // 8)))
    backing = name.replace(b"\0", b"")
    l1_at, table_at = 3 * cluster, 2 * cluster
    overlap = (snapshots and table_at + 48 * snapshots > max(4 * cluster, 4096)) or 80 + len(backing) > table_at
    assume(entries * 8 <= 32 * MIB and not overlap)
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", qcow2.MAGIC, 2, 80 if backing else 0, len(backing), cluster_bits, size, 0, entries, l1_at,
        cluster, 1, snapshots, table_at,
    )  # fmt: skip
    raw = bytearray(max(4 * cluster, 4096))
    raw[: len(head)] = head
    raw[80 : 80 + len(backing)] = backing
    at = table_at
    for number in range(snapshots):
        entry = struct.pack(">QIHHIIQII", 0, 0, 1, 2, 0, 0, 0, 0, 0) + b"%d" % number + b"s%d" % number
        raw[at : at + len(entry)] = entry
        at += -(-len(entry) // 8) * 8

    header = recognise(Memory(bytes(raw)))

    assert (header.problem, header.virtual_size) == ("", size)
    assert header.backing == backing.decode("utf-8", "replace")
    assert header.snapshots == tuple(f"s{number}" for number in range(snapshots))
    assert header.least_size >= l1_at + entries * 8


def test_a_qcow2_of_version_1_and_other_strangers_are_named():
    assert recognise(Memory(qcow2.MAGIC + b"\0\0\0\x01" + bytes(100))).format == "qcow"
    for kind, offset, signature in foreign.SIGNATURES:
        data = bytearray(2048)
        at = offset if offset >= 0 else len(data) + offset
        data[at : at + len(signature)] = signature
        assert recognise(Memory(bytes(data))).format == kind


@given(st.text(alphabet="abc.-_", min_size=1, max_size=20))
def test_a_name_without_a_known_ending_fits_every_format(name):
    assert name_fits(name, Header("qcow2"))


def test_a_named_pipe_is_no_image_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refusal, match="IMAGE_UNREADABLE"):
        ImageFile(str(tmp_path / "pipe"))


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40)), max_size=12),
    st.integers(1, 50),
)
def test_samples_are_whole_clusters_inside_of_the_extents_and_none_is_taken_twice(pieces, count):
    extents, at = [], 0
    for gap, length in pieces:
        at += gap * sampling.CLUSTER
        extents.append((at, length * sampling.CLUSTER))
        at += length * sampling.CLUSTER
    total = sum(length for _start, length in extents) // sampling.CLUSTER

    found = sampling.positions(extents, count)

    assert len(found) == min(count, total)
    assert len(set(found)) == len(found)
    assert all(any(start <= each < start + length for start, length in extents) for each in found)


@given(st.integers(1, 1 << 45), st.floats(0, 1), st.floats(1, 1e10), st.floats(1e3, 1e10))
def test_compression_pays_exactly_when_it_ends_sooner(size, ratio, rate, bandwidth):
    sample = estimate.Sample(data=size, ratio=ratio, rate=rate, looked_at=size)

    answer = estimate.estimate(size, sample, estimate.Assumptions(bandwidth))

    assert answer["compression_pays"] == (answer["as_it_is"]["total_seconds"] > answer["compressed"]["total_seconds"])
    assert estimate.in_words(answer)
