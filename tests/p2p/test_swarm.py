"""The swarm's promises, from hand-drawn situations up to every order of events.

Goal: a chunk is never asked of two peers at once, never without a pin, never again of whoever sent
it wrong; and once one good seeder stays, everything completes.
"""

import copy
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2p import events as ev
from p2p.ahead import ENDING_CHUNKS, GRACE_CHUNKS, GRACE_LEAST_S, SETTLE_S, STUCK_S
from p2p.bitfield import Bitfield
from p2p.events import Source
from p2p.ids import Chunk, NodeId
from p2p.limits import Limits
from p2p.manifest import File, Manifest
from p2p.peerbook import COMING_S
from p2p.swarm import ENDING, Swarm

CHUNKS = 8
ME = NodeId(b"\x10" * 16)


def node(name: str) -> NodeId:
    """A node with a larger id than ours, so that we dial it."""
    return NodeId(name.encode().ljust(16, b"."))


def pin(chunk: int) -> bytes:
    return bytes([chunk]) * 16


MANIFEST = Manifest("m", "", (File("f", CHUNKS * 4096, "e"),), 4096, 4096)
PINS = {chunk: pin(chunk) for chunk in range(CHUNKS)}


def bits(row: str) -> bytes:
    return bytes(Bitfield(CHUNKS, [i for i, c in enumerate(row) if c == "#"]))


def swarm(held: str = "", **peers: str) -> Swarm:
    """A swarm with drawn peers: `#` is a chunk held. All pins are known."""
    mine = Bitfield(CHUNKS, [i for i, c in enumerate(held) if c == "#"])
    drawn = Swarm(MANIFEST, ME, mine, {}, dict(PINS), Random(0), Limits())
    for name, row in peers.items():
        drawn.handle(ev.PeerReady(node(name), bits(row)), 0.0)
    return drawn


def settled(held: str = "", **peers: str) -> tuple[Swarm, list[ev.Command]]:
    """The same a moment later: the trees are drawn. And what was commanded then."""
    drawn = swarm(held, **peers)
    return drawn, drawn.handle(ev.DeadlinePassed(), SETTLE_S)


def of(kind: type, commands: list[ev.Command]) -> list:
    return [command for command in commands if isinstance(command, kind)]


def test_the_rarest_chunk_is_asked_for_first():
    drawn = swarm()
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 0.0)
    drawn.handle(ev.PeerReady(node("b"), bits("........")), 0.0)
    drawn._limits = Limits(asks_total=1)
    commands = drawn.handle(ev.PeerHas(node("a"), ((0, pin(0)),)), 0.0)
    (first,) = of(ev.Ask, commands)
    drawn.handle(ev.PeerHas(node("b"), ((0, pin(0)), (1, pin(1)))), 0.0)
    drawn.handle(ev.PeerHas(node("a"), ((2, pin(2)),)), 0.0)
    drawn.handle(ev.PeerHas(node("b"), ((2, pin(2)),)), 0.0)
    verified = ev.ChunkVerified(first.chunk, Source.PEER, pin(first.chunk), first.request)
    (second,) = of(ev.Ask, drawn.handle(verified, 0.0))
    assert (second.chunk, second.peer) == (1, node("b")), "one holder against two of chunk 2"


def test_a_lease_is_fetched_reported_and_announced_to_its_root_at_once():
    """Of two nodes this one is the root of chunks 0, 3, 4 and 7, and a of the others."""
    drawn, _ = settled(a="........")
    assert drawn.wanted_leases == Limits().origin_fetches, "just in time, not all there are"
    assert of(ev.Fetch, drawn.handle(ev.LeasesGranted((5, 4)), 1.0)) == [ev.Fetch(5), ev.Fetch(4)]
    assert drawn.fetching == (5, 4)
    commands = drawn.handle(ev.ChunkVerified(5, Source.ORIGIN, pin(5)), 1.0)
    assert ev.ReportFetched(((5, pin(5)),)) in commands
    assert of(ev.SendHave, commands) == [ev.SendHave((node("a"),), ((5, pin(5)),))]
    assert drawn.fetching == (4,)
    commands = drawn.handle(ev.ChunkVerified(4, Source.ORIGIN, pin(4)), 1.0)
    assert of(ev.SendHave, commands) == [], "this node is the root"


def test_of_many_nodes_only_the_root_hears_of_a_fetched_chunk_at_once_unless_it_holds_it():
    drawn, _ = settled(a="........", b="........", c="........", d=".......#")
    drawn.handle(ev.LeasesGranted((2, 4)), 1.0)
    for chunk, root in ((2, "d"), (4, "c")):
        commands = drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), 1.0)
        told = ev.SendHave((node(root),), ((chunk, pin(chunk)),))
        assert of(ev.SendHave, commands) == [told]
    drawn.handle(ev.PeerHas(node("a"), ((3, pin(3)),)), 1.0)
    held = drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    assert of(ev.SendHave, held) == [], "the root announced it before"


def come(drawn: Swarm, now: float) -> list[ev.SendHave]:
    """The oldest request is answered well; what is told of it."""
    request, (ask, _) = next(iter(drawn._asks.items()))
    done = ev.ChunkVerified(ask.chunk, Source.PEER, pin(ask.chunk), request)
    return of(ev.SendHave, drawn.handle(done, now))


def test_a_chunk_from_a_peer_is_told_to_nobody_at_once_and_to_all_exactly_at_the_deadline():
    drawn = swarm(a="##......", b="........")
    drawn.handle(ev.DeadlinePassed(), SETTLE_S)
    assert [come(drawn, 1.0) for _ in range(2)] == [[], []]
    due = 1.0 + Limits().have_delay_s
    assert drawn.next_deadline() == due
    assert of(ev.SendHave, drawn.handle(ev.DeadlinePassed(), due - 0.001)) == []
    (have,) = of(ev.SendHave, drawn.handle(ev.DeadlinePassed(), due))
    assert have.peers == (node("a"), node("b"))
    assert sorted(have.pins) == [(0, pin(0)), (1, pin(1))]


def test_a_request_four_times_as_slow_as_others_is_asked_of_another_holder():
    drawn = swarm(a="###.....")
    (fast, _), (slow, (ask, _)) = drawn._asks.items()  # two of one peer at once
    drawn.handle(ev.ChunkVerified(drawn._asks[fast][0].chunk, Source.PEER, pin(0), fast), 1.0)
    assert drawn._late_s == 4.0
    third = next(request for request in drawn._asks if request not in (fast, slow))
    drawn.handle(ev.AskRefused(third, None), 1.0)
    drawn._late[slow] = 4.0
    assert of(ev.CancelAsk, drawn.handle(ev.DeadlinePassed(), 4.0)) == [], "nobody else holds it"
    assert drawn._late[slow] == 8.0, "looked at again"
    drawn.handle(ev.PeerReady(node("b"), bits("###.....")), 5.0)
    commands = drawn.handle(ev.DeadlinePassed(), 7.999)
    assert slow not in [cancel.request for cancel in of(ev.CancelAsk, commands)]
    commands = drawn.handle(ev.DeadlinePassed(), 8.0)
    assert of(ev.CancelAsk, commands) == [ev.CancelAsk(slow, node("a"))]
    assert [(a.chunk, a.peer) for a in of(ev.Ask, commands)] == [(ask.chunk, node("b"))]
    late = ev.ChunkVerified(ask.chunk, Source.PEER, pin(ask.chunk), slow)
    drawn.handle(late, 8.1)  # it came all the same: it counts, and changes nothing else
    assert ask.chunk in drawn.held


