"""What a range request decides, rule by rule, with exact values.

Goal: an outage is waited out and a fault that cannot be mended ends in time; ranges fit the origin
without a jump; and hedges stay one request in a hundred, whatever happens.
"""

from itertools import pairwise
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.ranges import (
    FRUITLESS,
    HEDGE_FLOOR_S,
    LONG_WAIT_S,
    QUICK_S,
    RANGE_FIRST,
    RANGE_HIGHEST,
    RANGE_LOWEST,
    SAMPLES,
    SAMPLES_NEEDED,
    SLOW_S,
    TRANSIENT,
    Hedges,
    RangeSize,
    Tries,
)
from p2p.errors import OriginError
from p2p.units import KIB, MIB


class Dice(Random):
    """Always shows the same: 0 is the shortest wait, 1 the longest."""

    def __init__(self, shows: float) -> None:
        super().__init__(0)
        self.shows = shows

    def random(self) -> float:
        return self.shows


def tries(shows: float = 1.0) -> Tries:
    return Tries(Dice(shows))


def fruitless(one: Tries) -> float | None:
    """A good head, and the connection broke before the first byte of the body."""
    return one.cut(progressed=False, had_head=True, stalled=False)


def unreachable(one: Tries) -> float | None:
    """The connection broke, or was not made, before any answer."""
    return one.cut(progressed=False, had_head=False, stalled=False)


def silent(one: Tries, *, had_head: bool = False) -> float | None:
    """Nothing came for `stall_s`."""
    return one.cut(progressed=False, had_head=had_head, stalled=True)


def resumed(one: Tries, *, stalled: bool = False) -> float | None:
    """Bytes came before the connection broke or fell silent."""
    return one.cut(progressed=True, had_head=True, stalled=stalled)


def busy(one: Tries, hint_s: float | None = None) -> float | None:
    """503, with or without a hint."""
    return one.refused(OriginError("503", fatal=False, retry_after_s=hint_s))


# -- Tries ----------------------------------------------------------------------------------------


def test_a_body_that_is_cut_goes_on_at_once_however_often():
    one = tries()
    assert [resumed(one) for _ in range(1000)] == [0.0] * 1000
    assert not one.fruitless


def test_good_heads_without_a_byte_are_asked_again_at_once_and_end_with_the_fifth():
    one = tries()
    assert FRUITLESS == 5
    assert [fruitless(one) for _ in range(4)] == [0.0] * 4
    assert not one.fruitless
    assert fruitless(one) is None
    assert one.fruitless


@pytest.mark.parametrize("failure", [unreachable, silent, busy])
def test_transient_failures_wait_longer_each_time_and_end_with_the_fourth(failure):
    assert TRANSIENT == 4
    longest, shortest = tries(1.0), tries(0.0)
    assert [failure(longest) for _ in range(4)] == [0.2, 0.4, 0.8, None]
    assert [failure(shortest) for _ in range(4)] == pytest.approx([0.02, 0.04, 0.08, None])
    assert not longest.fruitless


def test_transient_failures_of_all_kinds_count_together():
    one = tries()
    assert [unreachable(one), silent(one), busy(one), unreachable(one)] == [0.2, 0.4, 0.8, None]


def test_a_byte_of_progress_begins_every_count_anew():
    one = tries()
    for _ in range(3):
        assert [fruitless(one) for _ in range(4)] == [0.0] * 4
        assert [unreachable(one) for _ in range(3)] == [0.2, 0.4, 0.8]
        assert resumed(one) == 0.0
    assert [fruitless(one) for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, None]


def test_a_good_head_that_is_followed_by_silence_is_no_fruitless_answer():
    one = tries()
    assert [silent(one, had_head=True) for _ in range(4)] == [0.2, 0.4, 0.8, None]
    assert not one.fruitless


def test_the_wait_for_the_next_byte_doubles_with_each_stall_up_to_a_cap():
    one = tries()
    waits = []
    for _ in range(6):
        waits.append(one.stall_s)
        resumed(one, stalled=True)
    assert waits == [1.5, 3.0, 6.0, 12.0, 12.0, 12.0]
    resumed(one)
    assert one.stall_s == 1.5, "a cut that is no stall ends the row"


def test_stalls_without_a_byte_count_too_and_other_failures_leave_the_wait_as_it_is():
    one = tries()
    silent(one)
    assert one.stall_s == 3.0
    unreachable(one)
    fruitless(one)
    busy(one)
    assert one.stall_s == 3.0
    resumed(one, stalled=True)
    assert one.stall_s == 6.0


def test_what_cannot_be_mended_ends_at_once():
    one = tries()
    assert one.refused(OriginError("404", fatal=True)) is None
    assert one.refused(OriginError("403", fatal=True, retry_after_s=0.1)) is None
    assert busy(one) == 0.2, "it was no transient failure"


