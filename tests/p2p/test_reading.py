"""Readers' needs in the swarm: what goes before prefetch, whom it is asked of, what is dropped.

Goal: a need is asked for at once, of the peer that answers first, twice at most; a bounded cache is
never fuller than its limit, and never loses what is kept or under a reader. Repeat the walks with
the seed that they print.
"""

from random import Random

import pytest

from p2p import events as ev
from p2p.bitfield import Bitfield
from p2p.events import Source
from p2p.evictor import LEAST_CHUNKS, space_bytes
from p2p.ids import NodeId
from p2p.limits import Limits
from p2p.manifest import File, Manifest
from p2p.needs import CURSOR_S, PATIENCE_S, Needs, Part
from p2p.parts import MOST as MOST_PARTS
from p2p.picker import HELD, RELEASED
from p2p.reading import Holding
from p2p.swarm import Swarm
from p2p.urgent import HEDGE_FIRST_S, WANTS_AGAIN_S, WANTS_APART_S

BLOCK, CHUNK, COUNT = 4096, 4 * 4096, 32
ME = NodeId(b"\x10" * 16)
MANIFEST = Manifest(
    "m", "", (File("f", COUNT * CHUNK - 5000, "e"), File("g", 10, "e")), CHUNK, BLOCK
)
ALL = MANIFEST.chunk_count


def node(name: str) -> NodeId:
    return NodeId(name.encode().ljust(16, b"."))


def pin(chunk: int) -> bytes:
    return bytes([chunk]) * 16


def bits(*chunks: int) -> bytes:
    return bytes(Bitfield(ALL, chunks))


def swarm(peers: dict[str, range] | None = None, **holding: object) -> Swarm:
    """A swarm with the tracker found, and peers that hold ranges of chunks."""
    drawn = Swarm(
        MANIFEST, ME, Bitfield(ALL), {}, {c: pin(c) for c in range(ALL)}, Random(0), Limits(),
        Holding(**holding),
    )  # fmt: skip
    drawn.handle(ev.TrackerFound(), 0.0)
    for name, chunks in (peers or {}).items():
        drawn.handle(ev.PeerReady(node(name), bits(*chunks)), 0.0)
    return drawn


def of(kind: type, commands: list[ev.Command]) -> list:
    return [command for command in commands if isinstance(command, kind)]


def urgent(commands: list[ev.Command]) -> list[ev.Ask]:
    """Requests for blocks."""
    return [ask for ask in of(ev.Ask, commands) if ask.end]


# -- needs ----------------------------------------------------------------------------------------


def test_a_need_is_cut_at_chunks_and_widened_to_blocks():
    needs = Needs(MANIFEST)
    needs.need(1, 0, CHUNK + BLOCK + 1, 2 * CHUNK + 1, 1.0)
    assert needs.parts() == [Part(1, BLOCK, CHUNK), Part(2, 0, BLOCK)]
    needs.need(1, 0, COUNT * CHUNK - 5001, 10**9, 1.0)
    assert needs.parts() == [Part(COUNT - 1, CHUNK - 2 * BLOCK, CHUNK - 5000)], "the file's end"
    needs.need(1, 1, 0, 10, 1.0)
    assert needs.parts() == [Part(COUNT, 0, 10)], "of another file"
    for file, start, end in ((0, 5, 5), (2, 0, 1), (0, 10**9, 10**9 + 1)):
        needs.need(1, file, start, end, 1.0)
        assert not needs.blocked


def test_readers_of_one_chunk_share_a_part_and_the_first_to_wait_comes_first():
    needs = Needs(MANIFEST)
    needs.need(1, 0, 5 * CHUNK, 5 * CHUNK + 1, 1.0)
    needs.need(2, 0, 0, 1, 1.0)
    needs.need(3, 0, 5 * CHUNK + 3 * BLOCK, 6 * CHUNK, 1.0)
    assert needs.parts() == [Part(5, 0, CHUNK), Part(0, 0, BLOCK)]
    needs.need(1, 0, 9 * CHUNK, 9 * CHUNK + 1, 1.0)
    assert [part.chunk for part in needs.parts()] == [0, 5, 9], "a new need waits its turn"
    needs.satisfied(2, 1.0)
    needs.closed(3)
    assert [part.chunk for part in needs.parts()] == [9]


def test_windows_come_in_turn_and_plans_behind_them():
    needs = Needs(MANIFEST)
    needs.window(1, 0, 3 * CHUNK, 6 * CHUNK)
    needs.window(2, 0, 20 * CHUNK, 21 * CHUNK + 1)
    needs.will_need(3, [(0, 9 * CHUNK, 10 * CHUNK), (1, 0, 5)], Bitfield(ALL, [9]))
    assert needs.soon() == [3, 20, 4, 21, 5, 32], "9 is held"
    needs.window(1, 0, 0, 0)
    needs.came(32)
    assert needs.soon() == [20, 21]
    assert needs.cursors() == [3, 20]


