"""Which chunks are looked at: the first that are not here, whatever became of those before them."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2p.bitfield import Bitfield
from p2p.ids import NodeId
from p2p.picker import HELD, IN_FLIGHT, MISSING, RELEASED, SLACK, Picker

COUNT = 12 * SLACK
SIZE = 2 * SLACK


def picker(held: range = range(0)) -> Picker:
    bits = Bitfield(COUNT)
    for chunk in held:
        bits.add(chunk)
    return Picker(list(reversed(range(COUNT))), bits, SIZE, 2, Random(1))


def test_chunks_that_nobody_can_give_do_not_hide_those_behind_them():
    looked = picker(held=range(COUNT - SIZE, COUNT - 1))
    assert looked.window() == [COUNT - 1, *range(COUNT - SIZE - 1, COUNT - 2 * SIZE, -1)]
    for chunk in range(COUNT - 2 * SIZE, COUNT - SIZE):
        looked.held(chunk)
    assert looked.window()[:2] == [COUNT - 1, COUNT - 2 * SIZE - 1]
    assert len(looked.window()) == SIZE
    assert looked.window(1) == [COUNT - 1]


def test_what_is_under_way_takes_a_place_of_the_window():
    looked = picker()
    looked.reserve(COUNT - 2)
    assert looked.window(3) == [COUNT - 1, COUNT - 3]
    looked.release(COUNT - 2)
    assert looked.window(3) == [COUNT - 1, COUNT - 2, COUNT - 3]


CHUNKS = st.integers(0, COUNT - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("reserve", "release", "held", "damaged", "let go")), CHUNKS),
        st.tuples(st.just("look"), st.integers(1, COUNT)),
        st.tuples(st.just("all held from"), CHUNKS),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_window_is_the_first_chunks_that_are_not_here(steps):
    """Against a model that looks through everything each time."""
    looked = picker()
    state = dict.fromkeys(reversed(range(COUNT)), MISSING)
    for step, value in steps:
        before = state.get(value)
        if step == "look":
            first = [chunk for chunk, one in state.items() if one in (MISSING, IN_FLIGHT)][:value]
            assert looked.window(value) == [chunk for chunk in first if state[chunk] == MISSING]
        elif step == "all held from":
            for chunk in range(value, min(value + SIZE, COUNT)):
                looked.held(chunk)
                state[chunk] = HELD
        elif step == "reserve" and before in (MISSING, RELEASED):
            looked.reserve(value)
            state[value] = IN_FLIGHT
        elif step == "release" and before == IN_FLIGHT:
            looked.release(value)
            state[value] = MISSING
        elif step == "held":
            looked.held(value)
            state[value] = HELD
        elif step in ("damaged", "let go") and before == HELD:
            state[value] = MISSING if step == "damaged" else RELEASED
            looked.dropped(value, state[value])


def test_what_was_let_go_is_looked_at_once_it_was_wanted_and_did_not_come():
    looked = picker(held=range(COUNT - 1))
    looked.dropped(5, RELEASED)
    assert looked.window() == [COUNT - 1]
    looked.reserve(5)
    looked.release(5)
    assert looked.window() == [COUNT - 1, 5]


def test_what_follows_the_first_missing_chunk_closely_is_asked_for_before_rarer_ones():
    looked = picker(held=range(COUNT - SIZE, COUNT - 1))
    one, other = NodeId(b"1" * 16), NodeId(b"2" * 16)
    looked.join(one, Bitfield(COUNT))
    looked.join(other, Bitfield(COUNT))
    far = COUNT - SIZE - 1
    looked.has(one, far)
    assert looked.pick(looked.window()) == (far, one), "nothing else can be had"
    for peer in (one, other):
        looked.has(peer, COUNT - 1)
    chunk, _ = looked.pick(looked.window()) or (None, None)
    assert chunk == COUNT - 1, "it has two holders, but a reader is blocked on it first"


def test_of_holders_alike_one_that_was_asked_before_is_asked_again():
    """A peer that was never asked has no data connection with us yet."""
    looked = picker()
    peers = [NodeId(bytes([65 + number]) * 16) for number in range(8)]
    for peer in peers:
        looked.join(peer, Bitfield(COUNT))
        looked.has(peer, *range(COUNT))
    looked.met(peers[5])
    assert looked.pick([7]) == (7, peers[5])
    looked.reserve(7, peers[5])
    chunk, peer = looked.pick([8]) or (None, None)
    assert (chunk, peer == peers[5]) == (8, False), "it has a request, the others have none"
    looked.leave(peers[5])
    looked.join(peers[5], Bitfield(COUNT))
    assert not looked._met_mask