def test_a_hint_is_kept_up_to_the_life_of_a_lease_and_a_longer_one_is_for_another_node():
    assert LONG_WAIT_S == 2.0
    one = tries(0.0)
    assert busy(one, 2.001) is None
    assert busy(one, 2.0) == 2.0
    assert busy(one, 0.001) == pytest.approx(0.04), "never sooner than without a hint"
    assert busy(one, 0.0) == pytest.approx(0.08)
    assert busy(one, 2.0) is None, "the fourth in a row"
    assert not one.fruitless


# -- RangeSize ------------------------------------------------------------------------------------


def completed(size: RangeSize, times: int, seconds: float, size_bytes: int | None = None) -> int:
    """So many requests took so long each; returns the size afterwards."""
    for _ in range(times):
        size.completed(size.bytes if size_bytes is None else size_bytes, seconds)
    return size.bytes


def test_ranges_begin_at_8_mib_and_stay_between_4_and_32():
    assert (RANGE_LOWEST, RANGE_FIRST, RANGE_HIGHEST) == (4 * MIB, 8 * MIB, 32 * MIB)
    assert RangeSize().bytes == 8 * MIB
    assert completed(RangeSize(), 800, 0.01) == 32 * MIB
    assert completed(RangeSize(), 800, 10.0) == 4 * MIB


def test_eight_quick_requests_in_a_row_double_the_size():
    size = RangeSize()
    assert completed(size, 7, 0.099) == 8 * MIB
    assert completed(size, 1, 0.099) == 16 * MIB
    assert completed(size, 7, 0.099) == 16 * MIB
    assert completed(size, 1, 0.099) == 32 * MIB


def test_eight_slow_requests_in_a_row_halve_the_size():
    size = RangeSize()
    assert completed(size, 7, 2.001) == 8 * MIB
    assert completed(size, 1, 2.001) == 4 * MIB
    assert completed(size, 8, 2.001) == 4 * MIB


@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0])
def test_a_request_that_is_neither_ends_the_row(seconds):
    assert (QUICK_S, SLOW_S) == (0.1, 2.0)
    for kind in (0.01, 3.0):
        size = RangeSize()
        completed(size, 7, kind)
        completed(size, 1, seconds)
        assert completed(size, 7, kind) == 8 * MIB
        assert completed(size, 1, kind) != 8 * MIB


def test_a_quick_request_ends_a_row_of_slow_ones_and_the_other_way_round():
    size = RangeSize()
    for _ in range(20):
        completed(size, 7, 0.01)
        assert completed(size, 7, 3.0) == 8 * MIB


def test_the_rest_of_a_chunk_says_nothing_and_does_not_end_the_row():
    size = RangeSize()
    assert completed(size, 100, 0.01, 4 * MIB - 1) == 8 * MIB
    assert completed(size, 100, 3.0, 1) == 8 * MIB
    completed(size, 7, 0.01)
    completed(size, 1, 3.0, 4 * MIB - 1)
    assert completed(size, 1, 0.01, 4 * MIB) == 16 * MIB


def test_slow_requests_halve_what_was_asked_for_where_chunks_are_smaller_than_the_size():
    size = RangeSize()
    completed(size, 16, 0.01)
    assert size.bytes == 32 * MIB
    assert completed(size, 8, 3.0, 16 * MIB) == 8 * MIB
    assert completed(size, 8, 3.0, 8 * MIB) == 4 * MIB


def test_slow_requests_larger_than_the_size_halve_the_size():
    assert completed(RangeSize(), 8, 3.0, 32 * MIB) == 4 * MIB


@given(st.lists(st.tuples(st.integers(0, 64 * MIB), st.floats(0.0, 60.0)), max_size=100))
def test_the_size_stays_a_doubled_or_halved_4_mib_in_bounds_whatever_is_measured(requests):
    size = RangeSize()
    for size_bytes, seconds in requests:
        before = size.bytes
        size.completed(size_bytes, seconds)
        assert RANGE_LOWEST <= size.bytes <= min(RANGE_HIGHEST, 2 * before)


@pytest.mark.parametrize(
    ("start", "end", "block_bytes", "ranges"),
    [
        (0, 16 * MIB, MIB, [(0, 8 * MIB), (8 * MIB, 16 * MIB)]),
        (MIB, 10 * MIB, MIB, [(MIB, 9 * MIB), (9 * MIB, 10 * MIB)]),
        (0, 8 * MIB, MIB, [(0, 8 * MIB)]),
        (0, 8 * MIB + 1, MIB, [(0, 8 * MIB), (8 * MIB, 8 * MIB + 1)]),
        (0, 10 * MIB, 3 * MIB, [(0, 6 * MIB), (6 * MIB, 10 * MIB)]),
        (16 * MIB, 40 * MIB, 16 * MIB, [(16 * MIB, 32 * MIB), (32 * MIB, 40 * MIB)]),
        (0, 0, MIB, []),
    ],
)
def test_a_span_is_cut_at_block_borders(start, end, block_bytes, ranges):
    assert RangeSize().cut(start, end, block_bytes) == ranges