def test_what_the_node_plans_for_itself_is_no_reader():
    needs = Needs(MANIFEST)
    needs.will_need(-1, [(0, 0, CHUNK)], Bitfield(ALL))
    assert len(needs) == 0
    needs.will_need(0, [(0, 0, CHUNK)], Bitfield(ALL))
    assert len(needs) == 1


def test_a_chunk_is_guarded_while_it_is_needed_and_half_a_second_after_it_was_read():
    needs = Needs(MANIFEST)
    needs.need(1, 0, 0, 1, 1.0)
    assert needs.guarded(100.0) == {0: None}
    needs.satisfied(1, 100.0)
    assert needs.guarded(100.0 + CURSOR_S - 0.001) == {0: None}
    assert needs.guarded(100.0 + CURSOR_S) == {}
    needs.read(1, 0, 5 * CHUNK, 7 * CHUNK, 200.0)
    assert needs.guarded(200.1) == {6: None}


# -- whom to ask ----------------------------------------------------------------------------------


def test_a_need_is_asked_for_by_blocks_though_every_pipeline_is_full():
    drawn = swarm({"a": range(ALL)})
    assert len(drawn._asks) == Limits().asks_per_peer
    commands = drawn.handle(ev.ReaderNeeds(1, 0, 30 * CHUNK + BLOCK, 30 * CHUNK + BLOCK + 9), 1.0)
    (ask,) = urgent(commands)
    assert (ask.chunk, ask.start, ask.end, ask.pin) == (30, BLOCK, 2 * BLOCK, pin(30))
    drawn.handle(ev.BlocksVerified(ask.request), 1.01)
    assert drawn._picker.state(30) != HELD, "its other blocks are still to come"
    assert urgent(drawn.handle(ev.DeadlinePassed(), 1.02)) == [], "not twice"
    drawn.handle(ev.ReaderSatisfied(1), 1.03)
    assert not drawn.reading.needs.blocked


def test_connections_for_needs_are_made_once_somebody_reads_and_not_for_plans():
    drawn = swarm({"a": range(ALL), "b": range(ALL)})
    assert of(ev.Prepare, drawn.handle(ev.ReaderPlans(-1, ((0, 0, CHUNK),)), 0.0)) == []
    made = of(ev.Prepare, drawn.handle(ev.ReaderNeeds(1, 0, 0, 1), 0.1))
    assert {command.peer for command in made} == {node("a"), node("b")}
    assert of(ev.Prepare, drawn.handle(ev.ReaderNeeds(1, 0, CHUNK, CHUNK + 1), 0.2)) == []
    (late,) = of(ev.Prepare, drawn.handle(ev.PeerReady(node("c"), bits()), 0.3))
    assert late.peer == node("c")


def test_a_need_that_gets_smaller_while_it_comes_is_not_asked_for_in_other_pieces(monkeypatch):
    monkeypatch.setattr("p2p.needs.PIECES", 2)
    monkeypatch.setattr("p2p.needs.PIECE_LEAST", BLOCK)
    drawn = swarm({"a": range(ALL), "b": range(ALL)})
    asked = urgent(drawn.handle(ev.ReaderNeeds(1, 0, 0, CHUNK), 0.0))
    assert [(ask.start, ask.end) for ask in asked] == [(0, 2 * BLOCK), (2 * BLOCK, CHUNK)]
    assert urgent(drawn.handle(ev.ReaderNeeds(1, 0, BLOCK, CHUNK), 0.01)) == []
    drawn.handle(ev.BlocksVerified(asked[0].request), 0.02)
    assert urgent(drawn.handle(ev.ReaderNeeds(1, 0, 2 * BLOCK - 1, CHUNK), 0.03)) == []
    (hedge,) = urgent(drawn.handle(ev.DeadlinePassed(), HEDGE_FIRST_S))
    assert (hedge.start, hedge.end) == (2 * BLOCK, CHUNK), "the same piece of the other peer"
    assert hedge.peer != asked[1].peer


def test_prefetch_begins_nothing_new_while_a_reader_waits_but_not_for_ever():
    drawn = swarm({"a": range(ALL)})
    (first, _) = [ask for ask, _ in drawn._asks.values()]
    (need,) = urgent(drawn.handle(ev.ReaderNeeds(1, 0, 30 * CHUNK, 30 * CHUNK + 1), 1.0))
    done = ev.ChunkVerified(first.chunk, Source.PEER, first.pin, first.request)
    assert of(ev.Ask, drawn.handle(done, 1.1)) == []
    later = of(ev.Ask, drawn.handle(ev.DeadlinePassed(), 1.3))
    assert [ask.end for ask in later] == [0], "the peer is slow: prefetch goes on"
    drawn.handle(ev.BlocksVerified(need.request), 1.4)


