"""Upload slots: bounded, refused at once, with a hint from what transfers took."""

import pytest

from p2p.slots import (
    READY_MOST,
    READY_MOST_S,
    READY_SLOW_S,
    RETRY_LOWEST_S,
    SLOW,
    YIELD_S,
    UploadSlots,
)

SIZE = 1000


def test_slots_are_bounded_and_a_blocked_read_may_use_the_reserved_one():
    slots = UploadSlots(limit=2, reserved=1)
    assert [slots.acquire(SIZE) for _ in range(3)] == [True, True, False]
    assert slots.acquire(SIZE, demand=True)
    assert not slots.acquire(SIZE, demand=True)
    slots.release(1.0)
    assert not slots.acquire(SIZE), "the reserved slot is still taken"
    slots.release(1.0)
    assert slots.acquire(SIZE)
    assert slots.busy_count == 3


def test_the_hint_is_the_share_of_a_transfer_after_which_one_of_the_slots_is_free():
    slots = UploadSlots(limit=4, reserved=0)
    assert slots.retry_after_s == RETRY_LOWEST_S
    for _ in range(4):
        assert slots.acquire(SIZE)
    slots.release(0.8)
    assert slots.acquire(SIZE)
    assert slots.retry_after_s == 0.8 / 4


@pytest.mark.parametrize("slow", [False, True])
def test_an_uplink_is_behind_when_more_is_ready_than_leaves_in_time_and_than_a_few_answers(slow):
    """In less time if it is slower than what comes in: its queue would only grow."""
    slots = UploadSlots(limit=4, reserved=0)
    slots.ready_bytes = 1 << 30
    assert not slots.behind(SIZE), "nobody knows yet what it carries"
    slots.rate_bytes_s = 100_000.0
    slots.coming_bytes_s = 100_000.0 / SLOW + (1 if slow else 0)
    slots.ready_bytes = int(100_000 * (READY_SLOW_S if slow else READY_MOST_S))
    assert not slots.behind(SIZE)
    slots.ready_bytes += 1
    assert slots.behind(SIZE)
    large = slots.ready_bytes // READY_MOST + 1
    assert not slots.behind(large), "a few answers may wait on the slowest uplink"
    assert not slots.acquire(SIZE)
    assert slots.acquire(SIZE, demand=True), "a blocked read is served"
    assert slots.acquire(large)


def test_others_yield_to_what_a_reader_is_blocked_on_until_it_has_left_but_not_for_long():
    slots, called = UploadSlots(limit=4, reserved=4), []

    def go_on() -> None:
        called.append(1)

    assert not slots.yields(1.0)
    slots.urgent_began(1.0)
    slots.urgent_began(1.0 + YIELD_S / 2)
    assert slots.yields(1.0 + YIELD_S / 2)
    assert not slots.yields(1.0 + YIELD_S), "a reader may be blocked all the time"
    slots.wait(go_on)
    slots.wait(go_on)
    slots.urgent_ended()
    assert called == [], "another one has not left yet"
    slots.urgent_ended()
    assert called == [1], "once"
    slots.urgent_began(2.0)
    assert slots.yields(2.0)