def test_a_peer_in_the_place_of_a_seeder_that_left_is_not_taken_for_it():
    drawn = swarm(held=".#######", a="########")
    drawn.handle(ev.PeerHas(node("a"), ((0, pin(0)),)), 0.0)  # as its bitfield had said
    drawn.handle(ev.PeerLost(node("a")), 0.0)
    assert of(ev.Ask, drawn.handle(ev.PeerReady(node("b"), bits("........")), 0.0)) == []


def test_a_full_batch_of_chunks_is_told_to_all_at_once():
    drawn = swarm(a="####....", b="........")
    for _ in range(Limits().have_batch - 1):
        assert come(drawn, 1.0) == []
    (have,) = come(drawn, 1.0)
    assert have.peers == (node("a"), node("b"))
    assert len(have.pins) == Limits().have_batch


def test_a_node_whose_chunks_nobody_takes_wants_no_more_leases():
    drawn = swarm(a="........")
    for chunk in range(CHUNKS):
        assert drawn.wanted_leases == Limits().origin_fetches, chunk
        drawn.handle(ev.LeasesGranted((chunk,)), 0.0)
        drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), 0.0)
    drawn._backlog.add(Chunk(CHUNKS))  # one more than may wait
    assert drawn.wanted_leases == 0
    drawn.handle(ev.PeerHas(node("a"), ((0, pin(0)),)), 0.0)
    assert drawn.wanted_leases == Limits().origin_fetches, "it went on"
    drawn._backlog.add(Chunk(CHUNKS + 1))
    assert drawn.wanted_leases == 0
    drawn.handle(ev.PeerLost(node("a")), 0.0)
    assert drawn.wanted_leases == Limits().origin_fetches, "nobody waits for it"


def test_a_busy_peer_is_left_alone_until_it_said():
    drawn, _ = settled(a="#.......")
    (request,) = drawn._asks
    commands = drawn.handle(ev.AskRefused(request, 1.0), 1.0)
    assert of(ev.Ask, commands) == []
    again = drawn.next_deadline()
    assert 1.5 <= again <= 2.5
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), again - 0.001)) == []
    assert len(of(ev.Ask, drawn.handle(ev.DeadlinePassed(), again))) == 1


def test_corrupt_bytes_are_reported_and_asked_of_another_peer_only():
    drawn = swarm(a="#.......")
    (request,) = drawn._asks
    commands = drawn.handle(ev.ChunkCorrupt(request), 0.0)
    assert ev.ReportCorruption(node("a"), 0) in commands
    assert of(ev.Ask, commands) == []
    (ask,) = of(ev.Ask, drawn.handle(ev.PeerReady(node("b"), bits("#.......")), 0.0))
    assert (ask.peer, ask.chunk) == (node("b"), 0)
    assert drawn.statistics().corrupt_chunks == 1


def test_two_strikes_are_a_quarantine_of_exactly_a_minute():
    drawn = swarm(a="########")
    for request in (1, 2):
        drawn.handle(ev.ChunkCorrupt(request), 5.0)
    assert drawn.statistics().quarantined == 1
    for request in list(drawn._asks):
        drawn.handle(ev.AskFailed(request, "closed"), 5.0)
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), 5.0 + 59.9)) == []
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), 5.0 + 60.0))


def test_a_chunk_without_a_pin_is_not_asked_for_but_its_pin_is():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits())
    commands = drawn.handle(ev.PeerReady(node("a"), bits("#.......")), 0.0)
    assert commands == [ev.AskPins(node("a"), (0,))]
    (ask,) = of(ev.Ask, drawn.handle(ev.PinsLearned(((0, pin(0)),), node("a")), 0.1))
    assert ask.pin == pin(0)


def test_a_pin_is_asked_of_one_holder_a_second_however_many_there_are():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits())
    asked = []
    for index, name in enumerate("abcd"):
        asked += of(ev.AskPins, drawn.handle(ev.PeerReady(node(name), bits("#.......")), index / 8))
    assert asked == [ev.AskPins(node("a"), (0,))]
    again = of(ev.AskPins, drawn.handle(ev.DeadlinePassed(), 1.0))
    assert [one.chunks for one in again] == [(0,)]


def test_the_first_pin_is_kept_and_only_the_tracker_overrules_it():
    drawn = swarm(held="#.......", a="........")
    other = b"\xee" * 16
    assert drawn.handle(ev.PeerHas(node("a"), ((0, other),)), 0.0) == [ev.AskPins(None, (0,))]
    assert drawn.pins[0] == pin(0)
    assert drawn.handle(ev.PinsLearned(((0, other),)), 0.0) == [ev.Rehash(0, other)]


def test_a_fetched_chunk_that_is_not_what_others_have_is_hashed_again_and_not_announced():
    drawn = swarm(a="........")
    drawn.handle(ev.LeasesGranted((3,)), 0.0)
    other = b"\xee" * 16
    commands = drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, other), SETTLE_S - 0.01)
    assert commands == [ev.Rehash(3, pin(3))]
    assert 3 not in drawn.held
    assert drawn.pins[3] == pin(3)


def test_a_damaged_chunk_is_dropped_told_and_wanted_again():
    drawn = swarm(held="########", a="########")
    assert drawn.handle(ev.CorruptionReported(node("a"), 4), 0.0) == [ev.Rehash(4, pin(4))]
    assert drawn.handle(ev.CorruptionReported(node("a"), 4), 0.5) == [], "once a second"
    commands = drawn.handle(ev.ChunkDamaged(4), 0.6)
    assert drawn.statistics().corrupt_chunks == 1
    assert ev.SendLost((node("a"),), (4,)) in commands
    (ask,) = of(ev.Ask, commands)
    assert ask.chunk == 4
    assert ev.Complete() in drawn.handle(ev.ChunkVerified(4, Source.PEER, pin(4), ask.request), 1.0)


def test_nothing_is_complete_until_every_suspect_was_hashed():
    suspects = {7: pin(7)}
    held = Bitfield(CHUNKS, range(7))
    drawn = Swarm(MANIFEST, ME, held, suspects, dict(PINS), Random(0), Limits())
    assert drawn.handle(ev.DeadlinePassed(), 0.0) == [ev.Rehash(7, pin(7))]
    assert not drawn.statistics().complete
    assert ev.Complete() in drawn.handle(ev.ChunkVerified(7, Source.DISK, pin(7)), 1.0)


def test_a_fatal_origin_error_returns_the_lease_at_once_and_others_are_tried_again():
    drawn = swarm()
    drawn.handle(ev.LeasesGranted((0, 1)), 0.0)
    fatal = drawn.handle(ev.FetchFailed(0, "404", fatal=True), 0.0)
    assert fatal == [ev.ReturnLease(0, "404", True, 0.0)]
    assert drawn.handle(ev.FetchFailed(1, "503", fatal=False, retry_after_s=3.0), 0.0) == []
    assert drawn.next_deadline() == 3.0
    assert drawn.handle(ev.DeadlinePassed(), 3.0) == [ev.Fetch(1)]


