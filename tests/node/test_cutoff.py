"""A node without a tracker and without peers: who of them is gone?"""

import pytest
import trio

from node.cutoff import CUT_OFF_S, tell_lost
from p2p import events


class Around:
    """What a node sees, and what its swarm is told, with the time."""

    def __init__(self, cut_off: bool) -> None:
        self.cut_off, self.connected = cut_off, False
        self.told: list[tuple[events.Event, float]] = []
        self._begin = trio.current_time()

    async def run(self) -> None:
        await tell_lost(lambda: self.connected, lambda: self.cut_off, self._feed)

    def _feed(self, event: events.Event) -> None:
        self.told.append((event, round(trio.current_time() - self._begin, 3)))


async def test_with_peers_the_loss_is_told_at_once(autojump_clock):
    around = Around(cut_off=False)
    await around.run()
    assert around.told == [(events.TrackerLost(), 0.0)]


async def test_alone_it_is_told_when_the_others_do_not_come_back(autojump_clock):
    around = Around(cut_off=True)
    await around.run()
    assert around.told == [(events.TrackerLost(), CUT_OFF_S)]


@pytest.mark.parametrize(("back", "told"), [("tracker", []), ("peer", [(events.TrackerLost(), 7)])])
async def test_when_its_cable_is_back_it_knows(autojump_clock, back, told):
    around = Around(cut_off=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(around.run)
        await trio.sleep(6.9)
        if back == "tracker":
            around.connected = True
        else:
            around.cut_off = False
    assert around.told == told
