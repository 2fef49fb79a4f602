"""Requests that wait at peers: of whom, until when, and what is done about late ones.

Method: exact times. This node is c of a to f; of each chunk, the parents are drawn by hand.
"""

from collections.abc import Callable
from math import inf

import pytest

from p2p.ahead import (
    ENDING_CHUNKS,
    GRACE_CHUNKS,
    GRACE_LEAST_S,
    GRACE_MOST_S,
    GRACE_USUAL,
    SETTLE_MOST_S,
    SETTLE_S,
    STUCK_S,
    Ahead,
    Waiting,
)
from p2p.ids import Chunk, NodeId
from p2p.tree import Trees

A, B, C, D, E, F = (NodeId(letter.encode()) for letter in "abcdef")
NODES = [A, B, C, D, E, F]
ZERO, ONE, TWO = Chunk(0), Chunk(1), Chunk(2)


def drawn() -> Ahead:
    """The trees of six nodes, with this one in the middle."""
    ahead = Ahead(C)
    ahead.draw(NODES)
    return ahead


def waiting(*chunks: Chunk) -> Ahead:
    """These chunks wait at a, as requests 10 and so on."""
    ahead = drawn()
    for chunk in chunks:
        ahead.add(Waiting(10 + chunk, A, chunk))
    return ahead


def all_able(_: NodeId) -> bool:
    return True


def test_without_trees_nobody_is_asked_and_this_node_is_every_root():
    ahead = Ahead(C)
    assert (ahead.parent(ZERO, all_able), ahead.root(ZERO)) == (None, None)
    ahead.draw([C])
    assert (ahead.parent(ZERO, all_able), ahead.root(ZERO)) == (None, None)


def test_the_parent_is_the_nearest_node_above_that_can_be_asked():
    ahead = drawn()
    three = Chunk(3)  # d is the root, then e and f, then a, b and this node
    assert ahead.root(three) == D
    assert ahead.parent(three, all_able) == F
    assert ahead.parent(three, lambda node: node != F) == D
    assert ahead.parent(three, lambda node: node not in (D, F)) is None
    assert ahead.root(TWO) is None, "it is this node"
    assert ahead.parent(TWO, all_able) is None


def test_trees_settle_a_tenth_of_a_second_after_the_last_peer_came_or_went():
    ahead = drawn()
    assert not ahead.settled(99.0)
    assert ahead.next_deadline() == inf
    ahead.changed(1.0)
    ahead.changed(1.05)
    assert ahead.next_deadline() == 1.05 + SETTLE_S
    assert not ahead.settled(1.05 + SETTLE_S - 0.001)
    assert ahead.settled(1.05 + SETTLE_S)
    ahead.draw(NODES)
    assert not ahead.settled(99.0)
    assert ahead.next_deadline() == inf
    ahead.offered(2.0)
    ahead.changed(2.01, last=True)
    assert ahead.next_deadline() == 2.0 + SETTLE_S
    ahead.changed(3.0, last=True)
    assert ahead.settled(3.0), "nobody else is to come"
    ahead.draw(NODES)
    for tenth in range(40, 60):
        ahead.offered(tenth / 10 - 0.01)
        ahead.changed(tenth / 10)
    assert ahead.next_deadline() == 3.99 + SETTLE_MOST_S, "at the latest, if they keep coming"


def test_who_is_about_to_come_is_waited_for_and_nobody_further_up_is_asked():
    ahead = drawn()
    three = Chunk(3)  # f is this node's parent, and d the root

    def but(*names: NodeId) -> Callable[[NodeId], bool]:
        return lambda node: node not in names

    assert ahead.parent(three, but(F), lambda node: node == F) is None
    assert ahead.parent(three, but(F), lambda node: node == D) == D
    ahead.deny(F, three)
    assert ahead.parent(three, but(F), lambda node: node == F) == D, "it would refuse"


