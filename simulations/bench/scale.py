"""What one event costs the cores, by nodes and by chunks: nothing may grow faster than linearly.

The tracker's core and a node's core are driven without sockets, in virtual time, in the middle of
a load: half of the chunks are there. So the figures are of decisions alone; what sockets add does
not depend on nodes or chunks.

Tracker: a lease is a `Fetched` with what it answers, a heartbeat is an `Announce` of the chunks of
the last second; in a swarm at full speed every node gets all chunks that the whole swarm fetches
meanwhile, whatever its size. A whole bitfield is what a node sends first and every half minute.
Also what comes seldom and looks at everything: a join, a recount after a loss, the status page.

Node: with P peers, every chunk is told by each of them once (`PeerHas`, batched over 50 ms as the
peers do), asked of one and verified. Events a chunk grow with the peers, one a batch and peer.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from rich.table import Table

from p2p import events as ev
from p2p import messages as m
from p2p.bitfield import Bitfield, changed
from p2p.events import Source
from p2p.ids import Chunk, NodeId
from p2p.limits import Limits
from p2p.manifest import Manifest
from p2p.swarm import Swarm
from simulations.bench.crowd import CRC, LEASES, manifest_of
from simulations.bench.processes import console, machine, show_machine, write_json
from tracker.assignment import MOST
from tracker.model import LOST_GRACE_S, Model, Sends
from tracker.view import model_status

LEASES_S = 256  # of the swarm, or as many as last
BATCH = 16  # chunks that a peer tells at once: 50 ms at 320 chunks a second


def node(number: int) -> NodeId:
    """The id of one of the nodes."""
    return NodeId(number.to_bytes(16, "big"))


def pin(chunk: Chunk) -> bytes:
    """A pin, one for each chunk."""
    return chunk.to_bytes(16, "big")


class Clock:
    """Real microseconds spent, by name: the mean, so that what is rare counts, too."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, int]] = {}

    @contextmanager
    def of(self, name: str, events: int = 1) -> Iterator[None]:
        """Count the block as so many events."""
        begin = time.perf_counter()
        yield
        elapsed_s = time.perf_counter() - begin
        spent_s, count = self._spent.get(name, (0.0, 0))
        self._spent[name] = spent_s + elapsed_s, count + events

    def means_us(self) -> dict[str, float]:
        """Microseconds an event."""
        return {name: spent_s / count * 1e6 for name, (spent_s, count) in self._spent.items()}


# -- the tracker ----------------------------------------------------------------------------------


