"""In which order sessions with new peers are made, and on whom is counted meanwhile."""

from random import Random

import pytest

from p2p.events import Connect
from p2p.ids import NodeId
from p2p.peerbook import EXPECTED_S, FEW, LATER_S, PACE_S, ROOTS_S, PeerBook

ME = NodeId(bytes(16))


def others(count: int) -> list[NodeId]:
    return [NodeId(bytes([number + 1]) * 16) for number in range(count)]


def offered(count: int, now: float = 0.0) -> PeerBook:
    book = PeerBook(ME, Random(0))
    for node in others(count):
        book.offer(node, ("h:1",), now)
    return book


def dialled(book: PeerBook, now: float) -> list[NodeId]:
    return [command.peer for command in book.dial(now) if isinstance(command, Connect)]


def test_a_few_are_dialled_at_once():
    book = offered(FEW)
    assert sorted(dialled(book, 0.0)) == others(FEW)
    book.dial_first(others(1), [], 0.1)
    assert dialled(book, 99.0) == [], "once"


def test_of_many_those_that_the_trees_need_are_dialled_first_and_the_others_one_by_one():
    book, everyone = offered(FEW + 4), others(FEW + 4)
    assert dialled(book, 0.0) == everyone[:FEW], "they were few then"
    near, rest = everyone[FEW : FEW + 2], everyone[FEW + 2 :]
    book.dial_first(near, [], 0.1)
    assert sorted(dialled(book, 0.1)) == near
    assert dialled(book, 0.1 + PACE_S) == rest[:1]
    assert book.next_deadline() == 0.1 + 2 * PACE_S
    assert dialled(book, 0.1 + 2 * PACE_S) == rest[1:]


def test_roots_come_sooner_one_by_one_and_before_all_others():
    book, everyone = offered(FEW + 4), others(FEW + 4)
    dialled(book, 0.0)
    roots, rest = everyone[FEW + 2 :], everyone[FEW : FEW + 2]
    book.dial_first([], roots, 1.0)
    assert dialled(book, 1.0) == []
    assert dialled(book, 1.0 + ROOTS_S) == roots[:1]
    assert dialled(book, 1.0 + 2 * ROOTS_S) == roots[1:]
    assert book.next_deadline() == 1.0 + 2 * ROOTS_S + PACE_S
    assert dialled(book, 1.0 + 2 * ROOTS_S + PACE_S) == rest[:1]


@pytest.mark.parametrize("count", [1, FEW])
def test_before_the_swarm_begins_a_few_wait_for_the_trees_too_and_are_all_dialled_then(count):
    book = PeerBook(ME, Random(0))
    for node in others(count):
        book.offer(node, ("h:1",), 0.0, begun=False)
    assert dialled(book, 0.5) == []
    book.dial_first([], [], 0.5)
    assert sorted(dialled(book, 0.5)) == others(count)


def test_before_the_swarm_begins_of_many_only_those_that_the_trees_need_are_dialled():
    book, everyone = PeerBook(ME, Random(0)), others(FEW + 4)
    for node in everyone:
        book.offer(node, ("h:1",), 0.0, begun=False)
    book.dial_first(everyone[:3], [], 0.5)
    assert dialled(book, 0.5) == everyone[:3]


def test_the_others_wait_while_peers_still_come_and_the_trees_are_drawn_again():
    book, everyone = offered(FEW + 3), others(FEW + 3)
    dialled(book, 0.0)
    for turn in range(1, 12):
        now = turn * PACE_S / 2
        book.dial_first([], [], now)
        assert dialled(book, now) == []
    assert dialled(book, now + PACE_S) == everyone[FEW : FEW + 1], "and then come one by one"


def test_all_are_dialled_a_little_later_if_no_trees_are_drawn():
    book = offered(FEW + 1)
    dialled(book, 0.0)
    assert dialled(book, LATER_S - 0.01) == []
    assert dialled(book, LATER_S) == others(FEW + 1)[-1:]


def test_who_failed_keeps_to_its_own_time():
    book = offered(FEW + 2)
    dialled(book, LATER_S)
    failed = others(FEW + 2)[-1]
    book.lost(failed, LATER_S)
    again = book.next_deadline()
    book.dial_first([failed], [], LATER_S)
    assert book.next_deadline() == again > LATER_S


def test_who_was_offered_is_counted_on_until_a_dial_fails_or_it_does_not_come():
    book = offered(3)
    assert len(book.expected(1.0)) == 3
    dialled(book, 0.0)
    first, second, third = others(3)
    book.met(first)
    book.lost(second, 1.0)
    assert [peer.node for peer in book.expected(1.0)] == [first, third]
    assert [peer.node for peer in book.expected(EXPECTED_S)] == [first]
    book.withdraw(third)
    assert [peer.node for peer in book.expected(1.0)] == [first]