def test_who_reads_in_order_waits_for_the_request_that_is_under_way_but_not_long():
    drawn = swarm({"a": range(ALL)})
    (first, _) = [ask.chunk for ask, _ in drawn._asks.values()]
    drawn.handle(ev.ReaderWindow(1, 0, first * CHUNK, (first + 4) * CHUNK), 1.0)
    need = ev.ReaderNeeds(1, 0, first * CHUNK, first * CHUNK + 1)
    assert urgent(drawn.handle(need, 1.0)) == []
    assert not drawn.reading.urgent.holds_back(1.0)
    assert drawn.next_deadline() <= 1.0 + PATIENCE_S
    assert urgent(drawn.handle(ev.DeadlinePassed(), 1.0 + PATIENCE_S - 0.001)) == []
    (ask,) = urgent(drawn.handle(ev.DeadlinePassed(), 1.0 + PATIENCE_S))
    assert ask.chunk == first
    other = drawn.handle(
        ev.ReaderNeeds(2, 0, first * CHUNK + BLOCK, first * CHUNK + 2 * BLOCK), 2.0
    )
    assert urgent(other)[0].end == 2 * BLOCK, "one that jumped here does not wait"


def test_what_is_hashed_after_a_restart_is_hashed_first_where_a_reader_waits():
    suspects = {chunk: pin(chunk) for chunk in range(20)}
    drawn = Swarm(
        MANIFEST, ME, Bitfield(ALL), suspects, dict(suspects), Random(0), Limits(), Holding()
    )
    started = of(ev.Rehash, drawn.handle(ev.PeerReady(node("a"), bits(*range(ALL))), 0.0))
    assert [rehash.chunk for rehash in started] == list(range(Limits().rehashes))
    commands = drawn.handle(ev.ReaderNeeds(1, 0, 15 * CHUNK, 15 * CHUNK + 1), 0.1)
    assert of(ev.Rehash, commands) == [ev.Rehash(15, pin(15))]
    assert urgent(commands) == [], "it is here, as far as is known"
    commands = drawn.handle(ev.ChunkDamaged(15), 0.2)
    assert [ask.chunk for ask in urgent(commands)] == [15]


def test_the_peer_that_answered_fastest_is_asked_and_the_hedge_goes_elsewhere_and_the_loser_ends():
    drawn = swarm({"a": range(ALL), "b": range(ALL)})
    speeds = {node("a"): 0.001, node("b"): 0.02}
    now, asked = 1.0, {node("a"): 0, node("b"): 0}
    for turn in range(30):
        start = (turn % 10) * BLOCK + 10 * CHUNK
        (ask,) = urgent(drawn.handle(ev.ReaderNeeds(1, 0, start, start + 1), now))
        asked[ask.peer] += 1
        now += speeds[ask.peer]
        drawn.handle(ev.BlocksVerified(ask.request), now)
        drawn.handle(ev.ReaderSatisfied(1), now)
    assert asked[node("b")] == 1, "tried once"
    hedge_s = drawn.reading.urgent.hedge_s
    assert hedge_s == pytest.approx(0.02)
    (ask,) = urgent(drawn.handle(ev.ReaderNeeds(1, 0, 20 * CHUNK, 20 * CHUNK + 1), now))
    assert ask.peer == node("a")
    assert drawn.next_deadline() <= now + hedge_s
    assert urgent(drawn.handle(ev.DeadlinePassed(), now + hedge_s - 0.0001)) == []
    (hedge,) = urgent(drawn.handle(ev.DeadlinePassed(), now + hedge_s + 0.0001))
    assert (hedge.peer, hedge.chunk) == (node("b"), 20)
    drawn.handle(ev.PeerReady(node("c"), bits(*range(ALL))), now + 5)
    assert urgent(drawn.handle(ev.DeadlinePassed(), now + 9)) == [], "there is never a third"
    commands = drawn.handle(ev.BlocksVerified(hedge.request), now + 10)
    assert of(ev.CancelAsk, commands) == [ev.CancelAsk(ask.request, node("a"))]
    assert urgent(drawn.handle(ev.AskFailed(ask.request, "cancelled"), now + 10)) == []