def test_without_space_nothing_is_asked_until_the_retry():
    drawn = swarm(a="########")
    first = next(iter(drawn._asks.values()))[0]
    assert of(ev.Ask, drawn.handle(ev.SpaceExhausted(first.chunk), 0.0)) == []
    assert drawn.statistics().waiting_for_space
    assert drawn.wanted_leases == 0
    retry_s = Limits().space_retry_s
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), retry_s - 0.01)) == []
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), retry_s))


def test_without_space_a_lease_goes_back_for_others_to_use():
    drawn = swarm()
    drawn.handle(ev.LeasesGranted((0, 1)), 0.0)
    drawn.handle(ev.FetchFailed(1, "503", fatal=False), 0.0)
    returned = of(ev.ReturnLease, drawn.handle(ev.SpaceExhausted(0), 0.0))
    assert [lease.chunk for lease in returned] == [0, 1], "the one that failed, and one that waits"
    assert not any(lease.fatal for lease in returned)
    assert drawn.fetching == ()


def test_of_a_pair_only_the_smaller_id_dials():
    drawn = swarm()
    smaller, larger = NodeId(b"\x01" * 16), NodeId(b"\x20" * 16)
    offered = ev.PeersOffered(((smaller, ("h:1",)), (larger, ("h:2",))))
    assert drawn.handle(offered, 0.0) == [ev.Connect(larger, ("h:2",))]
    drawn.handle(ev.PeerLost(larger), 1.0)
    commands = []
    while not commands:  # the trees settle meanwhile
        again = drawn.next_deadline()
        commands = drawn.handle(ev.DeadlinePassed(), again)
    assert 1.0 < again <= 1.2
    assert commands == [ev.Connect(larger, ("h:2",))]
    drawn.handle(ev.PeersWithdrawn((larger,)), 2.0)
    assert drawn.handle(ev.PeerLost(larger), 2.0) == []
    assert drawn.handle(ev.DeadlinePassed(), 99.0) == []


def test_without_a_tracker_each_chunk_is_fetched_by_exactly_one_of_the_live_nodes():
    grace_s = Limits().lease_grace_s
    names = [ME, node("a"), node("b")]
    owners: dict[int, list[NodeId]] = {chunk: [] for chunk in range(CHUNKS)}
    for me in names:
        drawn = Swarm(
            MANIFEST, me, Bitfield(CHUNKS), {}, {}, Random(1), Limits(origin_fetches=CHUNKS)
        )
        for other in names:
            if other != me:
                drawn.handle(ev.PeerReady(other, bits("")), 0.0)
        assert of(ev.Fetch, drawn.handle(ev.TrackerLost(), 10.0)) == []
        assert of(ev.Fetch, drawn.handle(ev.DeadlinePassed(), 10.0 + grace_s - 0.01)) == []
        for fetch in of(ev.Fetch, drawn.handle(ev.DeadlinePassed(), 10.0 + grace_s)):
            owners[fetch.chunk].append(me)
    assert all(len(nodes) == 1 for nodes in owners.values()), owners


def test_without_a_tracker_what_a_peer_holds_or_is_fetching_is_left_to_it():
    limits = Limits(origin_fetches=CHUNKS)

    def fetched(row: str, fetching: tuple[int, ...]) -> set[int]:
        drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(1), limits)
        drawn.handle(ev.PeerReady(node("c"), bits(row)), 0.0)
        drawn.handle(ev.TrackerLost(), 0.0)
        drawn.handle(ev.PeerFetches(node("c"), fetching), 0.0)
        commands = drawn.handle(ev.DeadlinePassed(), limits.lease_grace_s)
        return {fetch.chunk for fetch in of(ev.Fetch, commands)}

    mine = sorted(fetched("", ()))
    held, under_way, *rest = mine
    row = "".join("#" if chunk == held else "." for chunk in range(CHUNKS))
    assert fetched(row, (under_way,)) == set(rest)


# -- requests that wait ---------------------------------------------------------------------------


def waits(commands: list[ev.Command]) -> dict[int, tuple[int, NodeId]]:
    """Of commands: which chunks were asked ahead, by which request, of whom."""
    return {
        chunk: (request, command.peer)
        for command in of(ev.AskAhead, commands)
        for request, chunk, _ in command.asks
    }


def test_what_nobody_holds_is_asked_of_the_parent_in_its_tree_once_the_trees_are_drawn():
    """Of three nodes the roots are, in turn, this one, a, b; a, b, this one; b, this one: and both
    others are a root's children."""
    drawn = swarm(a="....#...", b="........")
    before = drawn.handle(ev.DeadlinePassed(), SETTLE_S - 0.001)
    assert of(ev.AskAhead, before) == []
    assert drawn.next_deadline() == SETTLE_S
    found = waits(drawn.handle(ev.DeadlinePassed(), SETTLE_S))
    a, b = node("a"), node("b")
    assert {chunk: peer for chunk, (_, peer) in found.items()} == {1: a, 2: b, 3: a, 6: b}
    requests = [request for request, _ in found.values()]
    assert len(set(requests) | set(drawn._asks)) == len(requests) + 1, "numbers of their own"
    assert waits(drawn.handle(ev.DeadlinePassed(), 1.0)) == {}, "once"


def test_the_trees_are_drawn_once_all_who_were_offered_are_there_and_no_more_are_offered():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits())
    everyone = tuple((node(name), ("h:1",)) for name in "ab")
    drawn.handle(ev.PeersOffered(everyone), 1.0)
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 1.5)
    assert of(ev.AskAhead, drawn.handle(ev.PeerReady(node("b"), bits("........")), 1.51)) != []
    drawn.handle(ev.PeersOffered(((node("c"), ("h:1",)),)), 2.0)
    ready = drawn.handle(ev.PeerReady(node("c"), bits("........")), 2.01)
    assert of(ev.AskAhead, ready) == [], "another may be offered with it"
    assert drawn.next_deadline() == 2.0 + SETTLE_S
    assert waits(drawn.handle(ev.DeadlinePassed(), 2.0 + SETTLE_S)) != {}


def test_the_trees_count_on_who_was_offered_and_a_parent_that_is_to_come_is_waited_for():
    """Of four nodes b is this one's parent in the trees of a and b, and c in its own."""
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits())
    drawn.handle(ev.PeersOffered(tuple((node(name), ("h:1",)) for name in "abc")), 1.0)
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 1.01)
    drawn.handle(ev.PeerReady(node("c"), bits("........")), 1.02)
    first = waits(drawn.handle(ev.DeadlinePassed(), 1.02 + SETTLE_S))
    assert {peer for _, peer in first.values()} == {node("c")}
    assert drawn.next_deadline() == 1.0 + COMING_S
    again = copy.deepcopy(drawn)
    late = waits(drawn.handle(ev.PeerReady(node("b"), bits("........")), 1.5))
    assert {peer for _, peer in late.values()} == {node("b")}
    assert not set(late) & set(first)
    instead = waits(again.handle(ev.DeadlinePassed(), 1.0 + COMING_S))
    assert {peer for _, peer in instead.values()} == {node("a")}, "it does not come: of the root"
    assert set(instead) < set(late)


def test_a_waiting_request_carries_the_pin_that_is_known_or_none():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {1: pin(1)}, Random(0), Limits())
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 0.0)
    (ahead,) = of(ev.AskAhead, drawn.handle(ev.DeadlinePassed(), SETTLE_S))
    assert {chunk: sent for _, chunk, sent in ahead.asks} == {1: pin(1), 2: b"", 5: b"", 6: b""}
    request = next(request for request, chunk, _ in ahead.asks if chunk == 2)
    drawn.handle(ev.ChunkVerified(2, Source.PEER, b"\x02" * 16, request), 1.0)
    assert 2 in drawn.held
    assert drawn.pins[2] == pin(2), "its digests made it"


