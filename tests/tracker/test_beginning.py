"""How a swarm begins at the tracker: who hears of whom and when, and who fetches the first chunks.

Nodes are played by hand, as in `test_model`.
"""

from collections.abc import Sequence
from random import Random

import pytest

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.ids import Chunk, NodeId
from p2p.manifest import File, Manifest
from p2p.tree import Trees
from tracker.assignment import PEERS
from tracker.introductions import EVERY_S, Introductions
from tracker.member import Node
from tracker.model import Model, Sends
from tracker.owners import Owners
from tracker.pace import FIRST

CHUNK, COUNT = 4096, 90
MANIFEST = Manifest("m", "http://o/", (File("x", COUNT * CHUNK, "e"),), CHUNK, CHUNK)
JOIN = m.Join("m", "http://o/", ["h:1"], b"", False, CHUNK, CHUNK)


def named(count: int) -> list[NodeId]:
    return [NodeId(bytes([number]) * 16) for number in range(count)]


A, B, C, D = named(4)


def announce(wanted: int = 0) -> m.Announce:
    return m.Announce(bytes(Bitfield(COUNT)), [], [], wanted, 0, 0, 0, 0)


def listed(start_with: int, nodes: Sequence[NodeId]) -> Model:
    """A model whose manifest is known and whose nodes have not announced yet."""
    tracked = Model("m", "", start_with, 0.0, Random(1))
    for node in nodes:
        tracked.joined(node, JOIN, 0.0)
    tracked.handle(nodes[0], m.Listing(MANIFEST.encode()), 0.0)
    return tracked


def heard(sends: Sends, to: NodeId) -> list[NodeId]:
    """Of whom a node is told."""
    peers = [x for node, x in sends if node == to and isinstance(x, m.Peers)]
    return [NodeId(node) for message in peers for node in message.nodes]


def leased(sends: Sends) -> dict[int, NodeId]:
    """The owners of chunks."""
    leases = [(node, x) for node, x in sends if isinstance(x, m.Leases)]
    return {chunk: node for node, message in leases for chunk in message.chunks}


def test_two_that_meet_after_a_while_do_so_at_once_and_others_wait_for_the_next_turn():
    met = Introductions()
    met.add(B, [A], 5.0)
    assert met.take(5.0) == {B: [A], A: [B]}
    met.add(C, [A, B], 5.02)
    met.add(D, [A, B, C], 5.04)
    assert met.at == 5.0 + EVERY_S
    assert met.take(5.0 + EVERY_S / 2) == {}
    assert met.take(met.at) == {C: [A, B, D], A: [C, D], B: [C, D], D: [A, B, C]}
    assert met.take(99.0) == {}, "once"


def test_a_node_that_goes_before_its_turn_is_not_told_of():
    met = Introductions()
    met.add(B, [A], 0.0)
    met.take(0.0)
    met.add(C, [A, B], 0.01)
    met.add(D, [A], 0.01)
    met.forget(C)
    assert met.take(1.0) == {A: [D], D: [A]}
    met.add(C, [A], 1.01)
    met.forget(C)
    assert met.at > 1e9, "nobody is left"


def test_nodes_that_come_together_are_told_of_each_other_together():
    tracked = listed(1, [A, B, C, D])
    assert heard(tracked.handle(A, announce(), 0.0), A) == []
    sends = tracked.handle(B, announce(), 0.0)
    assert (heard(sends, A), heard(sends, B)) == ([B], [A])
    for other in (C, D):
        assert heard(tracked.handle(other, announce(), 0.02), A) == []
    assert tracked.next_deadline() == EVERY_S
    sends = tracked.tick(EVERY_S)
    assert (heard(sends, A), heard(sends, C)) == ([C, D], [A, B, D])
    assert heard(tracked.tick(9.0), A) == [], "once"


def test_who_goes_before_its_turn_is_told_of_to_nobody():
    tracked = listed(1, [A, B, C])
    for other in (A, B, C):
        tracked.handle(other, announce(), 0.0)
    tracked.gone(C, 0.05)
    assert tracked.tick(EVERY_S) == []


def test_all_who_are_to_begin_together_meet_before_the_first_lease():
    tracked = listed(4, [A, B, C, D])
    for other in (A, B, C):
        tracked.handle(other, announce(1), 0.0)
    sends = tracked.handle(D, announce(1), 0.01)
    for other, count in ((A, 2), (B, 2), (C, 3), (D, 3)):
        kinds = [type(message) for node, message in sends if node == other]
        assert kinds.index(m.Peers) < kinds.index(m.Leases)
        assert len(heard(sends, other)) == count


def test_at_first_roots_fetch_what_they_pass_on_and_their_children():
    nodes = named(30)
    trees = Trees(nodes[0], nodes)
    tracked = listed(len(nodes), nodes)
    for node in nodes:
        sends = tracked.handle(node, announce(2), 0.0)
    owners = leased(sends)
    assert owners == {chunk: trees.root(Chunk(chunk)) for chunk in range(FIRST)}
    for done in range(len(nodes)):
        message = m.Fetched([done], bytes([done + 1]) * 16, b"")
        owners |= leased(tracked.handle(owners[done], message, 1.0 + done / 10))
    assert all(owners[chunk] in trees.top(Chunk(chunk)) for chunk in range(18))


@pytest.mark.parametrize(("count", "came"), [(PEERS + 2, 0), (1, 0), (20, 20)])
def test_of_many_nodes_or_later_anybody_fetches(count, came):
    nodes = {node: Node(node, JOIN, Bitfield(COUNT)) for node in named(count)}
    assert Owners().first(Chunk(0), nodes, came) == ()


def test_who_gets_only_what_is_read_there_is_no_owner_and_trees_follow_who_is_there():
    nodes = {node: Node(node, JOIN, Bitfield(COUNT)) for node in named(20)}
    owners = Owners()
    root = owners.first(Chunk(0), nodes, 0)[0]
    assert root == Trees(root, named(20)).root(Chunk(0))
    nodes[root].on_demand = True
    rest = [node for node in named(20) if node != root]
    assert owners.first(Chunk(0), nodes, 0) == Trees(rest[0], rest).top(Chunk(0))