def test_who_refuses_or_breaks_is_left_for_another_at_once_and_who_lies_is_reported():
    drawn = swarm({"a": range(ALL), "b": range(ALL), "c": range(ALL)})
    (first,) = urgent(drawn.handle(ev.ReaderNeeds(1, 0, 9 * CHUNK, 9 * CHUNK + 1), 1.0))
    (second,) = urgent(drawn.handle(ev.AskRefused(first.request, 0.5), 1.0))
    (third,) = urgent(drawn.handle(ev.AskFailed(second.request, "broken"), 1.0))
    assert len({first.peer, second.peer, third.peer}) == 3
    commands = drawn.handle(ev.ChunkCorrupt(third.request), 1.0)
    assert of(ev.ReportCorruption, commands) == [ev.ReportCorruption(third.peer, 9)]
    assert urgent(commands) == [], "all three are to be left alone for a while"
    (again,) = urgent(drawn.handle(ev.DeadlinePassed(), 1.2))
    assert again.peer == second.peer, "the one that broke, and not the one that lied"


def test_what_a_peer_that_went_was_asked_for_is_asked_of_another():
    drawn = swarm({"a": range(ALL), "b": range(ALL)})
    (ask,) = urgent(drawn.handle(ev.ReaderNeeds(1, 0, 9 * CHUNK, 9 * CHUNK + 1), 1.0))
    (again,) = urgent(drawn.handle(ev.PeerLost(ask.peer), 1.1))
    assert again.peer != ask.peer


def test_what_no_peer_has_is_wanted_of_the_tracker_once_and_its_blocks_are_fetched_first():
    drawn = swarm(prefetch=False)
    assert drawn.wanted_leases == 0
    need = ev.ReaderNeeds(1, 0, 9 * CHUNK + BLOCK, 9 * CHUNK + BLOCK + 1)
    assert of(ev.SendWants, drawn.handle(need, 1.0)) == [ev.SendWants((9,), ())]
    assert of(ev.SendWants, drawn.handle(ev.DeadlinePassed(), 1.5)) == []
    again = drawn.handle(ev.DeadlinePassed(), 1.0 + WANTS_AGAIN_S)
    assert of(ev.SendWants, again) == [ev.SendWants((9,), ())], "a tracker may have forgotten"
    commands = drawn.handle(ev.LeasesGranted((9,)), 3.1)
    assert of(ev.Fetch, commands) == [ev.Fetch(9, BLOCK, 2 * BLOCK)]
    assert of(ev.Hurry, commands) == []
    second = drawn.handle(ev.ReaderNeeds(2, 0, 9 * CHUNK + 3 * BLOCK, 10 * CHUNK), 3.2)
    assert of(ev.Hurry, second) == [ev.Hurry(9, BLOCK, CHUNK)]
    commands = drawn.handle(ev.ChunkVerified(9, Source.ORIGIN, pin(9)), 3.3)
    assert of(ev.ReportFetched, commands) == [ev.ReportFetched(((9, pin(9)),))]
    assert drawn.reading.needs.blocked, "the readers say themselves when they are through"


def parts(commands: list[ev.Command]) -> list[tuple[int, int, int]]:
    """Parts that are read from the origin without a lease."""
    return [(one.chunk, one.start, one.end) for one in of(ev.FetchPart, commands)]


def needing(drawn: Swarm, chunk: int, now: float, reader: int = 1) -> list[ev.Command]:
    """A reader is blocked on the second block of a chunk."""
    start = chunk * CHUNK + BLOCK
    return drawn.handle(ev.ReaderNeeds(reader, 0, start, start + 1), now)


def test_of_a_chunk_that_another_node_prefetches_just_the_needed_blocks_are_fetched_here():
    drawn = swarm({"a": range(0)})
    assert parts(needing(drawn, 9, 1.0)) == [], "the tracker may give a lease"
    commands = drawn.handle(ev.FetchedElsewhere((9,)), 1.01)
    assert parts(commands) == [(9, BLOCK, 2 * BLOCK)]
    assert of(ev.Fetch, commands) == []
    assert parts(drawn.handle(ev.FetchedElsewhere((9,)), 1.02)) == [], "it is under way"
    (part,) = of(ev.FetchPart, commands)
    assert parts(drawn.handle(ev.BlocksVerified(part.request), 1.04)) == []
    assert parts(drawn.handle(ev.DeadlinePassed(), 1.05)) == [], "the reader reads what came"
    drawn.handle(ev.ReaderSatisfied(1), 1.06)
    assert parts(needing(drawn, 9, 1.07)) == [], "a need of its own: the lease may be over"
    assert drawn.fetching == ()


def test_who_reads_in_order_reads_no_part_before_its_patience_ends():
    drawn = swarm()
    drawn.handle(ev.ReaderWindow(1, 0, 9 * CHUNK, 12 * CHUNK), 1.0)
    needing(drawn, 9, 1.0)
    assert parts(drawn.handle(ev.FetchedElsewhere((9,)), 1.01)) == []
    assert drawn.next_deadline() <= 1.0 + PATIENCE_S
    assert parts(drawn.handle(ev.DeadlinePassed(), 1.0 + PATIENCE_S - 0.001)) == []
    late = drawn.handle(ev.DeadlinePassed(), 1.0 + PATIENCE_S)
    assert parts(late) == [(9, BLOCK, 2 * BLOCK)]