def test_a_chunk_that_came_with_another_pin_than_was_learned_meanwhile_is_hashed_again():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits())
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 0.0)
    found = waits(drawn.handle(ev.DeadlinePassed(), SETTLE_S))
    drawn.handle(ev.PinsLearned(((2, pin(2)),)), 1.0)
    lie = ev.ChunkVerified(2, Source.PEER, b"\xee" * 16, found[2][0])
    assert of(ev.Rehash, drawn.handle(lie, 1.0)) == [ev.Rehash(2, pin(2))]
    assert 2 not in drawn.held
    drawn.handle(ev.ChunkDamaged(2), 1.1)
    assert 2 not in drawn.held


def test_a_lease_takes_a_chunk_away_from_the_peer_where_it_waits():
    drawn, commands = settled(a="........")
    request, peer = waits(commands)[2]
    commands = drawn.handle(ev.LeasesGranted((2,)), 1.0)
    assert commands == [ev.CancelAsk(request, peer), ev.Fetch(2), ev.SendComing(peer, 2)]
    assert drawn.handle(ev.AskFailed(request, "cancelled"), 1.1) == [], "it is not ours any more"
    assert drawn.fetching == (2,)
    drawn.handle(ev.FetchFailed(2, "404", fatal=True), 1.2)
    drawn._ask_ahead_in = 0
    assert waits(drawn.handle(ev.DeadlinePassed(), 1.3))[2][1] == peer, "it may wait anew"


@pytest.mark.parametrize("source", [Source.ORIGIN, Source.PEER, Source.DISK])
def test_a_chunk_that_came_from_elsewhere_waits_no_more(source):
    drawn, commands = settled(a="........")
    request, peer = waits(commands)[2]
    elsewhere = ev.ChunkVerified(2, source, pin(2), 0)
    assert of(ev.CancelAsk, drawn.handle(elsewhere, 1.0)) == [ev.CancelAsk(request, peer)]
    assert drawn.handle(ev.AskFailed(request, "cancelled"), 1.1) == []
    assert 2 in drawn.held


def test_a_chunk_that_came_as_it_was_asked_for_needs_no_cancel():
    drawn, commands = settled(a="........")
    request, _ = waits(commands)[2]
    commands = drawn.handle(ev.ChunkVerified(2, Source.PEER, pin(2), request), 1.0)
    assert of(ev.CancelAsk, commands) == []
    assert 2 in drawn.held


def test_what_waited_at_a_peer_that_is_lost_is_asked_of_the_next_one_above():
    """Of six nodes, c is this node's parent in the tree of chunk 1, and a is c's, the root."""
    names = dict.fromkeys("abcde", "........")
    drawn, commands = settled(**names)
    assert waits(commands)[1][1] == node("c")
    lost = [request for request, peer in waits(commands).values() if peer == node("c")]
    commands = drawn.handle(ev.PeerLost(node("c")), 1.0)
    assert of(ev.CancelAsk, commands) == [], "there is nobody to tell"
    assert waits(commands)[1][1] == node("a"), "at once, before the trees are drawn anew"
    assert len(waits(commands)) == len(lost)
    late = ev.AskFailed(lost[0], "closed")
    assert drawn.handle(late, 1.0) == []


def test_a_waiting_request_that_fails_is_asked_of_the_next_one_above_and_its_peer_left_alone():
    drawn, commands = settled(**dict.fromkeys("abcde", "........"))
    request, peer = waits(commands)[1]
    assert peer == node("c")
    commands = drawn.handle(ev.AskFailed(request, "closed"), 1.0)
    assert {chunk: peer for chunk, (_, peer) in waits(commands).items()} == {1: node("a")}
    assert not drawn._able(node("c"))
    assert 1.0 < drawn._book[node("c")].waits_until <= 1.0 + Limits().failure_first_s


@pytest.mark.parametrize("retry_after_s", [0.5, None], ids=["busy", "not_have"])
def test_a_request_that_may_not_wait_goes_to_the_next_one_above_and_its_peer_is_asked_for_others(
    retry_after_s,
):
    """Of six nodes chunks 1 and 6 have the same tree: from a over c to this one."""
    drawn, commands = settled(**dict.fromkeys("abcde", "........"))
    a, c, found = node("a"), node("c"), waits(commands)
    assert found[1][1] == found[6][1] == c
    commands = drawn.handle(ev.AskRefused(found[1][0], retry_after_s), 1.0)
    assert {chunk: peer for chunk, (_, peer) in waits(commands).items()} == {1: a}
    assert of(ev.CancelAsk, commands) == [], "what else waits there stays"
    (request, _) = waits(commands)[1]
    assert waits(drawn.handle(ev.AskRefused(request, retry_after_s), 1.0)) == {}, "nobody is left"
    drawn.handle(ev.LeasesGranted((6,)), 1.0)
    drawn.handle(ev.FetchFailed(6, "404", fatal=True), 1.0)
    drawn._ask_ahead_in = 0
    commands = drawn.handle(ev.DeadlinePassed(), 1.0)
    assert {chunk: peer for chunk, (_, peer) in waits(commands).items()} == {6: c}, "asked anew"
    commands = drawn.handle(ev.PeerHas(c, ((1, pin(1)),)), 1.0)
    assert [(ask.chunk, ask.peer) for ask in of(ev.Ask, commands)] == [(1, c)], "it has it now"


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "at once"])
def test_what_a_parent_sent_wrong_is_asked_ahead_of_the_next_one_above_and_never_of_it(ahead):
    rows = dict.fromkeys("abcde", "........")
    drawn, commands = settled(**rows if ahead else {**rows, "c": ".#......"})
    if ahead:
        request, peer = waits(commands)[1]
        assert peer == node("c")
    else:
        (request,) = drawn._asks
    commands = drawn.handle(ev.ChunkCorrupt(request), 1.0)
    assert waits(commands)[1][1] == node("a")
    commands = drawn.handle(ev.PeerLost(node("a")), 1.1)
    assert 1 not in waits(commands), "nobody else is above"
    drawn.handle(ev.PeerHas(node("c"), ((1, pin(1)),)), 1.2)
    assert [ask.peer for ask, _ in drawn._asks.values()] == [node("c")], "announced anew"


def test_wrong_bytes_of_a_waiting_request_are_reported_and_count_as_a_strike():
    drawn, commands = settled(a="........")
    found = waits(commands)
    for chunk, quarantined in ((1, 0), (2, 1)):
        commands = drawn.handle(ev.ChunkCorrupt(found[chunk][0]), 1.0)
        assert ev.ReportCorruption(node("a"), chunk) in commands
        assert drawn.statistics().quarantined == quarantined
    assert drawn.handle(ev.ChunkCorrupt(found[2][0]), 1.0) == [], "once"