def test_near_are_parents_and_children_and_then_come_the_roots_and_to_a_root_everybody():
    nodes = [NodeId(bytes([n]) * 16) for n in range(50)]
    near, then = {}, {}
    for me in nodes:
        ahead = Ahead(me)
        assert ahead.near == ahead.roots == frozenset()
        ahead.draw(nodes)
        near[me], then[me] = ahead.near, ahead.roots
    trees = Trees(nodes[0], nodes)
    roots = {trees.root(Chunk(chunk)) for chunk in range(9)}
    assert len(roots) == 3
    for me in nodes:
        assert me not in near[me] | then[me]
        assert not near[me] & then[me]
        for other in near[me]:
            assert me in near[other], "both know it"
        for other in then[me]:
            assert me in then[other], "both know it"
        for chunk in range(3):
            parent = Trees(me, nodes).above(Chunk(chunk))[:1]
            assert set(parent) <= near[me]
        assert len(near[me]) <= 8
        if me in roots:
            assert len(near[me] | then[me]) == 49
        else:
            assert roots <= near[me] | then[me]
            assert then[me] <= roots


def test_a_request_is_found_by_chunk_number_and_peer_until_it_is_taken():
    ahead = waiting(ZERO, ONE)
    other = Waiting(20, B, TWO)
    ahead.add(other)
    assert len(ahead) == 3
    assert ahead.all(B) == [other]
    assert [one.chunk for one in ahead.all()] == [0, 1, 2]
    assert ahead.get(20) == other
    assert TWO in ahead
    assert ahead.take(TWO) == other
    assert ahead.take(TWO) is None
    assert (ahead.get(20), ahead.ended(20), TWO in ahead) == (None, None, False)
    assert ahead.ended(10) == Waiting(10, A, ZERO)
    assert ahead.all() == [Waiting(11, A, ONE)]


def test_what_is_announced_is_called_back_exactly_after_the_grace_and_free_exactly_when_stuck():
    ahead = waiting(ZERO, ONE)
    ahead.heard(ZERO, 5.0)
    due = 5.0 + GRACE_LEAST_S
    assert ahead.next_deadline() == due
    assert ahead.expire(due - 0.001) == []
    assert not ahead.recalled(ZERO)
    assert ahead.expire(due) == [Waiting(10, A, ZERO)]
    assert ahead.expire(due) == [], "once"
    assert ahead.recalled(ZERO)
    assert not ahead.free(ZERO), "it may have begun to come"
    assert ahead.next_deadline() == due + STUCK_S
    assert ahead.expire(due + STUCK_S - 0.001) == []
    assert not ahead.free(ZERO)
    assert ahead.expire(due + STUCK_S) == []
    assert ahead.free(ZERO)
    assert not ahead.recalled(ZERO), "whoever does not answer now is to blame"
    assert ZERO in ahead, "it may still come"
    assert not ahead.free(ONE), "nobody has announced it"
    assert ahead.next_deadline() == inf


def test_the_first_announcement_counts_and_later_ones_begin_nothing_anew():
    ahead = waiting(ZERO)
    due = 5.0 + GRACE_LEAST_S
    ahead.heard(ZERO, 5.0)
    ahead.heard(ZERO, due - 0.01)
    assert ahead.next_deadline() == due
    assert len(ahead.expire(due)) == 1
    ahead.heard(ZERO, due + 1.0)
    assert ahead.next_deadline() == due + STUCK_S
    ahead.expire(due + STUCK_S)
    ahead.heard(ZERO, due + STUCK_S)
    assert ahead.free(ZERO)
    assert ahead.next_deadline() == inf


def test_what_does_not_wait_is_free_and_announcements_of_it_are_no_deadline():
    ahead = waiting(ZERO)
    ahead.heard(ONE, 5.0)
    assert ahead.free(ONE)
    assert ahead.next_deadline() == inf


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["due", "called back", "overdue"])
def test_a_request_that_is_taken_leaves_no_times_behind(steps):
    ahead = waiting(ZERO)
    ahead.heard(ZERO, 5.0)
    for step in range(steps):
        ahead.expire(5.0 + GRACE_LEAST_S + step * STUCK_S)
    ahead.take(ZERO)
    assert ahead.next_deadline() == inf
    ahead.add(Waiting(30, B, ZERO))
    assert not ahead.free(ZERO)
    assert not ahead.recalled(ZERO)
    assert ahead.expire(99.0) == []
    ahead.heard(ZERO, 100.0)
    assert ahead.next_deadline() == 100.0 + GRACE_LEAST_S
    ahead.came(ZERO, 100.2)
    assert ahead.grace_s == pytest.approx(GRACE_USUAL * 0.2), "late since then"


