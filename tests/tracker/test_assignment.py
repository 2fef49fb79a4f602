"""Whom nodes meet: a mesh while they are few, enough and never too many when they are many."""

from collections import deque
from random import Random

import pytest

from p2p.ids import NodeId
from tracker.assignment import FEW, MOST, PEERS, Roster


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(16, "big"))


class Swarm:
    """Who was told of whom, by what `meet` and `leave` return."""

    def __init__(self, seed: int):
        self.roster = Roster(Random(seed))
        self.told: dict[NodeId, set[NodeId]] = {}

    def meet(self, who: NodeId) -> None:
        met = self.roster.meet(who)
        assert len(set(met)) == len(met)
        mine = self.told.setdefault(who, set())
        assert not mine & {*met, who}, "nobody is told twice, or of itself"
        for other in met:
            mine.add(other)
            self.told[other].add(who)

    def leave(self, who: NodeId) -> None:
        told = self.roster.leave(who)
        assert set(told) == self.told.pop(who)
        for other in told:
            self.told[other].discard(who)

    def steps(self, start: NodeId) -> dict[NodeId, int]:
        """How far every node is from one."""
        found, queue = {start: 0}, deque([start])
        while queue:
            at = queue.popleft()
            for other in self.told[at] - found.keys():
                found[other] = found[at] + 1
                queue.append(other)
        return found


def test_few_nodes_are_a_full_mesh():
    swarm = Swarm(1)
    for number in range(PEERS + 1):
        swarm.meet(node(number))
    assert {len(told) for told in swarm.told.values()} == {PEERS}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [66, 200, 1000])
def test_many_nodes_have_enough_peers_and_never_too_many_and_all_are_near(count, seed):
    swarm = Swarm(seed)
    for number in range(count):
        swarm.meet(node(number))
    counts = [len(told) for told in swarm.told.values()]
    assert min(counts) >= FEW
    assert max(counts) <= MOST
    assert sum(counts) / count <= PEERS + 1
    assert len(swarm.steps(node(0))) == count
    assert max(swarm.steps(node(0)).values()) <= 3


def test_who_has_lost_its_peers_meets_others():
    swarm = Swarm(4)
    for number in range(300):
        swarm.meet(node(number))
    last = node(299)
    for other in sorted(swarm.told[last]):
        swarm.leave(other)
    assert swarm.roster.lonely(last)
    swarm.meet(last)
    assert not swarm.roster.lonely(last)
    assert len(swarm.told[last]) >= FEW
    assert swarm.roster.peers(last) == len(swarm.told[last])


def test_one_alone_and_two_are_not_lonely():
    swarm = Swarm(5)
    swarm.meet(node(1))
    assert not swarm.roster.lonely(node(1))
    swarm.meet(node(2))
    assert not swarm.roster.lonely(node(1))
    swarm.leave(node(2))
    assert not swarm.roster.lonely(node(1))


def test_who_is_retired_is_met_by_nobody_and_its_peers_still_hear_when_it_goes():
    roster = Roster(Random(6))
    a, b, c = node(1), node(2), node(3)
    roster.meet(a)
    assert roster.meet(b) == [a]
    roster.retire(a)
    assert roster.meet(c) == [b]
    assert roster.leave(a) == [b]
    assert roster.leave(a) == []
    assert len(roster) == 2
