"""Faults, each with its moment: done to a container, and undone after a while.

WAITING --the victim holds enough--> AWAY --its time has passed--> OVER
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from docker.models.containers import Container

from simulations.cluster.engine import network_of

KILLED_S = 1.0  # until a killed node comes back
TRACKER_STOP_S = 3  # it promises to end within that


@dataclass(slots=True)
class Fault:
    """One fault of one container.

    Attributes:
      at: the progress at which it comes.
      back_s: after so long it is undone; infinite: never.
      begin, undo: do it and take it back; None where nothing is to be taken back.
      came_at: the victim's progress when it came; None while it waits.
    """

    kind: str
    at: float
    back_s: float
    begin: Callable[[], None]
    undo: Callable[[], None] | None
    came_at: float | None = None
    back_at: float = inf
    over: bool = False

    @property
    def away(self) -> bool:
        """The victim does not answer now."""
        return self.came_at is not None and not self.over

    @property
    def settled(self) -> bool:
        """Nothing is to be waited for: it is over, or for ever."""
        return self.over or (self.came_at is not None and self.back_s == inf)

    def step(self, progress: float, now: float) -> str:
        """Do what is due; what was done, in words, or nothing."""
        if self.came_at is None:
            if progress < self.at:
                return ""
            self.came_at = progress
            self.begin()
            if self.undo is None and self.back_s < inf:
                self.over = True
            self.back_at = now + self.back_s
            return f"{self.kind} at {progress:.0%}"
        if self.over or now < self.back_at or self.undo is None:
            return ""
        self.undo()
        self.over = True
        return f"back after {self.kind}"


def kill(container: Container, at: float, restart: bool) -> Fault:
    """SIGKILL to everything in it; with `restart` it is started again on what it had."""
    back_s = KILLED_S if restart else inf
    return Fault("kill", at, back_s, container.kill, container.start if restart else None)


def pause(container: Container, at: float, away_s: float) -> Fault:
    """Frozen: its connections stand, and nobody answers."""
    return Fault("pause", at, away_s, container.pause, container.unpause)


def disconnect(container: Container, at: float, away_s: float) -> Fault:
    """The cable is pulled, and put back; its address may be another one then."""
    assert container.client is not None
    network = container.client.networks.get(network_of(container))
    aliases = container.attrs["NetworkSettings"]["Networks"][network.name]["Aliases"]
    return Fault(
        "disconnect", at, away_s,
        lambda: network.disconnect(container),
        lambda: network.connect(container, aliases=aliases),
    )  # fmt: skip


def restart(container: Container, at: float) -> Fault:
    """Ended in order, and started again at once."""
    return Fault("restart", at, 0.0, lambda: container.restart(timeout=TRACKER_STOP_S), None)
