"""How a swarm begins together: nobody is in a hurry before, and then the trees come first.

Of four nodes, in the order of their ids this one, a, b and c, b is the parent of this one in the
trees of a and b, and c in its own (see `test_swarm`).
"""

from random import Random

import pytest

from p2p import events as ev
from p2p.ahead import FIRST_GRACE_S, FIRST_S, GRACE_LEAST_S, SETTLE_S
from p2p.bitfield import Bitfield
from p2p.events import Source
from p2p.ids import Chunk
from p2p.limits import Limits
from p2p.swarm import Swarm
from tests.p2p.test_swarm import CHUNKS, MANIFEST, ME, PINS, bits, node, of, pin, waits

OFFERED = ev.PeersOffered(tuple((node(name), ("h:1",)) for name in "abc"))
BEGIN = ev.LeasesGranted(())
NONE = "." * CHUNKS


def waiting_for_others() -> Swarm:
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, dict(PINS), Random(0), Limits(), begun=False)
    drawn.handle(OFFERED, 0.0)
    return drawn


def begun(*ready: str) -> tuple[Swarm, dict]:
    """A swarm that has begun at 1.0 with these sessions; and what it asked ahead."""
    drawn = waiting_for_others()
    for name in ready:
        drawn.handle(ev.PeerReady(node(name), bits(NONE)), 0.01)
    return drawn, waits(drawn.handle(BEGIN, 1.0))


def below(drawn: Swarm, name: str) -> list[int]:
    """The chunks of which this is the parent."""
    above = [drawn._ahead._trees.above(Chunk(chunk)) for chunk in range(CHUNKS)]
    return [chunk for chunk, line in enumerate(above) if line[:1] == (node(name),)]


def test_before_it_begins_peers_are_dialled_when_the_trees_are_drawn():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits(), begun=False)
    assert of(ev.Connect, drawn.handle(OFFERED, 0.0)) == []
    dialled = of(ev.Connect, drawn.handle(ev.DeadlinePassed(), SETTLE_S))
    assert {command.peer for command in dialled} == {node(name) for name in "abc"}


@pytest.mark.parametrize("event", [BEGIN, ev.TrackerLost()], ids=["begun", "tracker lost"])
def test_nothing_is_asked_ahead_before_it_begins_and_the_first_chunks_then(event):
    drawn = waiting_for_others()
    for name in "abc":
        commands = drawn.handle(ev.PeerReady(node(name), bits(NONE)), 0.01)
        assert of(ev.AskAhead, commands) == []
    assert of(ev.AskAhead, drawn.handle(ev.DeadlinePassed(), 0.5)) == []
    assert waits(drawn.handle(event, 1.0)).keys() == {*below(drawn, "b"), *below(drawn, "c")}


def test_who_is_offered_as_it_begins_is_dialled_at_once():
    drawn = waiting_for_others()
    dialled = of(ev.Connect, drawn.handle(BEGIN, 0.01))
    assert {command.peer for command in dialled} == {node(name) for name in "abc"}


def test_what_few_hold_is_not_pulled_while_the_parent_is_to_come():
    drawn, asked = begun("a", "c")
    chunk = below(drawn, "b")[0]
    assert chunk not in asked
    news = ev.PeerHas(node("c"), ((chunk, pin(chunk)),))
    assert of(ev.Ask, drawn.handle(news, 1.1)) == []
    late = waits(drawn.handle(ev.PeerReady(node("b"), bits(NONE)), 1.2))
    assert late[chunk][1] == node("b")
    called = drawn.handle(ev.DeadlinePassed(), 1.2 + FIRST_GRACE_S)
    assert of(ev.CancelAsk, called)[0].request == late[chunk][0], "and not waited for too long"


def test_it_is_pulled_at_once_by_who_did_not_begin_with_the_others():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, dict(PINS), Random(0), Limits())
    drawn.handle(OFFERED, 0.0)
    for name in "ac":
        drawn.handle(ev.PeerReady(node(name), bits(NONE)), 0.01)
    drawn.handle(ev.DeadlinePassed(), 1.0)
    chunk = below(drawn, "b")[0]
    news = ev.PeerHas(node("c"), ((chunk, pin(chunk)),))
    assert [ask.chunk for ask in of(ev.Ask, drawn.handle(news, 1.1))] == [chunk]


def test_what_the_parent_holds_already_is_asked_of_it():
    drawn, _ = begun("a", "c")
    chunk = below(drawn, "b")[0]
    row = "".join("#" if one == chunk else "." for one in range(CHUNKS))
    commands = drawn.handle(ev.PeerReady(node("b"), bits(row)), 1.2)
    assert of(ev.Ask, commands) == []
    assert waits(commands)[chunk][1] == node("b")


@pytest.mark.parametrize(
    ("now", "grace_s"), [(1.0 + FIRST_S / 2, FIRST_GRACE_S), (1.0 + FIRST_S, GRACE_LEAST_S)]
)
def test_for_some_seconds_what_is_announced_elsewhere_may_take_longer(now, grace_s):
    drawn, asked = begun("a", "b", "c")
    chunk = min(asked)
    drawn.handle(ev.PeerHas(node("a"), ((chunk, pin(chunk)),)), now)
    assert drawn._ahead.next_deadline() == now + grace_s


def test_little_is_asked_at_a_time_while_little_is_here():
    assert Limits().ahead_batch_first < Limits().ahead_batch
    drawn, _ = begun("a", "b", "c")
    assert drawn._ask_ahead_in == Limits().ahead_batch_first


def test_a_root_hears_what_is_coming_when_its_session_comes_after_the_lease():
    drawn, _ = begun("b")
    chunk = next(chunk for chunk in range(CHUNKS) if drawn._ahead.root(Chunk(chunk)) == node("a"))
    drawn.handle(ev.LeasesGranted((chunk,)), 1.1)
    ready = drawn.handle(ev.PeerReady(node("a"), bits(NONE)), 1.2)
    assert of(ev.SendComing, ready) == [ev.SendComing(node("a"), chunk)]
    drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), 1.3)
    again = drawn.handle(ev.PeerReady(node("a"), bits(NONE)), 1.4)
    assert of(ev.SendComing, again) == []


def asked_until(drawn: Swarm, wanted: set[int], now: float, end: float) -> set[int]:
    """Which of these chunks are under way, or were asked for, by the end."""
    found = set[int]()
    while not wanted <= found and (now := max(now, drawn.next_deadline())) < end:
        commands = drawn.handle(ev.DeadlinePassed(), now)
        found |= waits(commands).keys() | {ask.chunk for ask in of(ev.Ask, commands)}
        found |= {chunk for chunk in wanted if Chunk(chunk) in drawn._ahead}
        found |= {ask.chunk for ask, _ in drawn._asks.values()}
    return found & wanted


@pytest.mark.parametrize("announced", [False, True])
def test_what_failed_at_parents_is_asked_again_when_they_rest_no_more(announced):
    """Though little or nothing has come since."""
    drawn, asked = begun("a", "b", "c")
    for request, _ in asked.values():
        drawn.handle(ev.AskFailed(request, "the connection ended"), 1.1)
    if announced:
        drawn.handle(ev.PeerHas(node("a"), tuple((chunk, pin(chunk)) for chunk in asked)), 1.15)
    assert asked_until(drawn, set(asked), 1.2, 20.0) == asked.keys()
