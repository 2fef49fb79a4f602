"""Idle connections to the origin, by its host and our address."""

from urllib.parse import urlsplit

import trio

from node.dial import Dialler
from node.http_get import CONNECT_S, Wire, open_wire
from node.nics import Source
from p2p.needs import PIECES

IDLE = 16  # kept of each
BROKEN = (OSError, trio.TooSlowError)
CONNECT_ONE_OF_SEVERAL_S = 2.0  # one lost SYN is sent again after 1 s; another NIC can do the work


class Wires:
    """A worker's connections that no request uses now.

    Args:
      several: there is more than one local address.
    """

    def __init__(self, dialler: Dialler, *, several: bool) -> None:
        self._dialler = dialler
        self._connect_s = CONNECT_ONE_OF_SEVERAL_S if several else CONNECT_S
        self._idle: dict[tuple[str, str, str], list[Wire]] = {}
        self._warming = False

    def __repr__(self) -> str:
        return f"<Wires idle={sum(map(len, self._idle.values()))}>"

    def _of(self, url: str, source_ip: str) -> list[Wire]:
        return self._idle.setdefault((*urlsplit(url)[:2], source_ip), [])

    async def take(self, url: str, source: Source) -> tuple[Wire, bool]:
        """A connection, and whether it is a fresh one.

        Raises:
          OSError, trio.TooSlowError
        """
        if idle := self._of(url, source.ip):
            return idle.pop(), False
        return await open_wire(url, source.ip, self._dialler, self._connect_s), True

    def give(self, url: str, wire: Wire) -> None:
        """The request is over; a connection that cannot be used again is closed."""
        idle = self._of(url, wire.source_ip)
        if wire.reusable and len(idle) < IDLE:
            idle.append(wire)
        else:
            wire.close()

    async def warm(self, url: str, source: Source) -> None:
        """Readers are here: have a connection for each piece of the next need. To make one under
        prefetch costs a round trip through a full queue, and a second if that drops the SYN."""
        if self._warming:
            return
        self._warming = True
        try:
            while len(self._of(url, source.ip)) < PIECES:
                wire = await open_wire(url, source.ip, self._dialler, self._connect_s)
                wire.reusable = True
                self.give(url, wire)
        except BROKEN:
            return  # the requests will find out
        finally:
            self._warming = False

    def close(self) -> None:
        """Close them all."""
        for wires in self._idle.values():
            for wire in wires:
                wire.close()