def test_what_is_announced_elsewhere_is_called_back_after_the_grace_and_then_pulled():
    drawn, commands = settled(a="........", b="........")
    request, peer = waits(commands)[1]
    assert peer == node("a")
    quiet = drawn.handle(ev.PeerHas(node("b"), ((1, pin(1)),)), 1.0)
    assert of(ev.Ask, quiet) == [], "it is on its way"
    due = 1.0 + GRACE_LEAST_S
    assert drawn.next_deadline() == due
    assert drawn.handle(ev.DeadlinePassed(), due - 0.001) == []
    assert drawn.handle(ev.DeadlinePassed(), due) == [ev.CancelAsk(request, peer, idle=True)]
    commands = drawn.handle(ev.AskFailed(request, "cancelled"), due + 0.01)
    assert [(ask.chunk, ask.peer) for ask in of(ev.Ask, commands)] == [(1, node("b"))]
    assert of(ev.CancelAsk, commands) == []
    assert drawn._able(node("a")), "that it was called back is not the peer's fault"


def test_what_a_new_peer_holds_is_pulled_though_it_waits_at_a_parent_that_never_gets_it():
    drawn, commands = settled(a="........")
    request, peer = waits(commands)[1]
    commands = drawn.handle(ev.PeerReady(node("b"), bits(".#......")), 1.0)
    assert of(ev.Ask, commands) == [], "it may be on its way"
    due = 1.0 + GRACE_LEAST_S
    late = ev.CancelAsk(request, peer, idle=True)
    assert late in drawn.handle(ev.DeadlinePassed(), due)
    commands = drawn.handle(ev.DeadlinePassed(), due + STUCK_S)
    assert ev.CancelAsk(request, peer) in commands
    assert [(ask.chunk, ask.peer) for ask in of(ev.Ask, commands)] == [(1, node("b"))]


def test_what_has_begun_to_come_when_it_is_called_back_is_pulled_if_it_is_stuck_and_not_before():
    drawn, commands = settled(a="........", b="........")
    request, peer = waits(commands)[1]
    drawn.handle(ev.PeerHas(node("b"), ((1, pin(1)),)), 1.0)
    due = 1.0 + GRACE_LEAST_S
    drawn.handle(ev.DeadlinePassed(), due)
    stuck = due + STUCK_S
    assert drawn.next_deadline() == stuck
    assert drawn.handle(ev.DeadlinePassed(), stuck - 0.001) == []
    commands = drawn.handle(ev.DeadlinePassed(), stuck)
    assert commands[0] == ev.CancelAsk(request, peer)
    assert [(ask.chunk, ask.peer) for ask in of(ev.Ask, commands)] == [(1, node("b"))]
    assert drawn.handle(ev.AskFailed(request, "cancelled"), stuck + 0.1) == []


def test_what_came_all_the_same_after_it_was_called_back_counts():
    drawn, commands = settled(a="........", b="........")
    request, _ = waits(commands)[1]
    drawn.handle(ev.PeerHas(node("b"), ((1, pin(1)),)), 1.0)
    due = drawn.next_deadline()
    drawn.handle(ev.DeadlinePassed(), due)
    commands = drawn.handle(ev.ChunkVerified(1, Source.PEER, pin(1), request), due + 0.1)
    assert of(ev.Ask, commands) == of(ev.CancelAsk, commands) == []
    assert 1 in drawn.held


def test_without_space_nothing_waits_and_all_of_it_waits_again_at_the_retry():
    drawn, commands = settled(a="........")
    found = waits(commands)
    commands = drawn.handle(ev.SpaceExhausted(1), 1.0)
    cancelled = {cancel.request for cancel in of(ev.CancelAsk, commands)}
    assert cancelled == {request for request, _ in found.values()}
    assert waits(commands) == {}
    again = drawn.handle(ev.DeadlinePassed(), 1.0 + Limits().space_retry_s)
    assert waits(again).keys() == found.keys()


def test_the_next_chunks_are_asked_ahead_when_a_batch_has_come_and_no_further_than_the_window():
    drawn = Swarm(
        MANIFEST, ME, Bitfield(CHUNKS), {}, dict(PINS), Random(0),
        Limits(ahead=4, ahead_batch=2),
    )  # fmt: skip
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 0.0)
    first = waits(drawn.handle(ev.DeadlinePassed(), SETTLE_S))
    assert first.keys() == {1, 2}
    drawn.handle(ev.LeasesGranted((0, 3)), 1.0)
    assert waits(drawn.handle(ev.ChunkVerified(0, Source.ORIGIN, pin(0)), 1.0)) == {}
    commands = drawn.handle(ev.ChunkVerified(1, Source.PEER, pin(1), first[1][0]), 1.0)
    assert waits(commands).keys() == {5}, "two have come: the window is 2 to 5"


def test_few_chunks_are_asked_ahead_at_first_and_more_with_each_that_is_here():
    for held, asked in (("........", {1}), ("#.......", {1, 2, 5, 6})):
        drawn = swarm(held, a="........")
        drawn._limits = Limits(ahead_first=2)
        assert waits(drawn.handle(ev.DeadlinePassed(), SETTLE_S)).keys() == asked


def test_a_young_swarm_asks_its_new_parents_and_an_old_one_leaves_requests_where_they_are():
    for held, moved in (("........", True), ("#.#.....", False)):
        drawn = swarm(held, a="........")
        drawn._limits = Limits(window=2)
        found = waits(drawn.handle(ev.DeadlinePassed(), SETTLE_S))
        assert found[1][1] == found[5][1] == found[6][1] == node("a")
        drawn.handle(ev.PeerReady(node("b"), bits("........")), 1.0)
        commands = drawn.handle(ev.DeadlinePassed(), 1.0 + SETTLE_S)
        cancelled = {cancel.request for cancel in of(ev.CancelAsk, commands)}
        again = waits(commands)
        if moved:  # of three nodes this one is the root of chunk 5, and b of chunk 6
            assert {found[5][0], found[6][0]} <= cancelled
            assert 5 not in again
            assert again[6][1] == node("b")
        else:
            assert cancelled == set()
            assert not again.keys() & found.keys()
        assert found[1][0] not in cancelled, "its parent is still a"


# -- the end --------------------------------------------------------------------------------------


def three(b: str = "........") -> tuple[Swarm, dict[int, tuple[int, NodeId]], float]:
    """Of three nodes, a is the root of chunks 1 and 3, which wait there, and this one of 0, 5 and
    7. Of what else is missing 0 and 7 come from the origin; also, how long after each other."""
    interval_s = 1 / 32
    drawn, commands = settled("..#.#.#.", a="........", b=b)
    drawn.handle(ev.LeasesGranted((0, 7)), 1.0)
    for chunk, now in ((0, 1.0), (7, 1.0 + interval_s)):
        drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), now)
    return drawn, waits(commands), interval_s


def test_when_peers_hold_the_rest_what_waits_is_called_back_after_the_time_of_a_few_chunks():
    drawn, found, interval_s = three()
    assert found.keys() == {1, 3}
    usual = 2.0 + GRACE_CHUNKS * interval_s
    for chunk, now in ((1, 2.0), (3, 2.25)):
        drawn.handle(ev.PeerHas(node("b"), ((chunk, pin(chunk)),)), now)
        assert drawn.next_deadline() == usual, "nobody holds chunk 5"
    drawn.handle(ev.PeerHas(node("b"), ((5, pin(5)),)), 2.5)
    due = 2.5 + ENDING_CHUNKS * interval_s
    assert drawn.next_deadline() == due < usual
    drawn.handle(ev.PeerHas(node("a"), ((5, pin(5)),)), 2.75)
    assert drawn.next_deadline() == due, "it is not put off"
    assert drawn.handle(ev.DeadlinePassed(), due - 0.001) == []
    commands = drawn.handle(ev.DeadlinePassed(), due)
    assert commands == [ev.CancelAsk(found[c][0], node("a"), idle=True) for c in (1, 3)]


