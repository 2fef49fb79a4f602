"""Whether the other side of a session still lives: asked when it matters, not told all the time.

Sessions that each said so every two seconds were half of all messages between 50 nodes, and each
message woke a process: 15 % of all that it did. Here whatever comes is a sign of life, answers on
data connections too. A peer is asked (ping) only when there was no sign for a while, and sooner if
something is under way at it; it has to answer (pong). A session that nobody needs costs little.
"""

from dataclasses import dataclass
from enum import Enum, auto
from math import inf

LOOK_S = 2.0
"""how often sessions are looked at"""
QUIET_NEEDED_S = 2.0
"""without a sign a peer is asked, when something is under way at it"""
QUIET_S = 5.0
"""and when nothing is"""
ANSWER_S = 5.0
"""for the answer: a process that its machine holds up for less is not given up"""
SILENCE_S = 8.0
"""and no peer sooner than this"""
GONE_MOST_S = max(SILENCE_S, QUIET_S + ANSWER_S + LOOK_S) + LOOK_S
"""by then a peer that stopped is given up, needed or not"""


class Look(Enum):
    """What is to be done about a session."""

    FINE = auto()
    ASK = auto()
    GIVE_UP = auto()


@dataclass(slots=True)
class Liveness:
    """Of one session."""

    asked_at: float = inf
    """since when an answer is due"""

    def look(self, heard_at: float, now: float, *, needed: bool) -> Look:
        """To be called every LOOK_S.

        Args:
          heard_at: when the last sign of life came.
          needed: something is under way at the peer.
        """
        if heard_at >= self.asked_at:
            self.asked_at = inf
        if now >= max(heard_at + SILENCE_S, self.asked_at + ANSWER_S):
            return Look.GIVE_UP
        if now < heard_at + (QUIET_NEEDED_S if needed else QUIET_S):
            return Look.FINE
        self.asked_at = min(self.asked_at, now)
        return Look.ASK
