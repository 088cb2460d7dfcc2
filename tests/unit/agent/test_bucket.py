# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bandwidth limit, on a simulated clock."""

from __future__ import annotations

import threading

from fleetlift_agent.bucket import BURST_SECONDS, CHUNK, Lease, TokenBucket
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend(bucket: TokenBucket, clock: Clock, sizes: list[int]) -> float:
    """Take every size as soon as the bucket lets it; returns the seconds that took."""
    begun = clock.now
    for size in sizes:
        while (wait := bucket.try_take(size)) > 0:
            clock.now += wait
    return clock.now - begun


@given(st.integers(16 << 10, 1 << 30), st.lists(st.integers(1, CHUNK), min_size=1, max_size=200))
def test_no_window_exceeds_the_rate_by_more_than_burst_and_one_piece(rate: int, sizes: list[int]) -> None:
    clock = Clock()
    seconds = spend(TokenBucket(rate, clock), clock, sizes)
    assert sum(sizes) <= rate * (seconds + BURST_SECONDS) + CHUNK + 1


@given(st.integers(16 << 10, 1 << 30), st.lists(st.integers(1, CHUNK), min_size=1, max_size=200))
def test_the_rate_is_reached(rate: int, sizes: list[int]) -> None:
    clock = Clock()
    seconds = spend(TokenBucket(rate, clock), clock, sizes)
    assert seconds <= sum(sizes) / rate + 0.001


@given(st.lists(st.integers(1, CHUNK), max_size=50))
def test_without_a_limit_nothing_waits(sizes: list[int]) -> None:
    clock = Clock()
    assert spend(TokenBucket(None, clock), clock, sizes) == 0


def test_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    bucket = TokenBucket(1 << 20, clock)
    clock.now += 3600
    seconds = spend(bucket, clock, [CHUNK] * 64)
    assert seconds >= 4 - BURST_SECONDS - 0.1


def test_pieces_shrink_with_the_rate() -> None:
    assert TokenBucket(None).piece == CHUNK
    assert TokenBucket(1 << 30).piece == CHUNK
    assert TokenBucket(16 << 10).piece == 2 << 10


def test_waiting_caller_goes_on_when_the_limit_is_lifted() -> None:
    bucket = TokenBucket(1)
    bucket.take(1 << 20)
    done = threading.Event()

    def wait_and_tell() -> None:
        bucket.take(1)
        done.set()

    thread = threading.Thread(target=wait_and_tell)
    thread.start()
    assert not done.is_set()
    bucket.set_rate(None)
    assert done.wait(10)
    thread.join()


def test_cancelled_caller_stops_waiting() -> None:
    bucket = TokenBucket(1)
    bucket.take(1 << 20)
    bucket.take(1, lambda: True)


def test_limit_whose_lease_is_not_renewed_falls_back() -> None:
    clock = Clock()
    bucket = TokenBucket(None, clock)
    bucket.set_rate(8 << 20, Lease(60, 1 << 20))
    assert spend(bucket, clock, [CHUNK] * 128) < 2
    clock.now += 60
    assert bucket.rate == 1 << 20
    assert spend(bucket, clock, [CHUNK] * 128) > 7


@given(st.lists(st.floats(0, 59), max_size=20))
def test_limit_whose_lease_is_renewed_in_time_stays(pauses: list[float]) -> None:
    clock = Clock()
    bucket = TokenBucket(None, clock)
    bucket.set_rate(8 << 20, Lease(60, 1 << 20))
    for pause in pauses:
        clock.now += pause
        assert bucket.rate == 8 << 20
        bucket.set_rate(8 << 20, Lease(60, 1 << 20))


def test_renewal_of_a_lease_gives_no_bytes_away() -> None:
    clock = Clock()
    bucket = TokenBucket(None, clock)
    bucket.set_rate(1 << 20, Lease(60, 1 << 20))
    begun = clock.now
    for _ in range(64):
        spend(bucket, clock, [CHUNK])
        bucket.set_rate(1 << 20, Lease(60, 1 << 20))
    assert clock.now - begun >= 4 - BURST_SECONDS - 0.1