def test_what_waits_at_its_owner_is_still_to_come_though_another_peer_had_it():
    drawn, found, interval_s = three(b="...#.#..")
    assert found.keys() == {1}
    for request in list(drawn._asks):
        drawn.handle(ev.AskRefused(request, Limits().busy_cap_s), 1.5)
    drawn.handle(ev.PeerOwns(node("a"), (3,)), 1.5)
    drawn.handle(ev.PeerHas(node("b"), ((1, pin(1)),)), 1.75)
    drawn.handle(ev.DeadlinePassed(), 2.0)  # b is busy
    assert drawn._ahead.next_deadline() == 1.75 + GRACE_CHUNKS * interval_s
    drawn.handle(ev.PeerHas(node("b"), ((3, pin(3)),)), 2.25)
    assert drawn._ahead.next_deadline() == 2.25 + ENDING_CHUNKS * interval_s


@pytest.mark.parametrize(
    ("held", "row", "usual_s", "late_s"),
    [
        ("#####...", "########", 1.0, 1.6),
        (".####...", ".#######", 1.0, 4.0),
        ("#####...", "########", 0.1, 0.2),
        (".####...", ".#######", 0.1, 0.5),
    ],
    ids=["end", "nobody holds one", "quick end", "quick, nobody holds one"],
)
def test_when_peers_hold_the_rest_a_request_is_late_after_two_fifths_of_the_usual_time(
    held, row, usual_s, late_s
):
    drawn = swarm(held, a=row)
    request, (ask, _) = next(iter(drawn._asks.items()))  # the first of two at once
    done = ev.ChunkVerified(ask.chunk, Source.PEER, pin(ask.chunk), request)
    (last,) = of(ev.Ask, drawn.handle(done, usual_s))
    drawn.handle(ev.PeerReady(node("b"), bits(row)), usual_s)
    due = usual_s + late_s
    commands = drawn.handle(ev.DeadlinePassed(), due - 0.001)
    assert of(ev.CancelAsk, commands) == []
    commands = drawn.handle(ev.DeadlinePassed(), due)
    assert of(ev.CancelAsk, commands) == [ev.CancelAsk(last.request, node("a"))]
    assert [(one.chunk, one.peer) for one in of(ev.Ask, commands)] == [(last.chunk, node("b"))]


@pytest.mark.parametrize(("missing", "late_s"), [(ENDING, 1.6), (ENDING + 1, 4.0)])
def test_it_is_not_the_end_while_more_is_missing_than_is_cheap_to_look_at(missing, late_s):
    count = missing + 1
    manifest = Manifest("m", "", (File("f", count * 4096, "e"),), 4096, 4096)
    pins = {chunk: chunk.to_bytes(16, "big") for chunk in range(count)}
    drawn = Swarm(manifest, ME, Bitfield(count), {}, pins, Random(0), Limits())
    drawn.handle(ev.PeerReady(node("a"), bytes(Bitfield(count, range(count)))), 0.0)
    request, (ask, _) = next(iter(drawn._asks.items()))
    drawn.handle(ev.ChunkVerified(ask.chunk, Source.PEER, ask.pin, request), 1.0)
    assert drawn._late_s == late_s


# -- news -----------------------------------------------------------------------------------------


def heard(commands: list[ev.Command]) -> list[tuple[NodeId, int]]:
    """Who hears of which chunk."""
    return [
        (peer, chunk)
        for have in of(ev.SendHave, commands)
        for peer in have.peers
        for chunk, _ in have.pins
    ]


def test_what_comes_between_the_bitfield_and_the_session_is_told_at_once_and_nothing_twice():
    drawn, _ = settled(a="........")
    drawn.handle(ev.LeasesGranted((3, 4)), 1.0)
    drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    assert drawn.bitfield_for(node("b")) == bits("...#....")
    drawn.handle(ev.ChunkVerified(4, Source.ORIGIN, pin(4)), 1.1)
    commands = drawn.handle(ev.PeerReady(node("b"), bits("........")), 1.2)
    assert sorted(heard(commands)) == [(node("a"), 3), (node("a"), 4), (node("b"), 4)]
    assert heard(drawn.handle(ev.DeadlinePassed(), 99.0)) == []


def test_a_peer_whose_bitfield_said_everything_is_told_nothing():
    drawn, _ = settled()
    drawn.handle(ev.LeasesGranted((3,)), 1.0)
    drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    drawn.handle(ev.DeadlinePassed(), 3.0)
    drawn.bitfield_for(node("b"))
    assert heard(drawn.handle(ev.PeerReady(node("b"), bits("........")), 4.0)) == []
    assert heard(drawn.handle(ev.DeadlinePassed(), 99.0)) == []


def test_a_peer_that_comes_back_hears_what_came_after_its_new_bitfield_only():
    drawn, _ = settled(a="........")
    drawn.handle(ev.PeersOffered(((node("a"), ("h:1",)),)), 0.5)
    drawn.handle(ev.LeasesGranted((3, 4)), 1.0)
    drawn.handle(ev.PeerLost(node("a")), 1.0)
    drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    drawn.bitfield_for(node("a"))
    drawn.handle(ev.ChunkVerified(4, Source.ORIGIN, pin(4)), 1.0)
    assert heard(drawn.handle(ev.PeerReady(node("a"), bits("........")), 1.1)) == [(node("a"), 4)]


def test_what_was_dropped_before_it_was_told_is_not_told():
    drawn, _ = settled(a="........")
    drawn.handle(ev.LeasesGranted((3, 4)), 1.0)
    for chunk in (3, 4):
        drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), 1.0)
    drawn.handle(ev.ChunkDamaged(3), 1.1)
    assert heard(drawn.handle(ev.DeadlinePassed(), 99.0)) == [(node("a"), 4)]


