"""Who is gone when the tracker does not answer: the tracker, or this node?

Without a tracker the live peers share the origin among themselves. A node that has lost its peers
as well would take all of it for its own, and it is most likely the one that is cut off: when its
cable is back, it would read the origin alone until it finds the tracker again.
"""

from collections.abc import Callable

import trio

from p2p import events

CUT_OFF_S = 30.0  # then it must be the others, after all
LOOK_S = 0.25


async def tell_lost(
    connected: Callable[[], bool], cut_off: Callable[[], bool], feed: Callable[[events.Event], None]
) -> None:
    """Tell the swarm that the tracker is lost: at once if some peer is there or none ever was.

    Args:
      connected: the tracker is there again; then nothing is told.
      cut_off: no peer is left of those that there were.
    """
    end = trio.current_time() + CUT_OFF_S
    while cut_off() and trio.current_time() < end:
        await trio.sleep(LOOK_S)
        if connected():
            return
    feed(events.TrackerLost())
