"""Requests of one peer over several data connections: spread, moved once when one dies."""

import socket
from math import inf

import pytest
import trio
import trio.testing

from node import jobs
from node.links import Links
from node.pairs import Pairs
from p2p.events import Ask, AskFailed
from p2p.ids import NodeId

PEER = NodeId(b"p" * 16)
NEAR, FAR = ("10.0.1.2", "10.0.2.2"), ("10.0.1.9:7", "10.0.2.9:7")


class Bench:
    """Links with a pool that only writes down, and a dial whose pairs fail as told."""

    count = 2

    def __init__(self, nursery, homes=None):
        self.pairs = Pairs.between(NEAR, FAR)
        self.broken = set()
        self.dialled, self.events, self.asked, self.opened = [], [], [], []
        self.cancelled = []
        self.links = Links(
            self, self._dial, lambda _peer: self.pairs, self.events.append, nursery, homes
        )

    def submit(self, worker, job, sock=None):
        if sock is not None:
            sock.close()
        match job:
            case jobs.AskJob():
                self.asked.append((job.request, job.link))
            case jobs.AddDownlink():
                self.opened.append((job.link, worker))
            case jobs.CancelJob(request):
                self.cancelled.append(request)

    async def _dial(self, peer, pair):
        self.dialled.append(pair)
        if pair in self.broken:
            raise OSError(0, "no way")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return await trio.open_tcp_stream(*listener.getsockname())

    async def ask(self, *requests):
        """Send requests, and let what is dialled be dialled."""
        for request in requests:
            self.links.ask(Ask(request, PEER, request, b""))
        await trio.testing.wait_all_tasks_blocked()

    def on(self, link):
        return [request for request, where in self.asked if where == link]


@pytest.fixture
async def bench(nursery):
    return Bench(nursery)


async def test_the_first_request_opens_one_connection_and_the_second_another(bench):
    await bench.ask(1)
    assert len(bench.dialled) == 1
    await bench.ask(2)
    assert set(bench.dialled) == {(NEAR[0], FAR[0]), (NEAR[1], FAR[1])}
    await bench.ask(3, 4, 5)
    assert len(bench.dialled) == 2, "one for each NIC"
    loads = [len(bench.on(link)) for link, _ in bench.opened]
    assert sorted(loads) == [2, 3]


async def test_a_nic_that_is_back_is_used_and_its_stand_in_no_more(bench, autojump_clock):
    bench.broken = {(NEAR[0], FAR[0]), (NEAR[0], FAR[1])}
    await bench.ask(1, 2, 3)
    assert len(bench.opened) == 2, "both over the other NIC"
    bench.broken = set()
    await trio.sleep(2)
    await bench.ask(4)
    assert bench.dialled[-1] == (NEAR[0], FAR[0])
    assert len(bench.opened) == 3
    before = len(bench.asked)
    await bench.ask(5, 6, 7, 8)
    dialled = [pair for pair in bench.dialled if pair[0] == NEAR[1]]
    own = bench.opened[dialled.index((NEAR[1], FAR[1]))][0]
    assert {link for _, link in bench.asked[before:]} == {own, bench.opened[2][0]}


async def test_the_least_loaded_connection_gets_the_next_request(bench):
    await bench.ask(1, 2, 3, 4)
    link = dict(bench.asked)[1]
    for request in bench.on(link):
        bench.links.ended(request)
    before = len(bench.on(link))
    await bench.ask(5, 6)
    assert len(bench.on(link)) == before + 2


async def test_a_peer_is_needed_while_requests_are_under_way_and_lives_if_it_answers(
    bench, autojump_clock
):
    assert not bench.links.needs(PEER)
    assert bench.links.heard_at(PEER) == -inf
    await bench.ask(1, 2)
    assert bench.links.needs(PEER)
    await trio.sleep(3)
    bench.links.ended(1)
    assert bench.links.heard_at(PEER) == trio.current_time()
    assert bench.links.needs(PEER)
    await trio.sleep(3)
    assert bench.links.again(2), "it goes to the other connection"
    assert bench.links.needs(PEER)
    assert bench.links.heard_at(PEER) == trio.current_time() - 3, "a failure is no sign of life"
    bench.links.ended(2)
    assert not bench.links.needs(PEER)


async def test_a_request_that_fails_goes_to_the_other_connection_once(bench):
    await bench.ask(1, 2)
    first, second = dict(bench.asked)[1], dict(bench.asked)[2]
    assert first != second
    assert bench.links.again(1)
    assert bench.on(second) == [2, 1]
    assert not bench.links.again(1), "it was tried"


async def test_a_connection_on_which_something_failed_gets_nothing_while_there_is_another(bench):
    await bench.ask(1, 2)
    second = dict(bench.asked)[2]
    bench.links.again(1)
    await bench.ask(3, 4)
    assert bench.on(second) == [2, 1, 3, 4]


async def test_a_cancelled_request_is_not_sent_again(bench):
    await bench.ask(1, 2)
    bench.links.cancel(1, PEER)
    assert bench.cancelled == [1]
    assert not bench.links.again(1)


async def test_with_one_connection_there_is_nowhere_else_to_go(bench):
    await bench.ask(1)
    assert not bench.links.again(1)


async def test_a_connection_that_fails_is_replaced_and_its_pair_left_alone(bench):
    await bench.ask(1)
    await bench.ask(2)
    link, pair = dict(bench.asked)[1], bench.dialled[0]
    bench.links.again(1)
    bench.links.closed(link, PEER)
    assert not bench.pairs.usable(pair, trio.current_time())
    await bench.ask(3, 4)
    assert pair not in bench.dialled[2:]
    assert bench.events == []


async def test_what_waits_for_a_connection_that_cannot_be_made_takes_the_next_pair(bench):
    bench.broken = {(NEAR[0], FAR[0]), (NEAR[1], FAR[1])}
    await bench.ask(1)
    assert [request for request, _ in bench.asked] == [1]
    assert len(bench.dialled) == 3
    assert bench.events == []


async def test_a_peer_that_no_pair_reaches_is_an_answer_and_not_a_loop(bench):
    bench.broken = set(bench.pairs.all)
    await bench.ask(1)
    assert [type(event) for event in bench.events] == [AskFailed]
    assert len(bench.dialled) == 4


async def test_connections_of_an_address_go_to_the_worker_near_it(nursery):
    bench = Bench(nursery, {NEAR[0]: 1, NEAR[1]: 1})
    await bench.ask(1, 2)
    assert [worker for _, worker in bench.opened] == [1, 1]
