"""Wants of readers: a lease before all others, one for the swarm, and the names of holders.

Nodes are played by hand, as in `test_model`.
"""

from random import Random

import pytest

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.errors import RemoteProtocolError
from p2p.ids import NodeId
from p2p.manifest import File, Manifest
from tracker.budget import Budget
from tracker.leases import FETCHED, LEASE_S, QUEUED
from tracker.model import Model
from tracker.pace import FIRST, LEAST

A, B, C = (NodeId(name * 16) for name in (b"a", b"b", b"c"))
COUNT, CHUNK = 64, 4096
MANIFEST = Manifest("m", "http://o/", (File("x", COUNT * CHUNK, "e"),), CHUNK, CHUNK)


def pin(chunk: int) -> bytes:
    return bytes([chunk]) * 16


def announce(wanted: int = 0, held: tuple[int, ...] = (), *, on_demand: bool = True) -> m.Announce:
    bits = bytes(Bitfield(COUNT, held))
    return m.Announce(bits, [], [], wanted, 0, 0, 0, 0, MANIFEST.id, on_demand=on_demand)


def model(*nodes: NodeId, start_with: int = 1, budget: Budget | None = None) -> Model:
    """Nodes that hold nothing, and get only what is read there."""
    tracked = Model("m", "", start_with, 0.0, Random(1), budget)
    for node in nodes:
        tracked.joined(node, m.Join("m", "http://o/", ["h:1"]), 0.0)
    tracked.handle(nodes[0], m.Listing(MANIFEST.encode()), 0.0)
    for node in nodes:
        tracked.handle(node, announce(), 1.0)
    return tracked


def granted(sends, to: NodeId) -> list[int]:
    return [c for node, x in sends if node == to and isinstance(x, m.Leases) for c in x.chunks]


def told(sends, to: NodeId) -> list[tuple[int, NodeId]]:
    """Chunks and holders that a node hears of."""
    found = [x for node, x in sends if node == to and isinstance(x, m.Holders)]
    for message in found:
        assert message.pins == b"".join(pin(chunk) for chunk in message.chunks)
    return [pair for x in found for pair in zip(x.chunks, x.nodes, strict=True)]


def test_a_node_that_wants_no_lease_gets_the_one_that_a_reader_needs_before_all_others():
    tracked = model(A, B, start_with=5)
    assert granted(tracked.handle(A, m.Wants([40], [41]), 2.0), A) == [40, 41], "start-with or not"
    tracked.handle(B, announce(4, on_demand=False), 2.1)
    assert tracked.leases.in_flight == 2, "B waits for the others to start"


def test_eight_nodes_that_need_the_same_chunk_cost_one_lease_and_hear_who_has_it():
    nodes = [NodeId(bytes([i]) * 16) for i in range(1, 9)]
    tracked = model(*nodes)
    grants = [granted(tracked.handle(node, m.Wants([7], []), 2.0), node) for node in nodes]
    assert grants == [[7]] + [[]] * 7
    sends = tracked.handle(nodes[0], m.Fetched([7], pin(7)), 2.1)
    assert told(sends, nodes[0]) == []
    for node in nodes[1:]:
        assert told(sends, node) == [(7, nodes[0])]
    assert told(tracked.tick(2.2), nodes[1]) == [], "once"
    late = tracked.handle(nodes[3], m.Wants([7], []), 2.3)
    assert told(late, nodes[3]) == [(7, nodes[0])], "at once, when it is here already"


def elsewhere(sends, to: NodeId) -> list[int]:
    """Chunks of which a node may read parts."""
    return [c for node, x in sends if node == to and isinstance(x, m.Leases) for c in x.elsewhere]


def test_one_node_may_read_a_part_of_what_another_one_prefetches():
    tracked = model(A, B, C)
    assert granted(tracked.handle(A, announce(1, on_demand=False), 2.0), A) == [0]
    assert elsewhere(tracked.handle(B, m.Wants([], [0]), 2.1), B) == [], "nobody is blocked"
    assert elsewhere(tracked.handle(B, m.Wants([0], []), 2.2), B) == [0]
    assert elsewhere(tracked.handle(C, m.Wants([0], []), 2.2), C) == [], "one for each lease"
    assert elsewhere(tracked.handle(A, m.Wants([0], []), 2.2), A) == [], "it is A that fetches it"
    assert elsewhere(tracked.handle(B, m.Wants([0], []), 4.2), B) == [0], "a node that forgot"
    tracked.handle(A, m.LeaseFailed(0, "no", False, 60.0), 4.3)
    assert tracked.leases.holder(0) in (B, C), "from here on it is a reader's"
    assert [elsewhere(tracked.handle(n, m.Wants([0], []), 4.4), n) for n in (B, C)] == [[], []]