def test_the_grace_is_so_many_chunks_time_within_its_bounds():
    ahead = drawn()
    assert ahead.grace_s == GRACE_LEAST_S, "nothing is known yet"
    for step in range(5):
        ahead.came(Chunk(step), step * 0.01)
    assert ahead.grace_s == pytest.approx(GRACE_CHUNKS * 0.01)
    slow = drawn()
    for step in range(5):
        slow.came(Chunk(step), step * 1.0)
    assert slow.grace_s == GRACE_MOST_S
    fast = drawn()
    for step in range(5):
        fast.came(Chunk(step), step * 0.000_1)
    assert fast.grace_s == GRACE_LEAST_S


def test_the_grace_is_four_times_as_long_as_chunks_usually_are_late():
    ahead = waiting(ZERO, ONE)
    ahead.heard(ZERO, 1.0)
    ahead.came(ZERO, 1.5)
    assert ahead.grace_s == pytest.approx(GRACE_USUAL * 0.5)
    ahead.take(ZERO)
    ahead.came(ZERO, 1.5)  # it does not wait: it says nothing of lateness
    assert ahead.grace_s == pytest.approx(GRACE_USUAL * 0.5)
    ahead.came(ONE, 1.5)  # before anybody else announced it
    assert ahead.grace_s == pytest.approx(GRACE_USUAL * 0.45)


def test_the_grace_of_a_chunk_is_what_it_was_when_it_was_announced():
    ahead = waiting(ZERO, ONE)
    ahead.heard(ZERO, 1.0)
    ahead.came(ONE, 1.0)
    ahead.came(ONE, 2.0)
    assert ahead.grace_s == GRACE_MOST_S
    assert ahead.next_deadline() == 1.0 + GRACE_LEAST_S


def test_whoever_denies_a_chunk_is_not_asked_ahead_for_it_again_until_it_has_come():
    ahead = drawn()
    three = Chunk(3)  # f is the parent, d the root
    ahead.deny(F, three)
    assert ahead.parent(three, all_able) == D
    assert ahead.parent(Chunk(8), all_able) == F, "of the same tree"
    ahead.deny(D, three)
    assert ahead.parent(three, all_able) is None
    ahead.came(three, 1.0)
    assert ahead.parent(three, all_able) == F


def test_when_all_has_been_announced_it_is_waited_for_no_longer_than_a_few_chunks_take():
    ahead = waiting(ZERO, ONE, TWO)
    for step in range(5):
        ahead.came(Chunk(10 + step), step * 0.01)
    ahead.heard(ZERO, 5.0)
    ahead.heard(ONE, 5.0)
    assert not ahead.all_heard, "two is still to come"
    ahead.heard(TWO, 5.9)
    assert ahead.all_heard
    usual = 5.0 + GRACE_CHUNKS * 0.01
    assert ahead.next_deadline() == pytest.approx(usual)
    ahead.ending(5.9)
    soon = 5.9 + ENDING_CHUNKS * 0.01
    assert soon > usual, "so nothing changes for these two"
    assert ahead.next_deadline() == pytest.approx(usual)
    assert [one.chunk for one in ahead.expire(usual)] == [ZERO, ONE]
    assert ahead.next_deadline() == pytest.approx(soon)
    ahead.ending(5.95)
    assert ahead.next_deadline() == pytest.approx(soon), "it is not put off"
    assert [one.chunk for one in ahead.expire(soon)] == [TWO]


def test_a_chunk_that_is_asked_again_has_not_been_announced():
    ahead = waiting(ZERO)
    ahead.heard(ZERO, 5.0)
    assert ahead.all_heard
    ahead.take(ZERO)
    ahead.add(Waiting(30, B, ZERO))
    assert not ahead.all_heard
    ahead.take(ZERO)
    assert ahead.all_heard, "nothing waits"