def test_a_part_that_failed_is_fetched_again_later_unless_that_cannot_help():
    drawn = swarm()
    needing(drawn, 9, 1.0)
    (part,) = of(ev.FetchPart, drawn.handle(ev.FetchedElsewhere((9,)), 1.0))
    assert parts(drawn.handle(ev.PartFailed(part.request, "cut", False, 0.5), 1.1)) == []
    assert parts(drawn.handle(ev.DeadlinePassed(), 1.1 + 0.49)) == []
    assert drawn.next_deadline() == pytest.approx(1.1 + 0.5)
    (again,) = of(ev.FetchPart, drawn.handle(ev.DeadlinePassed(), 1.1 + 0.5))
    assert again.request != part.request
    drawn.handle(ev.PartFailed(part.request, "cut", True), 1.7)
    drawn.handle(ev.PartFailed(again.request, "HTTP 403", True), 1.7)
    assert parts(drawn.handle(ev.DeadlinePassed(), 9.0)) == []
    assert drawn.statistics().fetches == 0


def test_a_lease_that_comes_beside_a_part_counts_once_whichever_ends_first():
    for whole_first in (True, False):
        drawn = swarm()
        needing(drawn, 9, 1.0)
        (part,) = of(ev.FetchPart, drawn.handle(ev.FetchedElsewhere((9,)), 1.0))
        assert of(ev.Fetch, drawn.handle(ev.LeasesGranted((9,)), 1.1))
        told: list[ev.Command] = []
        ends = [ev.ChunkVerified(9, Source.ORIGIN, pin(9)), ev.BlocksVerified(part.request)]
        for end in ends if whole_first else reversed(ends):
            told += drawn.handle(end, 1.2)
        assert of(ev.ReportFetched, told) == [ev.ReportFetched(((9, pin(9)),))]
        assert 9 in drawn.held
        assert drawn.fetching == ()
        assert parts(drawn.handle(ev.DeadlinePassed(), 4.0)) == []


def test_a_part_that_makes_the_chunk_whole_is_the_chunk_and_its_lease_ends_well():
    drawn = swarm({"a": range(0)}, cache_bytes=(LEAST_CHUNKS + 4) * CHUNK + 8192)
    needing(drawn, 9, 1.0)
    (part,) = of(ev.FetchPart, drawn.handle(ev.FetchedElsewhere((9,)), 1.0))
    drawn.handle(ev.LeasesGranted((9,)), 1.1)
    commands = drawn.handle(ev.ChunkVerified(9, Source.ORIGIN, pin(9), part.request), 1.2)
    assert of(ev.ReportFetched, commands) == [ev.ReportFetched(((9, pin(9)),))]
    assert drawn.reading.room._transfers == {9: 1}, "the lease's own transfer goes on"
    drawn.handle(ev.FetchFailed(9, "cut", fatal=False), 1.3)
    assert drawn.reading.room._transfers == {}
    assert drawn.fetching == ()


def test_a_need_larger_than_all_parts_that_may_be_read_at_once_goes_on_as_they_come():
    drawn = swarm()
    for reader in range(MOST_PARTS + 2):
        needing(drawn, reader, 1.0, reader)
    commands = drawn.handle(ev.FetchedElsewhere(tuple(range(MOST_PARTS + 2))), 1.0)
    begun = of(ev.FetchPart, commands)
    assert len(begun) == MOST_PARTS
    more = drawn.handle(ev.BlocksVerified(begun[0].request), 1.1)
    assert [one.chunk for one in of(ev.FetchPart, more)] == [MOST_PARTS]


def test_a_holder_that_turns_up_ends_the_want():
    drawn = swarm({"a": range(0)}, prefetch=False)
    drawn.handle(ev.ReaderNeeds(1, 0, 9 * CHUNK, 9 * CHUNK + 1), 1.0)
    commands = drawn.handle(ev.PeerHas(node("a"), ((9, pin(9)),)), 1.5)
    assert [(ask.peer, ask.chunk) for ask in urgent(commands)] == [(node("a"), 9)]
    assert of(ev.SendWants, commands) == [ev.SendWants((), ())]


