# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame codec: round trips, and garbage that never gets further than an error."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any, Callable

import pytest
from fleetlift_agent import wire
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT, SUB_BLOCKS, Range
from hypothesis import given
from hypothesis import strategies as st

keys = st.builds(wire.ExtentKey, st.integers(0, 65535), st.integers(0, 2**32 - 1))
digests = st.binary(min_size=32, max_size=32)


@st.composite
def range_lists(draw: Callable[[Any], Any]) -> tuple[Range, ...]:
    """Ascending ranges within one extent."""
    cuts = sorted(draw(st.sets(st.integers(0, SUB_BLOCKS), min_size=2)))
    ranges = [
        Range(first, after - first, draw(st.booleans()))
        for first, after in zip(cuts, cuts[1:])
        if draw(st.booleans()) or first == cuts[0]
    ]
    return tuple(ranges)


writes = st.builds(wire.Write, keys, digests, digests, range_lists(), st.integers(0, 255), st.integers(0, EXTENT))


@given(writes)
def test_write_round_trip(write: wire.Write) -> None:
    head = memoryview(write.pack())
    assert wire.write_head_size(head[: wire.WRITE_FIXED]) == len(head) == write.head_size
    assert wire.parse_write(head) == write
    assert len(head) + EXTENT <= wire.PAYLOAD_LIMITS[wire.WRITE]


@given(st.lists(keys, max_size=50))
def test_extent_keys_round_trip(acks: list[wire.ExtentKey]) -> None:
    assert wire.parse_extent_keys(wire.pack_extent_keys(acks)) == acks


@given(keys, st.lists(digests, min_size=1, max_size=64))
def test_hashes_round_trip(key: wire.ExtentKey, hashes: list[bytes]) -> None:
    value = wire.Digests(key, b"".join(hashes))
    assert wire.parse_digests(value.pack()) == value
    leaves = wire.Leaves(key, b"".join(hashes)[:-16])
    assert wire.parse_leaves(leaves.pack()) == leaves


@given(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(1, wire.MAX_DIGESTS))
def test_digests_request_round_trip(disk: int, first: int, count: int) -> None:
    value = wire.DigestsRequest(disk, first, count)
    assert wire.parse_digests_request(value.pack()) == value


@given(st.sampled_from(sorted(wire.PAYLOAD_LIMITS)), st.data())
def test_header_round_trip(kind: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, wire.PAYLOAD_LIMITS[kind]))
    assert wire.parse_header(wire.pack_header(kind, length)) == (kind, length)


@given(st.binary(min_size=wire.HEADER_SIZE, max_size=wire.HEADER_SIZE))
def test_no_header_announces_more_than_its_bound(data: bytes) -> None:
    try:
        kind, length = wire.parse_header(data)
    except AgentError as error:
        assert error.code == "WIRE_MALFORMED"
    else:
        assert length <= wire.PAYLOAD_LIMITS[kind] <= 2 << 20


PARSERS: list[Callable[[Any], Any]] = [
    wire.parse_json,
    wire.parse_extent_key,
    wire.parse_extent_keys,
    wire.parse_digests_request,
    wire.parse_digests,
    wire.parse_leaves,
    wire.parse_write,
    wire.write_head_size,
]


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=400))
def test_garbage_is_parsed_or_refused_and_nothing_else(parse: Callable[[Any], Any], data: bytes) -> None:
    try:
        parse(memoryview(data))
    except AgentError as error:
        assert error.code == "WIRE_MALFORMED"


@given(writes, st.integers(0, 400), st.integers(0, 255))
def test_damaged_write_never_leaves_its_extent(write: wire.Write, at: int, byte: int) -> None:
    data = bytearray(write.pack())
    data[at % len(data)] = byte
    try:
        parsed = wire.parse_write(memoryview(data))
    except AgentError as error:
        assert error.code == "WIRE_MALFORMED"
        return
    end = 0
    for part in parsed.ranges:
        assert part.first >= end
        end = part.first + part.count
    assert 1 <= end <= SUB_BLOCKS
    assert parsed.raw_length <= EXTENT


@given(st.binary(max_size=20))
def test_only_the_own_preamble_passes(data: bytes) -> None:
    if data == wire.pack_preamble():
        wire.check_preamble(data)
        return
    with pytest.raises(AgentError):
        wire.check_preamble(data)


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(AgentError, match="WIRE_MALFORMED"):
        wire.parse_json(b"[" * 60000)


@given(st.dictionaries(st.text(max_size=10), st.integers() | st.text(max_size=20), max_size=5))
def test_json_round_trip(value: dict[str, Any]) -> None:
    assert wire.parse_json(wire.pack_json(value)) == json.loads(json.dumps(value))


def test_oversized_message_is_not_even_packed() -> None:
    with pytest.raises(AgentError, match="WIRE_MALFORMED"):
        wire.pack_json({"text": "x" * wire.JSON_LIMIT})


def test_a_header_that_lies_costs_no_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(AgentError):
            wire.parse_header(b"\x14\0\0\0\xff\xff\xff\xff")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