class Tracked:
    """A model in the middle of a load, and its nodes played by hand."""

    def __init__(self, nodes: int, chunks: int, clock: Clock) -> None:
        self._clock = clock
        self._manifest = manifest_of(chunks)
        self._nodes = [node(number) for number in range(1, nodes + 1)]
        self._held = Bitfield(chunks)
        self._leases: deque[tuple[NodeId, Chunk]] = deque()
        self._fetching: dict[NodeId, list[Chunk]] = {one: [] for one in self._nodes}
        self._announced: dict[NodeId, bytes] = {}
        self._now = 0.0
        self.model = Model("bench", "http://origin/", nodes, 0.0, Random(1))
        for one in self._nodes:
            self.model.joined(one, m.Join("bench", "http://origin/", ["h:1"]), 0.0)
        self.model.handle(self._nodes[0], m.Listing(self._manifest.encode()), 0.0)
        for one in self._nodes:
            self._beat("join", one, whole=True)
        while len(self._held) < chunks // 2:
            self._lease("")

    def _take(self, sends: Sends) -> None:
        for to, message in sends:
            if isinstance(message, m.Leases):
                for chunk in message.chunks:
                    self._leases.append((to, chunk))
                    self._fetching[to].append(chunk)

    def _handle(self, name: str, who: NodeId, message: m.Message) -> None:
        """A message, and the look at the deadlines that the tracker takes after it."""
        with self._clock.of(name):
            sends = self.model.handle(who, message, self._now)
            if self.model.next_deadline() <= self._now:
                sends = sends + self.model.tick(self._now)
        self._take(sends)

    def _lease(self, name: str) -> None:
        who, chunk = self._leases.popleft()
        self._fetching[who].remove(chunk)
        self._held.add(chunk)
        crc = CRC.to_bytes(8, "big")
        self._handle(name, who, m.Fetched([chunk], pin(chunk), crc))

    def _beat(self, name: str, who: NodeId, *, whole: bool = False) -> None:
        held, mine = bytes(self._held), list(self._fetching[who])
        at, part = (0, held) if whole else changed(self._announced[who], held)
        self._announced[who] = held
        received = [1 + int(self._now * 1e6)] * len(mine)
        self._handle(
            name, who,
            m.Announce(part, mine, received, LEASES, 0, 0, 0, 0, self._manifest.id, 0, at),
        )  # fmt: skip

    def run(self, beats: int) -> None:
        """Some seconds of the load, then what comes seldom."""
        laps = max(2, beats // len(self._nodes))
        leases_s = min(LEASES_S, self._held.size // (4 * laps))
        for one in self._nodes:
            self._beat("whole bitfield", one, whole=True)
        due = 0.0
        for _ in range(laps):
            for one in self._nodes:
                self._now += 1 / len(self._nodes)
                due += leases_s / len(self._nodes)
                while due >= 1 and self._leases:
                    due -= 1
                    self._lease("lease")
                self._beat("heartbeat", one)
        with self._clock.of("status"):
            model_status(self.model)
        self.model.gone(self._nodes[-1], self._now)
        with self._clock.of("recount"):
            self.model.tick(self._now + LOST_GRACE_S)


def tracker_costs(nodes: int, chunks: int, beats: int) -> dict[str, float]:
    """Microseconds by event."""
    clock = Clock()
    Tracked(nodes, chunks, clock).run(beats)
    means = clock.means_us()
    order = ("lease", "heartbeat", "whole bitfield", "join", "recount", "status")
    return {"nodes": nodes, "chunks": chunks, **{name: means[name] for name in order}}


# -- a node ---------------------------------------------------------------------------------------


class Loading:
    """A swarm in the middle of its load: what waits at parents comes, peers tell of chunks, and
    what was not asked ahead is asked and comes at once."""

    def __init__(self, peers: int, chunks: int, clock: Clock, manifest: Manifest) -> None:
        self._clock = clock
        self._peers = [node(number) for number in range(2, peers + 2)]
        self._now = 0.0
        self._asks: list[ev.Ask] = []
        self._waiting: dict[int, int] = {}
        self._order = manifest.order
        half = Bitfield(chunks, self._order[: chunks // 2])
        pins = {chunk: pin(chunk) for chunk in half}
        self._swarm = Swarm(manifest, node(1), half, {}, pins, Random(1), Limits())
        bits = bytes(half)
        for peer in self._peers:
            self._handle("peer ready", ev.PeerReady(peer, bits))

    def _handle(self, name: str, event: ev.Event, events: int = 1) -> None:
        with self._clock.of(name, events):
            commands = self._swarm.handle(event, self._now)
            self._swarm.next_deadline()
        for command in commands:
            if isinstance(command, ev.Ask):
                self._asks.append(command)
            elif isinstance(command, ev.AskAhead):
                self._waiting.update((chunk, request) for request, chunk, _ in command.asks)
            elif isinstance(command, ev.CancelAsk):
                requests = self._waiting.items()
                self._waiting = {c: r for c, r in requests if r != command.request}

    def _verified(self, name: str, chunk: int, request: int) -> None:
        self._now += 0.003
        self._handle(name, ev.ChunkVerified(Chunk(chunk), Source.PEER, pin(chunk), request))

    def run(self, count: int) -> None:
        """Load so many chunks, in the order in which a swarm gets them."""
        following = self._order[len(self._order) // 2 :][:count]
        self._now += 1.0
        self._handle("time", ev.DeadlinePassed())  # the trees are drawn
        for start in range(0, len(following), BATCH):
            batch = following[start : start + BATCH]
            pins = tuple((chunk, pin(chunk)) for chunk in batch)
            for chunk in batch:
                if (request := self._waiting.pop(chunk, None)) is not None:
                    self._verified("verified, down a tree", chunk, request)
            for peer in self._peers:
                self._handle("peer has, a chunk", ev.PeerHas(peer, pins), len(batch))
            while self._asks:
                ask = self._asks.pop(0)
                self._verified("verified and asked", ask.chunk, ask.request)
            self._handle("time", ev.DeadlinePassed())
        assert len(self._swarm.held) == len(self._order) // 2 + len(following)


def node_costs(peers: int, chunks: int, count: int) -> dict[str, float]:
    """Microseconds by event, and of everything for each chunk."""
    clock, manifest = Clock(), manifest_of(chunks)
    loading = Loading(peers, chunks, clock, manifest)
    count = min(count, chunks // 4)
    begin = time.perf_counter()
    loading.run(count)
    whole_us = (time.perf_counter() - begin) / count * 1e6
    return {"peers": peers, "chunks": chunks, **clock.means_us(), "a chunk, in all": whole_us}


# -- the command ----------------------------------------------------------------------------------


def show(title: str, rows: list[dict[str, float]]) -> None:
    """One table: a row for each size, microseconds in the columns."""
    table = Table(*rows[0], title=title)
    for row in rows:
        sizes = [f"{value:,.0f}" for value in list(row.values())[:2]]
        table.add_row(*sizes, *(f"{value:,.1f}" for value in list(row.values())[2:]))
    console.print(table)


def measure(
    nodes: tuple[int, ...], peers: tuple[int, ...], chunks: tuple[int, ...], events: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Print the figures, and write them if a file is named."""
    host = machine()
    tracker = [tracker_costs(n, c, events) for n in nodes for c in chunks]
    loading = [node_costs(p, c, events) for p in peers for c in chunks]
    result = {
        "bench": "scale", "tracker_us": tracker, "node_us": loading, "most_peers": MOST,
        **host,
        "command": " ".join([
            "python -m simulations bench scale",
            *(f"--nodes {n}" for n in nodes), *(f"--peers {p}" for p in peers),
            *(f"--chunks {c}" for c in chunks), f"--events {events}",
        ]),
    }  # fmt: skip
    show("the tracker's core: microseconds an event", tracker)
    show("a node's core: microseconds an event", loading)
    console.print(f"a node has at most {MOST} peers, whatever the number of nodes")
    show_machine(result)
    write_json(result, json_file)
