"""The pacer's promise, to the byte and the microsecond: no second carries more than its limit.

Goal: whoever asks, however late it comes back, any one-second window stays within 5 % of the rate.
Method: exact times on a clock that the test turns, then random movers against the promise.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import UsageError
from p2p.rates import LOWEST_LIMIT_BYTES_S, Pacer, RateLimits
from p2p.units import format_rate, parse_rate

RATE = 2_500_000  # 20 Mbit/s
BURST = 50_000  # 20 ms of it
SLICE = BURST // 4


def test_after_a_rest_one_burst_goes_at_once_and_then_every_slice_waits_for_its_time():
    pacer = Pacer(RATE)
    grants = [pacer.grant(1 << 20, now=100.0) for _ in range(6)]
    assert [size for size, _ in grants] == [SLICE] * 6
    waits = [wait_s for _, wait_s in grants]
    assert waits[:4] == pytest.approx([0, 0, 0, 0], abs=1e-9)
    assert waits[4:] == pytest.approx([0.005, 0.010])


def test_what_rests_longer_than_a_burst_has_no_more_to_spend():
    pacer = Pacer(RATE)
    pacer.grant(1, now=0.0)
    sizes = 0
    while (grant := pacer.grant(1 << 20, now=1000.0)).wait_s <= 1e-9:
        sizes += grant.size
    assert sizes == BURST


def test_a_late_timer_is_made_up_for():
    pacer = Pacer(RATE)
    now = moved = 0
    while now < 10:
        size, wait_s = pacer.grant(1 << 20, now)
        now += wait_s + 0.004  # the scheduler is always 4 ms late
        moved += size
    assert moved == pytest.approx(10 * RATE, rel=0.01)


def test_small_wishes_are_granted_as_they_are():
    pacer = Pacer(RATE)
    assert pacer.grant(7, now=5.0).size == 7


def test_a_refund_is_granted_to_the_next():
    pacer = Pacer(RATE)
    for _ in range(4):
        pacer.grant(SLICE, now=9.0)
    refused = pacer.grant(SLICE, now=9.0)
    pacer.refund(refused.size)
    assert pacer.grant(SLICE, now=9.0).wait_s == pytest.approx(refused.wait_s)


def test_the_lowest_limit_still_has_slices_that_fit_into_a_stall_many_times():
    pacer = Pacer(LOWEST_LIMIT_BYTES_S)
    assert 100 * pacer.slice_bytes / pacer.rate_bytes_s < 2.0
    assert pacer.burst_s < 0.05


@given(
    rate=st.integers(LOWEST_LIMIT_BYTES_S, 2 * 10**10),
    movers=st.lists(
        st.tuples(st.floats(0, 0.004), st.floats(0, 0.3), st.integers(1, 1 << 20)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_no_second_carries_more_than_its_limit(rate, movers):
    """Each mover has a grant at a time; it moves late and rests as drawn, over and over."""
    pacer, moved = Pacer(rate), []
    heap = sorted((0.0, index, 0) for index in range(len(movers)))
    while heap and heap[0][0] < 2.5 and len(moved) < 3000:
        now, index, granted = heap.pop(0)
        late_s, rest_s, wanted = movers[index]
        if granted:
            moved.append((now, granted))
            heap.append((now + rest_s * (len(moved) % 7 == 0), index, 0))
        else:
            size, wait_s = pacer.grant(wanted, now)
            heap.append((now + wait_s + late_s, index, size))
        heap.sort()
    first = total = 0
    for at, size in moved:
        total += size
        while moved[first][0] <= at - 1.0:
            total -= moved[first][1]
            first += 1
        assert total <= rate * (1 + pacer.burst_s + 0.004) + pacer.slice_bytes + 1, f"before {at}"


def test_a_limit_that_would_look_like_a_stall_is_refused():
    RateLimits(LOWEST_LIMIT_BYTES_S, None)
    for limits in ((LOWEST_LIMIT_BYTES_S - 1, None), (None, 0), (None, -5)):
        with pytest.raises(UsageError, match="1mbit"):
            RateLimits(*limits)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("80Gbit", 10**10), ("100mbit", 12_500_000), ("20mbit/s", 2_500_000),
        ("12.5MB", 12_500_000), ("20MiB", 20 * 1024**2),
        ("1.5gbit", 187_500_000), (" 8 kbit ", 1000), ("100kB", 100_000),
    ],
)  # fmt: skip
def test_rates_are_read_as_people_write_them(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "x", "20", "20mb", "20M", "-5mbit", "0mbit", "5 apples", "b"])
def test_what_is_not_a_rate_is_named(text):
    with pytest.raises(UsageError, match="20mbit"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["20mbit", "1.5gbit", "80gbit", "512kbit", "8bit"])
def test_a_shown_rate_can_be_given_again(text):
    assert format_rate(parse_rate(text)) == text
