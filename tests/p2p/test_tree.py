"""Trees of news: every node hears of a chunk in about log steps, and all nodes do equal work.

Method: chunks of every owner are spread by following the function, for all sizes up to 70.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest

from p2p.ids import NodeId
from p2p.tree import told_at_once

SIZES = range(1, 71)


@dataclass
class Spread:
    """When each node had the chunk, how often each was told, and how many each told."""

    steps: dict[NodeId, int]
    told: Counter[NodeId] = field(default_factory=Counter)
    children: Counter[NodeId] = field(default_factory=Counter)


def ring(size: int) -> list[NodeId]:
    return [NodeId(bytes([index]) * 16) for index in range(size)]


def spread(chunk: int, nodes: list[NodeId], owner: NodeId, arity: int) -> Spread:
    """Whoever hears of the chunk for the first time holds it one step later, and tells."""
    seen, holders = Spread({owner: 0}), deque([owner])
    while holders:
        me = holders.popleft()
        for node in told_at_once(chunk, nodes, me, arity, first=me == owner):
            seen.told[node] += 1
            seen.children[me] += 1
            if node not in seen.steps:
                seen.steps[node] = seen.steps[me] + 1
                holders.append(node)
    return seen


def depth(size: int, arity: int) -> int:
    """Steps from the root of a full tree to its last node."""
    steps, level, room = 0, 1, 1
    while room < size:
        steps, level = steps + 1, level * arity
        room += level
    return steps


def load(nodes: list[NodeId], arity: int) -> list[int]:
    """Children of each node in all of its trees: those of `arity` chunks in a row."""
    return [
        sum(len(told_at_once(chunk, nodes, me, arity, first=False)) for chunk in range(arity))
        for me in nodes
    ]


def test_two_trees_of_six_nodes_share_no_node_that_has_children():
    nodes = [NodeId(letter.encode()) for letter in "abcdef"]
    drawn = [
        {"a": "bc", "b": "de", "c": "f", "d": "", "e": "", "f": ""},
        {"d": "ef", "e": "ab", "f": "c", "a": "", "b": "", "c": ""},
    ]
    for chunk in range(4):
        for me, children in drawn[chunk % 2].items():
            told = told_at_once(chunk, nodes, NodeId(me.encode()), 2, first=False)
            assert b"".join(told).decode() == children


def test_an_owner_tells_the_root_before_its_own_children_and_a_root_never_itself():
    nodes = [NodeId(letter.encode()) for letter in "abcdefg"]
    assert told_at_once(0, nodes, NodeId(b"b"), 2, first=True) == [b"a", b"d", b"e"]
    assert told_at_once(0, nodes, NodeId(b"g"), 2, first=True) == [b"a"]
    assert told_at_once(0, nodes, NodeId(b"a"), 2, first=True) == [b"b", b"c"]


def test_a_node_alone_tells_nobody():
    assert told_at_once(5, ring(1), ring(1)[0], 2, first=True) == []


@pytest.mark.parametrize("arity", [2, 3])
def test_every_node_hears_once_whoever_owns_the_chunk_and_only_the_owner_hears_for_nothing(arity):
    for size in SIZES:
        nodes = ring(size)
        for chunk in range(arity):
            for owner in nodes:
                seen = spread(chunk, nodes, owner, arity)
                assert set(seen.steps) == set(nodes)
                wasted = seen.told.pop(owner, 0)
                assert wasted <= 1, "from the one above it in the tree"
                assert set(seen.told.values()) <= {1}


@pytest.mark.parametrize("arity", [2, 3])
def test_the_last_node_hears_one_step_after_a_trees_depth_at_the_latest(arity):
    for size in SIZES:
        nodes = ring(size)
        for chunk in range(arity):
            steps = [max(spread(chunk, nodes, me, arity).steps.values()) for me in nodes]
            assert max(steps) <= depth(size, arity) + 1
            assert min(steps) == depth(size, arity), "from the root itself"


@pytest.mark.parametrize("arity", [2, 3])
def test_nobody_tells_more_than_its_children_and_the_root(arity):
    for size in SIZES:
        nodes = ring(size)
        for owner in nodes:
            children = spread(size, nodes, owner, arity).children
            assert all(count <= arity + (node == owner) for node, count in children.items())


@pytest.mark.parametrize(
    ("arity", "slack", "sizes"),
    [(2, 0, SIZES), (3, 0, SIZES[2::3]), (3, 1, SIZES[1::3]), (3, 1, SIZES[::3])],
    ids=["2", "3 of 3, 6..", "3 of 2, 5..", "3 of 1, 4.."],
)
def test_over_as_many_chunks_as_there_are_trees_all_nodes_have_as_many_children(
    arity, slack, sizes
):
    for size in sizes:
        loads = load(ring(size), arity)
        assert sum(loads) == arity * (size - 1)
        assert max(loads) <= arity + slack, f"{size} nodes"