def test_a_holder_that_has_lost_its_chunk_makes_no_tight_circle_with_the_tracker():
    drawn = swarm({"a": range(ALL)}, prefetch=False)
    (ask,) = urgent(drawn.handle(ev.ReaderNeeds(1, 0, 9 * CHUNK, 9 * CHUNK + 1), 1.0))
    assert of(ev.SendWants, drawn.handle(ev.AskRefused(ask.request, None), 1.1))
    (again,) = urgent(drawn.handle(ev.PeerHas(node("a"), ((9, pin(9)),)), 1.2))
    assert of(ev.SendWants, drawn.handle(ev.AskRefused(again.request, None), 1.201)) == []
    assert drawn.next_deadline() <= 1.2 + WANTS_APART_S
    later = drawn.handle(ev.DeadlinePassed(), 1.2 + WANTS_APART_S)
    assert of(ev.SendWants, later) == [ev.SendWants((9,), ())]


def test_without_a_tracker_a_need_is_read_from_the_origin_by_whoever_has_it():
    drawn = swarm(prefetch=False)
    drawn.handle(ev.TrackerLost(), 1.0)
    drawn.handle(ev.ReaderNeeds(1, 0, 9 * CHUNK, 9 * CHUNK + 1), 1.1)
    commands = drawn.handle(ev.DeadlinePassed(), 1.0 + Limits().lease_grace_s)
    assert of(ev.Fetch, commands) == [ev.Fetch(9, 0, BLOCK)]


def test_with_prefetch_none_nothing_comes_but_what_is_read_or_will_be():
    drawn = swarm({"a": range(ALL)}, prefetch=False)
    assert drawn._asks == {}
    commands = drawn.handle(ev.ReaderWindow(1, 0, 4 * CHUNK, 6 * CHUNK), 1.0)
    assert [(ask.chunk, ask.end) for ask in of(ev.Ask, commands)] == [(4, 0), (5, 0)]
    drawn.handle(ev.ReaderPlans(1, ((0, 9 * CHUNK, 10 * CHUNK),)), 1.0)
    for ask, _ in list(drawn._asks.values()):
        drawn.handle(ev.ChunkVerified(ask.chunk, Source.PEER, ask.pin, ask.request), 1.1)
    assert [ask.chunk for ask, _ in drawn._asks.values()] == [9]


def test_prefetch_goes_on_from_where_readers_are():
    drawn = swarm({"a": range(0)})
    drawn.handle(ev.ReaderRead(1, 0, 20 * CHUNK, 20 * CHUNK + 1), 1.0)
    drawn._limits = Limits(asks_total=1)
    drawn.handle(ev.PeerHas(node("a"), tuple((c, pin(c)) for c in (2, 21))), 1.0)
    window = drawn.reading.wanted(drawn._picker.window())
    assert window[:3] == [20, 22, 23] or window[:3] == [20, 21, 22], window


# -- a bounded cache ------------------------------------------------------------------------------

LIMIT = (LEAST_CHUNKS + 4) * CHUNK + 4096 * 2


def bounded(**peers: range) -> Swarm:
    return swarm(peers, prefetch=False, cache_bytes=LIMIT)


def bring(drawn: Swarm, chunk: int, now: float) -> list[ev.Command]:
    """A reader reads a chunk that peers hold: asked for, verified, read, let go."""
    commands = drawn.handle(ev.ReaderNeeds(1, 0, chunk * CHUNK, (chunk + 1) * CHUNK), now)
    commands += settle(drawn, commands, now)
    drawn.handle(ev.ReaderRead(1, 0, chunk * CHUNK, (chunk + 1) * CHUNK), now)
    drawn.handle(ev.ReaderSatisfied(1), now)
    return commands


def settle(drawn: Swarm, commands: list[ev.Command], now: float) -> list[ev.Command]:
    """Answer everything until nothing is under way; returns what else was commanded."""
    said, queue = list[ev.Command](), list(commands)
    while queue:
        match queue.pop(0):
            case ev.Ask(request, _, chunk, known):
                done: ev.Event = ev.ChunkVerified(chunk, Source.PEER, known, request)
            case ev.Fetch(chunk):
                done = ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk))
            case ev.SendWants(needed, soon) if needed or soon:
                done = ev.LeasesGranted((*needed, *soon))
            case ev.Drop(chunk):
                done = ev.ChunkDropped(chunk)
            case _:
                continue
        more = drawn.handle(done, now)
        said += more
        queue += more
    return said


def test_what_was_read_longest_ago_goes_and_peers_and_tracker_hear_of_it():
    drawn = bounded(a=range(ALL))
    for chunk in range(8):
        assert of(ev.Drop, bring(drawn, chunk, 10.0 * chunk)) == []
    commands = bring(drawn, 8, 100.0)
    assert of(ev.Drop, commands) == [ev.Drop(0)]
    assert of(ev.SendLost, commands) == [ev.SendLost((node("a"),), (0,))]
    assert of(ev.ReportLost, commands) == [ev.ReportLost((0,))]
    assert [chunk for chunk in range(ALL) if chunk in drawn.held] == list(range(1, 9))
    bring(drawn, 0, 200.0)
    assert drawn.reading.room.again_bytes == CHUNK
    assert drawn.reading.room.evicted_chunks == 2


