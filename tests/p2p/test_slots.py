"""Upload slots: bounded, refused at once, with a hint from what transfers took."""

from p2p.slots import RETRY_LOWEST_S, UploadSlots


def test_slots_are_bounded_and_a_blocked_read_may_use_the_reserved_one():
    slots = UploadSlots(limit=2, reserved=1)
    assert [slots.acquire() for _ in range(3)] == [True, True, False]
    assert slots.acquire(demand=True)
    assert not slots.acquire(demand=True)
    slots.release(1.0)
    assert not slots.acquire(), "the reserved slot is still taken"
    slots.release(1.0)
    assert slots.acquire()
    assert slots.busy_count == 3


def test_the_hint_is_the_share_of_a_transfer_after_which_one_of_the_slots_is_free():
    slots = UploadSlots(limit=4, reserved=0)
    assert slots.retry_after_s == RETRY_LOWEST_S
    for _ in range(4):
        assert slots.acquire()
    slots.release(0.8)
    assert slots.acquire()
    assert slots.retry_after_s == 0.8 / 4