def test_of_fifty_peers_eight_hear_at_a_time_each_in_its_turn_and_of_each_chunk_once():
    limits, count = Limits(), 50
    peers = [NodeId(bytes([0x20 + index]) * 16) for index in range(count)]
    drawn = swarm()
    for peer in peers:
        drawn.handle(ev.PeerReady(peer, bits("........")), 0.0)
    drawn.handle(ev.DeadlinePassed(), SETTLE_S)
    drawn.handle(ev.LeasesGranted((3, 4)), 1.0)
    # Chunks of this node's own trees, so that no root is told at once.
    drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    told: list[tuple[NodeId, int]] = []
    ticks = -(-count // limits.have_peers)
    for tick in range(ticks):
        at = 1.0 + limits.have_delay_s * (tick + 1)
        assert drawn.next_deadline() == pytest.approx(at)
        assert heard(drawn.handle(ev.DeadlinePassed(), at - 0.001)) == []
        now = heard(drawn.handle(ev.DeadlinePassed(), at))
        assert len({peer for peer, _ in now}) == limits.have_peers
        told += now
        if tick == 2:  # news for those that have heard, and for those that have not
            drawn.handle(ev.ChunkVerified(4, Source.ORIGIN, pin(4)), at)
    assert sorted(peer for peer, chunk in told if chunk == 3) == peers, "within n / 8 ticks, once"
    early = 3 * limits.have_peers
    assert {peer for peer, chunk in told if chunk == 4} >= set(peers[early:]), "both together"
    while (at := drawn.next_deadline()) < 99.0:
        told += heard(drawn.handle(ev.DeadlinePassed(), at))
    assert sorted(told) == sorted((peer, chunk) for peer in peers for chunk in (3, 4))


class AnyOrder(RuleBasedStateMachine):
    """Random peers, answers and losses; a model keeps its own books of every request."""

    @initialize(seed=st.integers(0, 2**16), names=st.sets(st.sampled_from("abc")))
    def start(self, seed, names):
        self.now = 0.0
        self.swarm = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(seed), Limits())
        self.peers: dict[NodeId, set[int]] = {}
        self.open: dict[int, ev.Ask] = {}
        self.ahead: dict[int, tuple[NodeId, int]] = {}
        self.cancelled: dict[int, int] = {}
        """chunks of requests that are not the swarm's any more, and may be answered all the same"""
        self.wrong: set[tuple[NodeId, int]] = set()
        self.denied: set[tuple[NodeId, int]] = set()
        """where chunks may not wait"""
        self.called_back: set[int] = set()
        self.fetching: set[int] = set()
        self.held: set[int] = set()
        self.told: set[int] = set()
        """chunks whose pin somebody told before they came"""
        self.unconfirmed: set[int] = set()
        """others: the tracker is asked for these before all is complete"""
        for name in sorted(names):
            self.peers[node(name)] = set()
            self.feed(ev.PeerReady(node(name), bits("")))
        self.time_passes(SETTLE_S)

    def feed(self, event):
        commands = self.swarm.handle(event, self.now)
        for command in commands:
            if isinstance(command, ev.Ask):
                assert command.chunk in self.peers[command.peer], "it never asks who lacks it"
                assert command.pin == pin(command.chunk)
                self.assert_idle(command.request, command.chunk)
                self.open[command.request] = command
            elif isinstance(command, ev.AskAhead):
                assert command.peer in self.peers
                for request, chunk, known in command.asks:
                    assert known in (b"", pin(chunk))
                    assert not any(chunk in held for held in self.peers.values()), "it is pulled"
                    assert (command.peer, chunk) not in self.wrong | self.denied
                    self.assert_idle(request, chunk)
                    self.ahead[request] = (command.peer, chunk)
            elif isinstance(command, ev.CancelAsk):
                self.cancel(command)
            elif isinstance(command, ev.Fetch):
                self.assert_idle(0, command.chunk)
                self.fetching.add(command.chunk)
        return commands

    def assert_idle(self, request, chunk):
        """Nothing else is to bring the chunk."""
        assert chunk not in self.held
        assert chunk not in self.fetching
        assert all(ask.chunk != chunk for ask in self.open.values()), "one at a time"
        assert all(other != chunk for _, other in self.ahead.values()), "not while it waits"
        assert request not in (*self.open, *self.ahead, *self.cancelled), "a number of its own"

    def cancel(self, command):
        assert command.request in self.open or command.request in self.ahead or command.idle
        if command.idle:
            assert self.ahead[command.request][0] == command.peer
            self.called_back.add(command.request)
        elif (ask := self.open.pop(command.request, None)) is not None:
            assert ask.peer == command.peer
            self.cancelled[command.request] = ask.chunk
        else:
            peer, self.cancelled[command.request] = self.ahead.pop(command.request)
            assert peer == command.peer

    @rule(name=st.sampled_from("abc"), held=st.sets(st.integers(0, CHUNKS - 1)))
    def peer_comes(self, name, held):
        peer = node(name)
        if peer in self.peers:
            return
        self.peers[peer] = set(held)
        self.told |= held
        self.feed(ev.PinsLearned(tuple((c, pin(c)) for c in sorted(held))))
        self.feed(ev.PeerReady(peer, bytes(Bitfield(CHUNKS, held))))

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), chunk=st.integers(0, CHUNKS - 1))
    def peer_gets(self, data, chunk):
        peer = data.draw(st.sampled_from(sorted(self.peers)))
        self.peers[peer].add(chunk)
        self.wrong.discard((peer, chunk))
        self.told.add(chunk)
        self.feed(ev.PeerHas(peer, ((chunk, pin(chunk)),)))

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def peer_goes(self, data):
        peer = data.draw(st.sampled_from(sorted(self.peers)))
        del self.peers[peer]
        self.open = {r: ask for r, ask in self.open.items() if ask.peer != peer}
        self.ahead = {r: one for r, one in self.ahead.items() if one[0] != peer}
        self.feed(ev.PeerLost(peer))

    def ends(self, request, peer, chunk, how):
        """A request is answered."""
        if how == "good":
            self.held.add(chunk)
            if chunk not in self.told:
                self.unconfirmed.add(chunk)
            self.feed(ev.ChunkVerified(chunk, Source.PEER, pin(chunk), request))
        elif how == "corrupt":
            self.peers[peer].discard(chunk)
            self.wrong.add((peer, chunk))
            self.feed(ev.ChunkCorrupt(request))
        elif how == "busy":
            self.feed(ev.AskRefused(request, 0.1))
        elif how == "failed":
            self.feed(ev.AskFailed(request, "closed"))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["good", "corrupt", "busy", "not_have", "failed"]))
    def answer(self, data, how):
        request = data.draw(st.sampled_from(sorted(self.open)))
        ask = self.open.pop(request)
        self.ends(request, ask.peer, ask.chunk, how)
        if how == "not_have":
            self.peers[ask.peer].discard(ask.chunk)
            self.feed(ev.AskRefused(request, None))

    @precondition(lambda self: self.ahead)
    @rule(
        data=st.data(),
        how=st.sampled_from(["good", "corrupt", "busy", "not_have", "failed", "no_space"]),
    )
    def answer_to_what_waits(self, data, how):
        request = data.draw(st.sampled_from(sorted(self.ahead)))
        peer, chunk = self.ahead[request]
        if how == "no_space":
            self.feed(ev.SpaceExhausted(chunk))
            assert not self.ahead, "nothing waits without space"
            return
        del self.ahead[request]
        if how in ("busy", "not_have") and request not in self.called_back:
            self.denied.add((peer, chunk))
        self.ends(request, peer, chunk, how)
        if how == "not_have":
            self.feed(ev.AskRefused(request, None))

    @precondition(lambda self: self.cancelled)
    @rule(data=st.data(), how=st.sampled_from(["good", "failed", "not_have"]))
    def answer_to_what_was_cancelled(self, data, how):
        request = data.draw(st.sampled_from(sorted(self.cancelled)))
        chunk = self.cancelled.pop(request)
        if how == "good":  # its last bytes were on their way
            self.ends(request, None, chunk, how)
            self.fetching.discard(chunk)
        else:
            before = self.swarm.statistics()
            self.feed(
                ev.AskFailed(request, "cancelled")
                if how == "failed"
                else ev.AskRefused(request, None)
            )
            after = self.swarm.statistics()
            assert (before.held, before.corrupt_chunks) == (after.held, after.corrupt_chunks)

    @rule(request=st.integers(10_000, 10_010))
    def a_stale_answer_changes_nothing(self, request):
        before = self.swarm.statistics()
        self.feed(ev.AskFailed(request, "late"))
        after = self.swarm.statistics()
        assert (before.held, before.fetches) == (after.held, after.fetches)

    @rule(chunk=st.integers(0, CHUNKS - 1))
    def leased(self, chunk):
        self.feed(ev.LeasesGranted((chunk,)))
        assert chunk in self.swarm.fetching or chunk in self.held

    @precondition(lambda self: self.fetching)
    @rule(data=st.data(), good=st.booleans())
    def fetched(self, data, good):
        chunk = data.draw(st.sampled_from(sorted(self.fetching)))
        self.fetching.discard(chunk)
        if good:
            self.held.add(chunk)
            self.feed(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)))
        else:
            self.feed(ev.FetchFailed(chunk, "403", fatal=True))

    @rule(seconds=st.sampled_from([0.05, SETTLE_S, 0.5, 1.0, STUCK_S, 6.0, 30.0, 70.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.feed(ev.DeadlinePassed())

    @invariant()
    def agrees(self):
        if hasattr(self, "swarm"):
            assert set(self.swarm.held) == self.held
            complete, whole = self.swarm.statistics().complete, len(self.held) == CHUNKS
            assert complete == whole or (whole and self.unconfirmed)
            assert {one.request for one in self.swarm._ahead.all()} == self.ahead.keys()
            under_way = [ask.chunk for ask in self.open.values()] + [*self.fetching]
            waiting = [chunk for _, chunk in self.ahead.values()]
            assert len({*under_way, *waiting}) == len(under_way) + len(waiting)

    def teardown(self):
        """Liveness: once a seeder stays and nothing else fails, the download completes, though
        what waits elsewhere is never answered."""
        if not hasattr(self, "swarm"):
            return
        for chunk in sorted(self.fetching):
            self.held.add(chunk)
            self.feed(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)))
        self.fetching.clear()
        seeder = node("seeder")
        self.peers[seeder] = set(range(CHUNKS))
        self.feed(ev.PinsLearned(tuple(PINS.items())))
        self.feed(ev.PeerReady(seeder, bits("#" * CHUNKS)))
        for _ in range(20 * CHUNKS):
            if self.open:
                request, ask = self.open.popitem()
                self.held.add(ask.chunk)
                self.feed(ev.ChunkVerified(ask.chunk, Source.PEER, ask.pin, request))
            else:
                self.now += 1.0
                self.feed(ev.DeadlinePassed())
        assert self.swarm.statistics().complete, self.swarm.statistics()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_a_bitfield_of_another_model_ends_the_session():
    drawn = swarm()
    (command,) = drawn.handle(ev.PeerReady(node("a"), b"\xff\xff\xff"), 0.0)
    assert isinstance(command, ev.Disconnect)


@pytest.mark.parametrize("gone", ["PeerLost", "PeerLeaves"])
def test_what_was_asked_of_a_peer_that_went_is_asked_of_another(gone):
    drawn = swarm(a="#.......")
    drawn.handle(ev.PeerReady(node("b"), bits("#.......")), 0.0)
    (ask,) = of(ev.Ask, drawn.handle(getattr(ev, gone)(node("a")), 0.0))
    assert ask.peer == node("b")


def test_the_root_of_a_tree_asks_its_owner_while_that_still_reads_the_chunk():
    drawn, _ = settled(a="........", b="........")
    commands = drawn.handle(ev.PeerOwns(node("b"), (0, 3)), 1.0)
    assert {c: p for c, (_, p) in waits(commands).items()} == {0: node("b"), 3: node("b")}
    (request, _) = waits(commands)[3]
    commands = drawn.handle(ev.PeerOwns(node("a"), (3,)), 1.1)
    assert commands[0] == ev.CancelAsk(request, node("b")), "the lease has gone to another"
    assert waits(commands)[3][1] == node("a")


def test_the_owner_of_a_chunk_tells_the_root_of_its_tree_and_is_silent_if_it_is_it_itself():
    drawn, _ = settled(a="........", b="........")
    told = {}
    for chunk in range(3):
        for command in of(ev.SendComing, drawn.handle(ev.LeasesGranted((chunk,)), 1.0)):
            told[command.chunk] = command.peer
    assert sorted(told.values()) == [node("a"), node("b")], "of three trees, one is our own"


def ahead_only() -> tuple[Swarm, int]:
    """A swarm that holds all but chunk 2, which came ahead: its pin is known from its sender."""
    mine = Bitfield(CHUNKS, [c for c in range(CHUNKS) if c != 2])
    pins = {chunk: pin(chunk) for chunk in range(CHUNKS) if chunk != 2}
    drawn = Swarm(MANIFEST, ME, mine, {}, pins, Random(0), Limits())
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 0.0)
    drawn.handle(ev.DeadlinePassed(), SETTLE_S)
    waiting = drawn._ahead.take(Chunk(2))
    drawn._ahead.add(waiting)
    return drawn, waiting.request