@given(
    blocks=st.integers(0, 1024),
    length=st.integers(0, 128 * MIB),
    block_bytes=st.integers(1, 8192).map(lambda count: count * 4 * KIB),
    rows=st.lists(st.sampled_from([0.01, 3.0]), max_size=3),
)
def test_ranges_cover_a_span_exactly_in_whole_blocks_of_about_the_size(
    blocks, length, block_bytes, rows
):
    size = RangeSize()
    for seconds in rows:
        completed(size, 8, seconds)
    start = blocks * block_bytes
    ranges = size.cut(start, start + length, block_bytes)
    borders = [start, *(end for _, end in ranges)]
    assert ranges == list(pairwise(borders)), "no gap, no overlap"
    assert borders[-1] == start + length
    assert all(border % block_bytes == 0 for border in borders[:-1])
    for at, end in ranges[:-1]:
        assert end - at == max(block_bytes, size.bytes // block_bytes * block_bytes)
    assert all(0 < end - at <= max(size.bytes, block_bytes) for at, end in ranges)


# -- Hedges ---------------------------------------------------------------------------------------


def measured(*groups: tuple[int, float]) -> Hedges:
    """So many requests took so long, group after group."""
    hedges = Hedges()
    for count, seconds in groups:
        for _ in range(count):
            hedges.completed(seconds)
    return hedges


def test_nothing_is_slow_before_50_requests_were_measured():
    assert SAMPLES_NEEDED == 50
    hedges = measured((49, 1.0))
    assert hedges.started() == inf
    hedges.completed(1.0)
    assert hedges.started() < inf
    assert Hedges().started() == inf


def test_slow_is_slower_than_99_of_100_requests():
    assert measured((297, 1.0), (1, 5.0), (1, 7.0), (1, 9.0)).started() == 5.0
    assert measured((1, 9.0), (1, 5.0), (1, 7.0), (297, 1.0)).started() == 5.0, "in any order"
    assert measured((97, 1.0), (3, 9.0)).started() == 9.0


def test_slow_is_never_less_than_twice_the_usual_nor_a_hiccup():
    assert measured((100, 1.0)).started() == 2.0
    assert measured((99, 1.0), (1, 1.5)).started() == 2.0
    assert measured((149, 1.0), (151, 1.5)).started() == 3.0, "the median is usual"
    assert measured((99, 1.0), (1, 2.5)).started() == 2.5
    assert HEDGE_FLOOR_S == 0.05
    assert measured((100, 0.001)).started() == 0.05
    assert measured((100, 0.026)).started() == 0.052


def test_only_the_last_512_requests_are_remembered():
    assert SAMPLES == 512
    assert measured((6, 9.0), (511, 1.0)).started() == 2.0
    assert measured((6, 9.0), (506, 1.0)).started() == 9.0


@given(st.lists(st.floats(0.001, 100.0), min_size=50, max_size=300))
def test_at_most_one_measured_request_in_a_hundred_was_slower_than_slow(seconds):
    hedges = Hedges()
    for one in seconds:
        hedges.completed(one)
    slow_s = hedges.started()
    assert sum(one > slow_s for one in seconds) <= len(seconds) / 100
    assert slow_s >= HEDGE_FLOOR_S


def test_the_hundredth_request_is_the_first_that_may_be_hedged():
    hedges = Hedges()
    for _ in range(99):
        hedges.started()
    assert not hedges.allowed()
    assert hedges.hedged == 0, "a refusal is not counted"
    hedges.started()
    assert hedges.allowed()
    assert not hedges.allowed()
    assert (hedges.requests, hedges.hedged) == (100, 1)
    for _ in range(100):
        hedges.started()
    assert hedges.allowed()
    assert not hedges.allowed()


@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 4)), max_size=40))
def test_no_order_of_requests_and_hedges_makes_more_than_one_in_a_hundred(groups):
    hedges, requests, hedged = Hedges(), 0, 0
    for started, wished in groups:
        for _ in range(started):
            hedges.started()
        requests += started
        for _ in range(wished):
            may = 100 * (hedged + 1) <= requests
            assert hedges.allowed() == may
            hedged += may
    assert (hedges.requests, hedges.hedged) == (requests, hedged)
