"""An origin that takes its time: a model that is still arriving while it is read."""

import threading
import time

from support.faulty import Ranged


class Slow:
    """A fault hook for `FaultyOrigin`: each range waits `seconds`, until `hurry` is called.

    Args:
      free: so many ranges are answered at once first.
    """

    def __init__(self, seconds: float, free: int = 0) -> None:
        self.seconds, self.free = seconds, free
        self.begun = threading.Event()
        """a range waits"""
        self._hurry = threading.Event()

    def __call__(self, ranged: Ranged) -> str | None:
        """Wait; never a fault."""
        if ranged.count >= self.free:
            self.begun.set()
            self._hurry.wait(self.seconds)
        return None

    def hurry(self) -> None:
        """Answer everything at once from now on."""
        self._hurry.set()


class Cut:
    """A fault hook: everything is answered with 503 while `cut` is set."""

    def __init__(self) -> None:
        self.cut = threading.Event()

    def __call__(self, ranged: Ranged) -> str | None:
        """503 or nothing."""
        if self.cut.is_set():
            time.sleep(0.02)
            return "503"
        return None