def test_a_pin_that_only_the_sender_told_is_confirmed_by_the_tracker_before_all_is_complete():
    drawn, request = ahead_only()
    commands = drawn.handle(ev.ChunkVerified(2, Source.PEER, pin(2), request), 1.0)
    assert ev.AskPins(None, (2,)) in commands
    assert of(ev.Complete, commands) == []
    commands = drawn.handle(ev.PinsLearned(((2, pin(2)),)), 1.1)
    assert of(ev.Complete, commands) == [ev.Complete()]


def test_another_peer_that_tells_the_same_pin_confirms_it_too():
    drawn, request = ahead_only()
    drawn.handle(ev.ChunkVerified(2, Source.PEER, pin(2), request), 1.0)
    commands = drawn.handle(ev.PeerHas(node("a"), ((2, pin(2)),)), 1.1)
    assert of(ev.Complete, commands) == [], "it is the sender"
    drawn.handle(ev.PeerReady(node("b"), bits("........")), 1.2)
    commands = drawn.handle(ev.PeerHas(node("b"), ((2, pin(2)),)), 1.3)
    assert of(ev.Complete, commands) == [ev.Complete()]


def test_a_pin_that_the_tracker_knows_better_is_hashed_again():
    drawn, request = ahead_only()
    drawn.handle(ev.ChunkVerified(2, Source.PEER, b"\xee" * 16, request), 1.0)
    commands = drawn.handle(ev.PinsLearned(((2, pin(2)),)), 1.1)
    assert of(ev.Rehash, commands) == [ev.Rehash(2, pin(2))]


def test_a_tracker_that_does_not_know_the_pin_is_asked_three_times_a_second_apart():
    drawn, request = ahead_only()
    drawn.handle(ev.ChunkVerified(2, Source.PEER, pin(2), request), 1.0)
    for now in (2.0, 3.0):
        assert drawn.next_deadline() <= now
        assert of(ev.AskPins, drawn.handle(ev.DeadlinePassed(), now)) == [ev.AskPins(None, (2,))]
        assert of(ev.Complete, drawn.handle(ev.DeadlinePassed(), now + 0.5)) == []
    assert of(ev.Complete, drawn.handle(ev.DeadlinePassed(), 4.0)) == [ev.Complete()]
    drawn, request = ahead_only()
    drawn.handle(ev.TrackerLost(), 0.5)
    commands = drawn.handle(ev.ChunkVerified(2, Source.PEER, pin(2), request), 1.0)
    assert of(ev.Complete, commands) == [ev.Complete()], "without a tracker peers' word is all"