def test_what_is_leased_for_a_reader_is_read_once():
    tracked = model(A, B)
    assert granted(tracked.handle(A, m.Wants([7], [8]), 2.0), A) == [7, 8]
    assert elsewhere(tracked.handle(B, m.Wants([7, 8], []), 2.0), B) == []


def test_a_lease_that_fails_goes_to_the_next_who_wants_the_chunk():
    tracked = model(A, B)
    tracked.handle(A, m.Wants([7], []), 2.0)
    tracked.handle(B, m.Wants([7], []), 2.0)
    sends = tracked.handle(A, m.LeaseFailed(7, "no", True), 2.1)
    assert granted(sends, B) == [7]
    assert granted(tracked.tick(2.1 + LEASE_S + 0.01), B) == [7], "A is barred: it is B's again"


def test_an_on_demand_node_may_still_fetch_so_a_failed_lease_is_not_the_end():
    tracked = model(A, B)
    tracked.handle(A, m.Wants([7], []), 2.0)
    sends = tracked.handle(A, m.LeaseFailed(7, "timed out", False), 2.1)
    assert not [x for _, x in sends if isinstance(x, m.OriginFailed)]


def test_a_chunk_that_its_last_holder_dropped_is_fetched_again_at_once():
    tracked = model(A, B)
    tracked.handle(A, m.Wants([7], []), 2.0)
    tracked.handle(A, m.Fetched([7], pin(7)), 2.1)
    tracked.handle(A, m.Lost([7]), 2.2)
    assert tracked.leases.state(7) == FETCHED, "another node may not have said yet that it has it"
    assert granted(tracked.handle(B, m.Wants([7], []), 2.3), B) == [7]
    tracked.handle(B, m.Fetched([7], pin(7)), 2.4)
    tracked.handle(B, m.Lost([7]), 2.5)
    tracked.handle(B, m.Wants([], []), 2.5)
    tracked.tick(10.0)
    assert tracked.leases.state(7) == QUEUED, "and without a want, when others have had their time"


def test_wants_that_are_taken_back_cost_no_lease():
    tracked = model(A, B)
    tracked.handle(B, m.Wants([7], []), 2.0)
    tracked.handle(A, m.Wants([7], []), 2.0)
    tracked.handle(A, m.Wants([], []), 2.1)
    assert granted(tracked.handle(B, m.LeaseFailed(7, "no", True), 2.2), A) == []


def test_few_leases_are_out_at_first_and_one_more_with_each_chunk_that_comes():
    tracked = model(A)
    tracked.handle(A, announce(40, on_demand=False), 1.0)
    assert tracked.leases.in_flight == FIRST
    for chunk in range(3):
        tracked.handle(A, m.Fetched([chunk], pin(chunk)), 1.1)
        assert tracked.leases.in_flight == FIRST + chunk + 1


def test_what_is_read_soon_waits_for_the_pace():
    tracked = model(A)
    tracked._came = LEAST  # the careful beginning is over
    tracked.handle(A, announce(2 * LEAST, on_demand=False), 1.0)
    assert tracked.leases.in_flight == LEAST
    assert granted(tracked.handle(A, m.Wants([], [50]), 1.1), A) == []
    assert granted(tracked.handle(A, m.Wants([51], [50]), 1.2), A) == [51]
    done = tracked.handle(A, m.Fetched([0, 1], pin(0) + pin(1)), 1.3)
    assert granted(done, A)[0] == 50, "before the queue"


def test_the_budget_holds_for_readers_too():
    tracked = model(A, budget=Budget(rate_bytes_s=CHUNK, requests_s=1000))
    sends = tracked.handle(A, m.Wants(list(range(8)), []), 2.0)
    assert len(granted(sends, A)) < 8
    assert tracked.next_deadline() < 10.0


def test_others_do_not_wait_until_an_on_demand_node_is_complete():
    tracked = model(A, B)
    sends = tracked.handle(A, m.Leaving(), 2.0)
    assert [x.incomplete_nodes for _, x in sends if isinstance(x, m.OnlyCopies)] == [0]


def test_a_chunk_that_there_is_not_ends_the_session():
    tracked = model(A)
    for message in (m.Wants([COUNT], []), m.Wants([], [COUNT]), m.Lost([COUNT])):
        with pytest.raises(RemoteProtocolError, match=str(COUNT)):
            tracked.handle(A, message, 2.0)
