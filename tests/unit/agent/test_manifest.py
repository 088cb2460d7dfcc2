# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest: what it keeps, and when a kept file may be trusted."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from fleetlift_agent.extents import EXTENT
from fleetlift_agent.hashing import UNKNOWN, available_hashes, load_hash
from fleetlift_agent.manifest import FileManifest, MemoryManifest, disk_root
from hypothesis import given
from hypothesis import strategies as st

MADE_FOR = {"hash_name": "sha256", "boot_id": "boot-1", "serial": "disk-1", "disk_size": 10 * EXTENT + 512}
entries = st.dictionaries(st.integers(0, 10), st.binary(min_size=32, max_size=32))


@given(entries)
def test_memory_manifest_keeps_what_was_set(values: dict[int, bytes]) -> None:
    manifest = MemoryManifest(10 * EXTENT + 512)
    assert manifest.blank
    for extent, digest in values.items():
        manifest.set(extent, digest)
    expected = [values.get(extent, UNKNOWN) for extent in range(11)]
    assert [manifest.get(extent) for extent in range(manifest.count)] == expected
    assert manifest.slice(2, 5) == b"".join(expected[2:7])
    assert manifest.blank == (set(expected) == {UNKNOWN})
    assert manifest.complete == (UNKNOWN not in expected)


@given(st.lists(st.sampled_from([UNKNOWN, b"x" * 32, b"x" + bytes(31), bytes(31) + b"x"]), min_size=11, max_size=11))
def test_memory_manifest_is_complete_when_no_digest_is_missing(digests: list[bytes]) -> None:
    manifest = MemoryManifest(10 * EXTENT + 512)
    for extent, digest in enumerate(digests):
        manifest.set(extent, digest)
    assert manifest.complete == (UNKNOWN not in digests)


def test_file_manifest_survives_its_process(tmp_path: Path) -> None:
    first = FileManifest(tmp_path / "m", **MADE_FOR)  # type: ignore[arg-type]
    assert not first.reused
    first.set(10, b"x" * 32)
    second = FileManifest(tmp_path / "m", **MADE_FOR)  # type: ignore[arg-type]
    assert second.reused
    assert second.get(10) == b"x" * 32
    assert second.get(0) == UNKNOWN
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [{"hash_name": "blake3"}, {"boot_id": "boot-2"}, {"serial": "disk-2"}, {"disk_size": 10 * EXTENT}]
)
def test_file_manifest_of_something_else_is_forgotten(tmp_path: Path, change: dict[str, Any]) -> None:
    first = FileManifest(tmp_path / "m", **MADE_FOR)  # type: ignore[arg-type]
    first.set(0, b"x" * 32)
    second = FileManifest(tmp_path / "m", **{**MADE_FOR, **change})
    assert not second.reused
    assert second.get(0) == UNKNOWN


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * (4096 + 11 * 32), b"\xff" * 10000])
def test_damaged_manifest_file_is_forgotten(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    manifest = FileManifest(tmp_path / "m", **MADE_FOR)  # type: ignore[arg-type]
    assert manifest.slice(0, 11) == bytes(11 * 32)


def test_digest_of_another_length_is_refused(tmp_path: Path) -> None:
    for manifest in (MemoryManifest(EXTENT), FileManifest(tmp_path / "m", **MADE_FOR)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="32"):
            manifest.set(0, b"short")


@pytest.mark.parametrize("name", available_hashes())
def test_root_depends_on_every_digest_and_their_order(name: str) -> None:
    algorithm = load_hash(name)
    roots = set()
    for digests in ((b"a", b"b"), (b"b", b"a"), (b"a", b"a"), (b"\0", b"a")):
        manifest = MemoryManifest(2 * EXTENT)
        for extent, byte in enumerate(digests):
            manifest.set(extent, byte * 32)
        roots.add(disk_root(manifest, algorithm))
    assert len(roots) == 4


@pytest.mark.parametrize("name", available_hashes())
@given(size=st.sampled_from([512, 16 << 10, (16 << 10) + 512, EXTENT - 512, EXTENT]), fill=st.sampled_from([0, 1, 255]))
def test_hashing_zeros_has_no_special_result(name: str, size: int, fill: int) -> None:
    algorithm = load_hash(name)
    data = bytes([fill]) * size
    plain = b"".join(algorithm.digest(data[at : at + (4 << 10)])[:16] for at in range(0, size, 4 << 10))
    assert algorithm.leaves(memoryview(data)) == plain