def test_the_last_known_copy_goes_last():
    drawn = bounded(a=range(3, ALL))
    for chunk in range(8):
        bring(drawn, chunk, 10.0 * chunk)
    assert of(ev.Drop, bring(drawn, 8, 100.0)) == [ev.Drop(3)], "0 to 2 are here alone"
    for chunk in range(9, 16):
        bring(drawn, chunk, 110.0 + chunk)
    assert all(chunk in drawn.held for chunk in (0, 1, 2))


def test_kept_chunks_and_those_under_readers_stay_and_the_need_waits():
    drawn = bounded(a=range(ALL))
    assert "kept" in drawn.reading.room.keep(range(5)), "that would leave no room to read"
    assert drawn.reading.room.keep(range(4)) == ""
    for chunk in range(8):
        bring(drawn, chunk, 10.0 * chunk)
    for reader, chunk in enumerate((4, 5, 6, 7), 10):
        drawn.handle(ev.ReaderNeeds(reader, 0, chunk * CHUNK, chunk * CHUNK + 1), 100.0)
    commands = drawn.handle(ev.ReaderNeeds(20, 0, 20 * CHUNK, 20 * CHUNK + 1), 100.0)
    assert of(ev.Drop, commands) == of(ev.Ask, commands) == []
    drawn.handle(ev.ReaderSatisfied(12), 101.0)
    assert of(ev.Drop, drawn.handle(ev.DeadlinePassed(), 101.1)) == [], "it has just read there"
    commands = drawn.handle(ev.DeadlinePassed(), 101.0 + CURSOR_S)
    assert of(ev.Drop, commands) == [ev.Drop(6)]
    assert of(ev.Ask, commands) == [], "not before its space is free"
    assert urgent(drawn.handle(ev.ChunkDropped(6), 101.6))[0].chunk == 20


def test_what_expired_goes_if_another_node_has_it():
    drawn = swarm({"a": range(1, ALL)}, prefetch=False, cache_bytes=LIMIT, expire_s=5.0)
    for chunk in (0, 1, 2):
        bring(drawn, chunk, float(chunk))
    drawn.handle(ev.ReaderClosed(1), 3.0)
    assert of(ev.Drop, drawn.handle(ev.DeadlinePassed(), 5.9)) == []
    dropped = of(ev.Drop, drawn.handle(ev.DeadlinePassed(), 7.5))
    assert dropped == [ev.Drop(1), ev.Drop(2)], "0 is the last known copy"


def test_prefetch_fills_a_cache_but_for_two_chunks_and_brings_nothing_back():
    drawn = swarm({"a": range(ALL)}, cache_bytes=LIMIT)
    settle(drawn, [ask for ask, _ in drawn._asks.values()], 1.0)
    assert sorted(drawn.held) == [0, 1, 2, 3, 4, 5, 32], "the most wanted, the heads of files too"
    assert drawn.wanted_leases == 0
    for chunk in range(8, 16):
        bring(drawn, chunk, 10.0 * chunk)
    settle(drawn, drawn.handle(ev.ReaderClosed(1), 300.0), 300.0)
    gone = [chunk for chunk in range(8, 16) if chunk not in drawn.held]
    assert gone
    assert all(chunk in drawn.held for chunk in range(6)), "what was not read yet"
    assert all(drawn._picker.state(chunk) == RELEASED for chunk in gone)


def test_a_plan_that_is_larger_than_the_cache_does_not_push_itself_out_and_a_window_may():
    drawn = bounded(a=range(ALL))
    plan = drawn.handle(ev.ReaderPlans(1, ((0, 0, 20 * CHUNK),)), 1.0)
    said = plan + settle(drawn, plan, 1.0)
    for now in range(2, 9):
        said += settle(drawn, drawn.handle(ev.DeadlinePassed(), float(now)), float(now))
    assert sorted(drawn.held) == list(range(LEAST_CHUNKS + 4))
    assert of(ev.Drop, said) == []
    settle(drawn, drawn.handle(ev.ReaderRead(1, 0, 0, 2 * CHUNK), 10.0), 10.0)
    settle(drawn, drawn.handle(ev.DeadlinePassed(), 20.0), 20.0)
    assert sorted(drawn.held) == list(range(2, LEAST_CHUNKS + 6)), "what was read made room"
    settle(drawn, drawn.handle(ev.ReaderWindow(2, 0, 25 * CHUNK, 27 * CHUNK), 30.0), 30.0)
    settle(drawn, drawn.handle(ev.DeadlinePassed(), 30.2), 30.2)
    assert {25, 26} <= set(drawn.held)


