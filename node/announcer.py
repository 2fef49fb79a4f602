"""The node's heartbeat: what it holds, what it fetches, how far; twice a second while it loads."""

from collections.abc import Iterable

import trio

from node.config import Timeouts
from node.download import Download
from node.tracker_client import TrackerClient
from node.view import View
from p2p import messages
from p2p.bitfield import Bitfield, changed
from p2p.ids import ManifestId

# The tracker also counts what we report as fetched; if we lose such a chunk before we announce it,
# no change of ours says so. Half a minute of heartbeats, 8 KiB at 65,536 chunks.
WHOLE_AFTER = 60


class Announcer:
    """Announces to the tracker. `can_fetch` says whether this node knows an origin."""

    def __init__(self, tracker: TrackerClient, view: View, timeouts: Timeouts) -> None:
        self._tracker = tracker
        self._view = view
        self._timeouts = timeouts
        self._announced: bytes | None = None
        self._parts = 0
        self.can_fetch = False

    def forget(self) -> None:
        """The session ended: the next one is to hear everything."""
        self._announced, self._parts = None, 0

    def announce_empty(self, manifest_id: ManifestId, held: Bitfield) -> None:
        """Keep the session alive, and ask for no lease, while existing files are hashed."""
        self._announced = bytes(held)
        announce = messages.Announce(self._announced, [], [], 0, 0, 0, 0, 0, manifest_id)
        self._tracker.send(announce)

    def lost(self, chunks: Iterable[int]) -> None:
        """The tracker was told that these are not held any more."""
        if self._announced is not None:
            bits = bytearray(self._announced)
            for chunk in chunks:
                bits[chunk >> 3] &= ~(0x80 >> (chunk & 7)) & 0xFF
            self._announced = bytes(bits)

    def announce(self, download: Download) -> None:
        """Say what is so now."""
        swarm, totals = download.swarm, self._view.pool.totals()
        bits = bytes(swarm.held)
        if self._announced is None or self._parts >= WHOLE_AFTER:
            offset, part, self._parts = 0, bits, 0
        else:
            offset, part = changed(self._announced, bits)
            self._parts += 1
        received = {lease[0]: lease[1] for lease in totals.fetching}
        fetching = list(swarm.fetching)
        self._tracker.send(
            messages.Announce(
                part,
                fetching,
                [received.get(chunk, 0) for chunk in fetching],
                swarm.wanted_leases if self.can_fetch else 0,
                self._view.origin_bytes,
                totals.peer_bytes,
                swarm.statistics().corrupt_chunks,
                len(swarm.suspects),
                download.manifest_id,
                download.origin_requests,
                offset,
                swarm.reading.on_demand,
            )
        )
        self._announced = bits

    async def run(self, download: Download) -> None:
        """Announce until cancelled."""
        while True:
            busy = not download.swarm.held.complete or download.swarm.fetching
            timeouts = self._timeouts
            await trio.sleep(timeouts.heartbeat_s if busy else timeouts.idle_heartbeat_s)
            if self._tracker.connected:
                self.announce(download)
