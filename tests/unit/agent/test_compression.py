# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Codecs and the decision whether compressing pays."""

from __future__ import annotations

import os
import zlib

import pytest
import zstandard
from fleetlift_agent.compression import (
    CODEC_NONE,
    CODEC_ZLIB,
    CODEC_ZSTD,
    CODECS,
    Economy,
    Unpacker,
    available_codecs,
    load_codec,
)
from fleetlift_agent.errors import AgentError
from fleetlift_agent.extents import EXTENT
from hypothesis import given
from hypothesis import strategies as st

TEXT = b"the quick brown fox " * 5000


@pytest.mark.parametrize("name", available_codecs())
@given(raw=st.binary(min_size=1, max_size=5000) | st.sampled_from([TEXT, os.urandom(100000), bytes(EXTENT)]))
def test_what_is_packed_is_unpacked(name: str, raw: bytes) -> None:
    codec, packed = Economy(load_codec(name)).pack(raw)
    assert len(packed) <= len(raw)
    assert Unpacker().unpack(codec, memoryview(packed), len(raw)) == raw


@pytest.mark.parametrize("name", ["zlib", "zstd"])
def test_incompressible_content_travels_as_it_is(name: str) -> None:
    raw = os.urandom(EXTENT)
    assert Economy(load_codec(name)).pack(raw) == (CODEC_NONE, raw)


@given(st.sampled_from([CODEC_NONE, CODEC_ZLIB, CODEC_ZSTD, 7]), st.binary(max_size=300), st.integers(0, EXTENT))
def test_garbage_is_refused(codec: int, data: bytes, length: int) -> None:
    try:
        raw = Unpacker().unpack(codec, memoryview(data), length)
    except AgentError as error:
        assert error.code == "WIRE_CONTENT_DAMAGED"
    else:
        assert len(raw) == length


@pytest.mark.parametrize(
    ("codec", "bomb"),
    [
        (CODEC_ZLIB, zlib.compress(bytes(64 << 20))),
        (CODEC_ZSTD, zstandard.ZstdCompressor().compress(bytes(64 << 20))),
        (CODEC_ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))),
        (CODEC_ZLIB, zlib.compress(TEXT)[:-1]),
        (CODEC_ZLIB, zlib.compress(TEXT) + b"more"),
    ],
)
def test_content_of_another_length_is_refused(codec: int, bomb: bytes) -> None:
    with pytest.raises(AgentError, match="WIRE_CONTENT_DAMAGED"):
        Unpacker().unpack(codec, memoryview(bomb), len(TEXT) if len(bomb) < 5000 else EXTENT)


class Clock:
    """Each compression takes `cost` seconds."""

    def __init__(self, cost: float) -> None:
        self._now = 0.0
        self._cost = cost

    def __call__(self) -> float:
        self._now += self._cost
        return self._now


@pytest.mark.parametrize(("send_seconds", "level"), [(0.002, -5), (0.02, 1), (1.0, 3)])
def test_zstd_makes_more_effort_the_slower_the_link_is(send_seconds: float, level: int) -> None:
    codec = load_codec("zstd")
    economy = Economy(codec, Clock(0.001))
    for _ in range(40):
        # The clock lets each compression take a millisecond, whatever the level.
        _number, packed = economy.pack(TEXT)
        economy.sent(len(TEXT), send_seconds)
        assert Unpacker().unpack(CODEC_ZSTD, memoryview(packed), len(TEXT)) == TEXT
    assert codec.level == level


@pytest.mark.parametrize("name", ["zlib", "zstd"])
def test_codec_is_skipped_when_the_link_is_faster(name: str) -> None:
    economy = Economy(load_codec(name), Clock(1.0))
    assert economy.pack(TEXT)[0] == CODECS[name]
    economy.sent(len(TEXT), 0.001)
    assert economy.pack(TEXT)[0] == CODEC_NONE


def test_a_write_of_zeros_says_nothing_of_the_link() -> None:
    economy = Economy(load_codec("zlib"), Clock(1.0))
    economy.pack(TEXT)
    economy.sent(len(TEXT), 0.001)
    economy.sent(0, 0.001)
    assert economy.pack(TEXT)[0] == CODEC_NONE


def test_traffic_can_be_saved_whatever_it_costs_in_time() -> None:
    economy = Economy(load_codec("zstd"), Clock(1.0), always=True)
    for _ in range(5):
        assert economy.pack(TEXT)[0] == CODEC_ZSTD
        economy.sent(len(TEXT), 0.0)


@pytest.mark.parametrize("name", ["zlib", "zstd"])
def test_codec_is_used_when_the_link_is_slower(name: str) -> None:
    economy = Economy(load_codec(name), Clock(0.001))
    for _ in range(5):
        assert economy.pack(TEXT)[0] == CODECS[name]
        economy.sent(len(TEXT), 1.0)


@pytest.mark.parametrize(("send_seconds", "codec"), [(1.0, CODEC_ZSTD), (0.015, CODEC_NONE)])
def test_after_what_does_not_compress_the_next_is_tried_where_that_costs_little(
    send_seconds: float, codec: int
) -> None:
    economy = Economy(load_codec("zstd"), Clock(0.001))
    for _ in range(50):
        assert economy.pack(os.urandom(len(TEXT)))[0] == CODEC_NONE
        economy.sent(len(TEXT), send_seconds)
    assert economy.pack(TEXT)[0] == codec


def test_skipped_codec_is_tried_again() -> None:
    economy = Economy(load_codec("zlib"), Clock(1.0))
    codecs = []
    for _ in range(200):
        codecs.append(economy.pack(TEXT)[0])
        economy.sent(len(TEXT), 0.001)
    assert codecs.count(CODEC_ZLIB) == 4
