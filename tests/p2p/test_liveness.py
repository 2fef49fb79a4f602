"""Whether a peer is asked if it lives, or given up."""

import pytest

from p2p.liveness import (
    ANSWER_S,
    GONE_MOST_S,
    LOOK_S,
    QUIET_NEEDED_S,
    QUIET_S,
    SILENCE_S,
    Liveness,
    Look,
)


def test_a_peer_is_asked_after_a_while_without_a_sign_and_sooner_if_it_is_needed():
    assert Liveness().look(0.0, QUIET_S - 0.01, needed=False) is Look.FINE
    assert Liveness().look(0.0, QUIET_S, needed=False) is Look.ASK
    assert Liveness().look(0.0, QUIET_NEEDED_S - 0.01, needed=True) is Look.FINE
    assert Liveness().look(0.0, QUIET_NEEDED_S, needed=True) is Look.ASK


def test_a_peer_that_answers_is_not_given_up_however_long_it_says_nothing_else():
    liveness, heard_at, asked = Liveness(), 0.0, 0
    for turn in range(1, 100):
        now = turn * LOOK_S
        look = liveness.look(heard_at, now, needed=True)
        assert look is not Look.GIVE_UP
        if look is Look.ASK:
            heard_at, asked = now + 0.001, asked + 1
    assert asked >= 40


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("offset", [0.0, 0.7, 1.9])
def test_a_peer_that_stops_is_given_up_but_not_before_it_had_time_to_answer(needed, offset):
    liveness, asked_at = Liveness(), None
    now = offset
    while (look := liveness.look(0.0, now, needed=needed)) is not Look.GIVE_UP:
        if look is Look.ASK and asked_at is None:
            asked_at = now
        now += LOOK_S
    assert asked_at is not None
    assert now >= asked_at + ANSWER_S
    assert SILENCE_S <= now <= GONE_MOST_S


def test_a_sign_of_another_kind_counts_as_an_answer():
    liveness = Liveness()
    assert liveness.look(0.0, QUIET_S, needed=False) is Look.ASK
    assert liveness.look(QUIET_S + 1, QUIET_S + 2, needed=False) is Look.FINE
    assert liveness.look(QUIET_S + 1, QUIET_S + 1 + SILENCE_S, needed=False) is Look.ASK, "anew"