def test_a_cache_that_was_larger_at_its_last_use_is_made_smaller_at_once():
    held = Bitfield(ALL, range(20))
    drawn = Swarm(
        MANIFEST, ME, held, {}, {c: pin(c) for c in range(ALL)}, Random(0), Limits(),
        Holding(cache_bytes=LIMIT),
    )  # fmt: skip
    settle(drawn, drawn.handle(ev.DeadlinePassed(), 1.0), 1.0)
    assert len(drawn.held) <= LEAST_CHUNKS + 4
    assert 0 in drawn.held, "the last in the model's order go first"


def test_a_limit_that_the_model_fits_into_drops_nothing():
    drawn = swarm({"a": range(ALL)}, cache_bytes=space_bytes(MANIFEST))
    settle(drawn, [ask for ask, _ in drawn._asks.values()], 1.0)
    assert drawn.held.complete
    assert not drawn.reading.on_demand


@pytest.mark.parametrize("seed", range(60))
def test_on_a_long_walk_the_cache_is_never_too_full_and_every_reader_gets_its_bytes(seed):
    """Answers come in any order, good and bad; readers come, read on and jump."""
    print(f"seed {seed}")
    rng = Random(seed)
    prefetch = rng.random() < 0.5
    drawn = swarm({"a": range(ALL), "b": range(10, ALL)}, prefetch=prefetch, cache_bytes=LIMIT)
    drawn.reading.room.keep(range(2))
    waiting: list[ev.Command] = [ask for ask, _ in drawn._asks.values()]
    on_disk: dict[int, None] = {}
    needs: dict[int, int] = {}
    served, now = 0, 1.0

    def feed(event: ev.Event) -> None:
        for command in drawn.handle(event, now):
            if isinstance(command, ev.Ask | ev.Fetch):
                on_disk[command.chunk] = None
                waiting.append(command)
            elif isinstance(command, ev.Drop):
                assert command.chunk not in needs.values(), "under a reader"
                assert command.chunk >= 2 or command.chunk not in drawn.reading.room.kept
                waiting.append(command)
        assert sum(drawn.reading.room._size(c) for c in on_disk) <= LIMIT, "too full"

    for ask in waiting:
        on_disk[ask.chunk] = None
    for _ in range(600):
        now += rng.expovariate(20.0)
        reader, chunk = rng.randrange(3), rng.randrange(COUNT)
        choice = rng.random()
        if choice < 0.3 and reader not in needs and len(needs) < 3:
            needs[reader] = chunk
            feed(ev.ReaderNeeds(reader, 0, chunk * CHUNK, chunk * CHUNK + 1))
        elif choice < 0.4:
            feed(ev.ReaderWindow(reader, 0, chunk * CHUNK, min(COUNT, chunk + 3) * CHUNK))
        elif waiting:
            done = waiting.pop(rng.randrange(len(waiting)))
            if isinstance(done, ev.Drop):
                del on_disk[done.chunk]
                feed(ev.ChunkDropped(done.chunk))
            elif isinstance(done, ev.Ask) and rng.random() < 0.3:
                feed(rng.choice([ev.AskRefused(done.request, 0.1), ev.AskFailed(done.request, "")]))
            elif isinstance(done, ev.Ask):
                feed(ev.ChunkVerified(done.chunk, Source.PEER, done.pin, done.request))
            elif isinstance(done, ev.Fetch):
                feed(ev.ChunkVerified(done.chunk, Source.ORIGIN, pin(done.chunk)))
        else:
            feed(ev.DeadlinePassed())
        for one, wanted in list(needs.items()):
            if wanted in drawn.held:
                del needs[one]
                served += 1
                feed(ev.ReaderRead(one, 0, wanted * CHUNK, (wanted + 1) * CHUNK))
                feed(ev.ReaderSatisfied(one))
    for _ in range(200):  # now all is good: whoever waits is served
        now += 0.3
        for done in [*waiting, None]:
            if done is None:
                feed(ev.DeadlinePassed())
                continue
            waiting.remove(done)
            if isinstance(done, ev.Drop):
                del on_disk[done.chunk]
                feed(ev.ChunkDropped(done.chunk))
            elif isinstance(done, ev.Ask):
                feed(ev.ChunkVerified(done.chunk, Source.PEER, done.pin, done.request))
        for one in [one for one, wanted in needs.items() if wanted in drawn.held]:
            del needs[one]
            feed(ev.ReaderSatisfied(one))
        if not needs:
            break
    assert not needs, (needs, drawn.reading.room, drawn.reading.urgent)
    assert served > 10
