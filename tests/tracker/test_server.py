"""What many nodes hear at once: no node hears it out of order, and leases wait for none of it."""

from itertools import pairwise

import trio
import trio.testing

from p2p import messages as m
from p2p.ids import NodeId
from p2p.outbox import Outbox
from tracker.config import ServeConfig
from tracker.server import SLICE, Server

NODES = [NodeId(number.to_bytes(16, "big")) for number in range(10 * SLICE)]


class Recorded(Outbox):
    """Keeps what is put, and writes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[m.Message] = []

    def put(self, *batch: m.Message) -> None:
        self.got += batch


def server() -> tuple[Server, dict[NodeId, Recorded]]:
    """A server whose sessions are played by hand."""
    served = Server(ServeConfig(("127.0.0.1", 0), None, "", 1, b""))
    outboxes = {node: Recorded() for node in NODES}
    served._outboxes.update(outboxes)
    return served, outboxes


async def test_a_broadcast_is_written_in_slices_and_a_lease_overtakes_it_but_not_its_own_nodes(
    autojump_clock,
):
    served, outboxes = server()
    news, lease, later = m.Sealed([1]), m.Leases([7], 1.0), m.PeersGone([NODES[0]])
    last, middle = NODES[-1], NODES[-2]
    served._deliver([*((node, news) for node in NODES), (last, lease)])
    assert outboxes[last].got == [news, lease], "a lease is told at once, after what came before"
    served._deliver([(middle, later)])
    assert outboxes[middle].got == [news, later], "in order"
    assert not outboxes[NODES[0]].got
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served._spread)
        await trio.testing.wait_all_tasks_blocked()
        assert all(outbox.got[0] is news for outbox in outboxes.values())
        assert sum(len(outbox.got) for outbox in outboxes.values()) == len(NODES) + 2
        served._deliver([(node, later) for node in NODES])
        await trio.testing.wait_all_tasks_blocked()
        assert all(outbox.got[-1] is later for outbox in outboxes.values())
        nursery.cancel_scope.cancel()


async def test_between_two_slices_others_have_their_turn(autojump_clock):
    served, outboxes = server()
    seen = []

    async def watch() -> None:
        while not all(outbox.got for outbox in outboxes.values()):
            seen.append(sum(bool(outbox.got) for outbox in outboxes.values()))
            await trio.lowlevel.checkpoint()

    served._deliver([(node, m.Sealed([1])) for node in NODES])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served._spread)
        await watch()
        nursery.cancel_scope.cancel()
    # the order of tasks within a round is chance: two slices may follow each other
    assert max(after - before for before, after in pairwise(seen)) <= 2 * SLICE
