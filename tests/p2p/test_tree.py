"""Trees that chunks run down: every node is reached, in few steps, and all nodes do equal work.

Method: hand-drawn trees, then for all sizes up to 70 a model that draws them level by level.
"""

from collections import Counter
from itertools import product

import pytest

from p2p.ids import Chunk, NodeId
from p2p.tree import ROTATIONS, Trees

SIZES = range(1, 71)


def ring(size: int) -> list[NodeId]:
    return [NodeId(bytes([index]) * 16) for index in range(size)]


def letters(names: str) -> list[NodeId]:
    return [NodeId(name.encode()) for name in names]


def above(nodes: list[NodeId], chunk: int, arity: int = 2) -> dict[NodeId, tuple[NodeId, ...]]:
    """What each node says of the nodes above it."""
    return {node: Trees(node, nodes, arity).above(Chunk(chunk)) for node in nodes}


def roots(nodes: list[NodeId], chunk: int, arity: int = 2) -> set[NodeId]:
    """What the nodes say of the root: all the same."""
    return {Trees(node, nodes, arity).root(Chunk(chunk)) for node in nodes}


def tree_count(size: int, arity: int) -> int:
    """A tree for each node, or as many as a node has children."""
    return size if size <= ROTATIONS else arity


def depth(size: int, arity: int) -> int:
    """Steps from the root of a full tree to its last node."""
    steps, level, room = 0, 1, 1
    while room < size:
        steps, level = steps + 1, level * arity
        room += level
    return steps


def children(nodes: list[NodeId], chunk: int, arity: int) -> Counter[NodeId]:
    """How many nodes ask each one for the chunk."""
    return Counter(line[0] for line in above(nodes, chunk, arity).values() if line)


def test_six_nodes_make_six_trees_each_begun_one_node_later():
    nodes = letters("abcdef")
    first = {"a": "", "b": "a", "c": "a", "d": "ba", "e": "ba", "f": "ca"}
    fifth = {"e": "", "f": "e", "a": "e", "b": "fe", "c": "fe", "d": "ae"}
    for chunk, drawn in ((0, first), (11, first), (4, fifth), (9, fifth)):
        said = {name.decode(): b"".join(line) for name, line in above(nodes, chunk).items()}
        assert {name: line.decode() for name, line in said.items()} == drawn


def test_each_round_of_chunks_uses_every_tree_once_and_begins_one_tree_later():
    turns = letters("abcdefbcdefacdefabdefabcefabcdfabcdeabcdef")
    assert [roots(letters("abcdef"), chunk) for chunk in range(42)] == [{node} for node in turns]


def test_a_node_passes_on_about_as_much_of_each_few_chunks_as_of_all():
    """What it has to send when each chunk takes the time of sending one: never many at once."""
    for size in range(2, ROTATIONS + 1):
        nodes = ring(size)
        trees = Trees(nodes[0], nodes)
        order = [trees.root(Chunk(chunk)) for chunk in range(20 * size)]
        loads = {order[chunk]: children(nodes, chunk, 2) for chunk in range(size)}
        for node in nodes:
            queue = longest = 0
            for root in order:
                queue = max(0, queue + loads[root][node] - 1)
                longest = max(longest, queue)
            assert longest <= 3, f"{size} nodes: {longest} chunks wait"


def test_eighteen_nodes_make_two_trees_that_begin_half_a_turn_apart():
    nodes = letters("abcdefghijklmnopqr")
    assert [roots(nodes, chunk) for chunk in range(6)] == [{node} for node in letters("ajjaaj")]
    assert above(nodes, 0)[NodeId(b"i")] == (b"d", b"b", b"a")
    assert above(nodes, 0)[NodeId(b"r")] == (b"e", b"b", b"a"), "the other half comes backwards"
    assert above(nodes, 0)[NodeId(b"j")] == (b"i", b"d", b"b", b"a")
    assert above(nodes, 1)[NodeId(b"i")] == (b"n", b"k", b"j")
    assert above(nodes, 1)[NodeId(b"a")] == (b"r", b"m", b"k", b"j")


def test_a_node_alone_is_every_root_and_asks_nobody():
    (me,) = ring(1)
    alone = Trees(me, [me])
    assert (alone.root(Chunk(5)), alone.above(Chunk(5))) == (me, ())


@pytest.mark.parametrize("arity", [2, 3])
def test_every_node_is_reached_from_the_root_by_nodes_that_are_nearer_to_it(arity):
    for size in SIZES:
        nodes = ring(size)
        for chunk in range(tree_count(size, arity)):
            lines = above(nodes, chunk, arity)
            (root,) = roots(nodes, chunk, arity)
            assert [node for node, line in lines.items() if not line] == [root]
            place = {node: (nodes.index(node) - nodes.index(root)) % size for node in nodes}
            for node, line in lines.items():
                if line:
                    assert line[-1] == root
                    assert line[1:] == lines[line[0]], "each node knows the line of its parent"
                    assert place[line[0]] < place[node], "so there is no circle"


@pytest.mark.parametrize("arity", [2, 3])
def test_the_last_node_is_as_many_steps_from_the_root_as_a_full_tree_is_deep(arity):
    for size in SIZES:
        nodes = ring(size)
        for chunk in range(tree_count(size, arity)):
            steps = [len(line) for line in above(nodes, chunk, arity).values()]
            assert max(steps) == depth(size, arity), f"{size} nodes, chunk {chunk}"


@pytest.mark.parametrize("arity", [2, 3])
def test_up_to_sixteen_nodes_all_have_as_many_children_over_all_trees(arity):
    for size in range(2, ROTATIONS + 1):
        nodes, load = ring(size), Counter[NodeId]()
        for chunk in range(size):
            load += children(nodes, chunk, arity)
            assert max(children(nodes, chunk, arity).values()) <= arity
        assert load == dict.fromkeys(nodes, size - 1), f"{size} nodes"


def test_in_larger_swarms_a_node_has_children_in_one_tree_only():
    for size in range(ROTATIONS + 1, 71):
        nodes = ring(size)
        one, other = (children(nodes, chunk, 2) for chunk in range(2))
        assert not one.keys() & other.keys(), f"{size} nodes"
        assert max(*one.values(), *other.values()) <= 2
        assert sum(one.values()) == sum(other.values()) == size - 1


@pytest.mark.parametrize("arity", [2, 3])
def test_in_larger_swarms_nobody_has_more_children_than_a_tree_gives_over_all_trees(arity):
    for size in range(ROTATIONS + 1, 71):
        load = Counter[NodeId]()
        for chunk in range(arity):
            load += children(ring(size), chunk, arity)
        assert max(load.values()) == arity, f"{size} nodes"
        assert load.total() == arity * (size - 1)


def test_a_large_swarm_has_as_many_trees_as_a_node_has_children():
    for arity in (2, 3):
        for size, count in ((ROTATIONS, ROTATIONS), (ROTATIONS + 1, arity)):
            nodes = ring(size)
            found = [roots(nodes, chunk, arity) for chunk in range(2 * count)]
            assert found[count:] == [*found[1:count], found[0]], "each once, from the next one on"
            assert len(set().union(*found)) == count


def test_where_leases_go_around_each_owner_gives_each_root_as_many_chunks():
    """Else some nodes would send more than others all the time."""
    for size in range(2, ROTATIONS + 1):
        nodes = ring(size)
        trees = Trees(nodes[0], nodes)
        pairs = Counter(
            (nodes[chunk % size], trees.root(Chunk(chunk))) for chunk in range(size * size)
        )
        assert pairs == dict.fromkeys(product(nodes, nodes), 1), f"{size} nodes"
