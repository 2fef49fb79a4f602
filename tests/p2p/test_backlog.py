"""A node fetches no more than it can pass on: eight chunks, or half a second of its uplink."""

import pytest

from p2p.backlog import Backlog


def backlog(chunks: int) -> Backlog:
    """One that has brought in so many."""
    made = Backlog()
    for chunk in range(chunks):
        made.add(chunk)
    return made


def test_eight_may_wait_and_a_ninth_is_too_many_until_one_is_passed_on():
    waiting = backlog(8)
    assert not waiting.full
    waiting.add(8)
    assert waiting.full
    waiting.passed(3, now=0.5)
    assert not waiting.full
    assert len(waiting) == 8


def test_a_chunk_counts_once_however_often_it_comes_and_goes():
    waiting = backlog(9)
    waiting.add(3)
    assert len(waiting) == 9
    for _ in range(2):
        waiting.passed(3, now=0.5)
    assert len(waiting) == 8


def test_a_node_that_passes_on_quickly_may_be_half_a_second_ahead():
    waiting = backlog(39)
    for chunk in range(20):
        waiting.passed(chunk, now=(chunk + 1) / 20)  # 20 a second: ten more than eight
    assert len(waiting) == 19
    assert waiting.full
    waiting.passed(20, now=1.01)
    assert not waiting.full


def test_a_chunk_of_others_says_nothing_about_this_nodes_uplink():
    waiting = backlog(10)
    for i in range(1000):
        waiting.passed(1000 + i, now=i / 100)
    waiting.passed(0, now=10.0)
    assert waiting.full


def test_the_rate_is_that_of_the_last_second_and_not_of_better_days():
    waiting = backlog(100)
    for chunk in range(80):
        waiting.passed(chunk, now=(chunk + 1) / 80)
    assert not waiting.full, "80 a second passed on, 20 wait"
    waiting.passed(80, now=1.9)
    assert not waiting.full, "less than a second says nothing yet"
    waiting.passed(81, now=2.0)
    assert waiting.full, "2 a second: nine are enough, 18 wait"
    for chunk in range(82, 90):
        waiting.passed(chunk, now=6.0 if chunk == 89 else 2.5)
    assert len(waiting) == 10
    assert waiting.full, "8 in four seconds: 2 a second still"


def test_a_clock_that_began_long_before_the_node_is_no_rate():
    waiting = backlog(10)
    waiting.passed(0, now=1e6)
    assert waiting.full


@pytest.mark.parametrize("uplink", [1, 4, 10, 100, 1000])
def test_an_uplink_is_never_idle_and_never_has_much_more_than_half_a_second_to_send(uplink):
    """The origin is as fast as one likes; every chunk leaves when the one before it has left."""
    waiting, added = Backlog(), 0
    for sent in range(10 * uplink):
        while not waiting.full:
            waiting.add(added)
            added += 1
        assert 9 <= len(waiting) <= 9 + uplink / 2
        waiting.passed(sent, now=(sent + 1) / uplink)
    assert len(waiting) >= 8 + uplink / 2 - 1, "and no less, once its rate is known"
