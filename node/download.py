"""Carries out the swarm's commands, and turns what workers report into its events.

`feed` never waits: an event that a command causes at once is queued behind the current one, so the
swarm is never re-entered.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from urllib.parse import unquote

import trio

from node import jobs
from node.allowance import Allowances
from node.audit import Audit
from node.fields import join_pins
from node.heap import settle
from node.http_get import CHANGED
from node.links import Links
from node.origins.base import Origin
from node.peers import Peers
from node.sealing import NodeSeal
from node.store import ChunkStore
from node.tracker_client import TrackerClient
from node.workers import WorkerPool
from p2p import events, messages
from p2p.errors import OriginError, UsageError
from p2p.ids import Chunk, ManifestId, NodeId, short
from p2p.swarm import Swarm

log = logging.getLogger(__name__)

FetchKey = tuple[Chunk, int]  # the chunk, and the number of a `FetchPart`: 0 is the whole chunk
# The origin may know what to do: redirects, refreshed credentials (S3 says 400), expired redirects.
REFUSALS = frozenset({301, 302, 303, 307, 308, 400, 401, 403, 404, 410})


class Download:
    """One swarm and everything that moves its chunks.

    Args:
      audit: takes a line for each request to the origin.
      seal: takes checksums that workers computed.
      allowances: answers workers that want to ask the origin.
      on_chunk: called with each chunk that is recorded as verified.
      on_complete: called each time the swarm becomes complete.
      on_lost: called with chunks of which the tracker was told that they are not held any more.
    """

    def __init__(
        self,
        swarm: Swarm,
        store: ChunkStore,
        pool: WorkerPool,
        peers: Peers,
        links: Links,
        tracker: TrackerClient,
        origin: Origin | None,
        audit: Audit,
        seal: NodeSeal,
        allowances: Allowances,
        nursery: trio.Nursery,
        on_chunk: Callable[[Chunk], None],
        on_complete: Callable[[], None],
        on_lost: Callable[[tuple[Chunk, ...]], None],
    ) -> None:
        self.swarm = swarm
        self.store = store
        self._pool = pool
        self._peers = peers
        self._links = links
        self._tracker = tracker
        self._origin = origin
        self._on_chunk = on_chunk
        self._on_complete = on_complete
        self._on_lost = on_lost
        self._queue: deque[events.Event] = deque()
        self._feeding = False
        self._changed = trio.Event()
        self._due = inf
        self._failure: Exception | None = None
        self._audit = audit
        self._seal = seal
        self._allowances = allowances
        self._nursery = nursery
        self._dropping: dict[Chunk, int] = {}
        """workers that have not answered yet"""
        self._fetch_load = [0] * pool.count
        self._fetch_worker: dict[FetchKey, int] = {}
        self._fetch_jobs: dict[FetchKey, jobs.FetchJob] = {}
        self.resumed_bytes = 0
        self.origin_requests = 0

    @property
    def manifest_id(self) -> ManifestId:
        """The revision."""
        return self.store.manifest.id

    def feed(self, event: events.Event) -> None:
        """Give the swarm an event and carry out what it commands."""
        self._queue.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._queue:
                now = trio.current_time()
                for command in self.swarm.handle(self._queue.popleft(), now):
                    self._carry_out(command)
        finally:
            self._feeding = False
        if self.swarm.next_deadline() < self._due:
            self._changed.set()

    async def run(self) -> None:
        """Take the workers' reports and watch the swarm's deadlines until cancelled."""
        self._pool.listen(self._reported)
        settle()
        try:
            await self._watch_deadlines()
        finally:
            self._pool.listen(None)

    def _reported(self, worker: int, report: jobs.Report) -> None:
        """Whoever reports is not to blame for what goes wrong here: `run` raises it."""
        try:
            if not self._allowances.take(worker, report, trio.current_time()):
                self._take(report)
        except Exception as error:
            self._failure = error
            self._changed.set()

    async def _watch_deadlines(self) -> None:
        while True:
            self._due = self.swarm.next_deadline()
            self._changed = trio.Event()
            with trio.move_on_at(self._due) if self._due < inf else trio.CancelScope():
                await self._changed.wait()
            if self._failure is not None:
                raise self._failure
            if self.swarm.next_deadline() <= trio.current_time():
                self.feed(events.DeadlinePassed())
                await trio.lowlevel.checkpoint()

    # -- commands ---------------------------------------------------------------------------------

    def _carry_out(self, command: events.Command) -> None:
        match command:
            case events.Ask() | events.AskAhead():
                self._links.ask(command)
            case events.CancelAsk(request, peer, idle):
                self._links.cancel(request, peer, idle=idle)
            case events.Fetch(chunk, start, end):
                self._fetch(chunk, start, end)
            case events.FetchPart(request, chunk, start, end):
                self._fetch(chunk, start, end, request)
            case events.Hurry(chunk, start, end):
                if (worker := self._fetch_worker.get((chunk, 0))) is not None:
                    self._pool.submit(worker, jobs.HurryJob(chunk, start, end))
            case events.Prepare(peer):
                self._links.prepare(peer)
            case events.Drop(chunk):
                self.store.evict(chunk)
                self._dropping[chunk] = self._pool.count
                for worker in range(self._pool.count):
                    self._pool.submit(worker, jobs.DropJob(chunk))
            case events.Rehash(chunk, pin):
                self._pool.submit(chunk % self._pool.count, jobs.RehashJob(chunk, pin))
            case events.Connect(peer, addresses):
                self._peers.connect(peer, addresses)
            case events.Disconnect(peer, reason):
                log.debug("disconnect peer=%s reason=%s", short(peer), reason)
                self._peers.disconnect(peer)
            case events.Complete():
                self._on_complete()
            case _:
                self._tell(command)

    def _tell(self, command: events.Command) -> None:
        """Commands that are messages."""
        match command:
            case events.SendHave(peers, pins):
                self._to_peers(peers, messages.Have(*join_pins(pins)))
            case events.SendLost(peers, chunks):
                self._to_peers(peers, messages.Lost(list(chunks)))
            case events.SendFetching(peers, chunks):
                self._to_peers(peers, messages.Fetching(list(chunks)))
            case events.SendComing(peer, chunk):
                self._peers.send(peer, messages.Coming([chunk]))
            case events.SendPins(peer, pins):
                self._peers.send(peer, messages.PinsKnown(*join_pins(pins)))
            case events.AskPins(None, chunks):
                self._tracker.send(messages.PinsQuery(list(chunks)))
            case events.AskPins(peer, chunks) if peer is not None:
                self._peers.send(peer, messages.PinsQuery(list(chunks)))
            case events.ReportCorruption(peer, chunk):
                log.warning("corrupt chunk=%d from peer=%s: refused", chunk, short(peer))
                self._peers.send(peer, messages.Corrupt(chunk))
                self._tracker.send(messages.PeerReported(peer, chunk))
            case events.ReportLost(chunks):
                self._tracker.send(messages.Lost(list(chunks)))
                self._on_lost(chunks)
            case events.SendWants(needed, soon):
                self._tracker.send(messages.Wants(list(needed), list(soon)))
            case events.ReportFetched(pins):
                known = [self.store.checksums.get(chunk, b"") for chunk, _ in pins]
                checksums = b"".join(known) if all(known) else b""
                self._tracker.send(messages.Fetched(*join_pins(pins), checksums))
            case events.ReturnLease(chunk, text, fatal, retry_after_s, changed):
                self._tracker.send(messages.LeaseFailed(chunk, text, fatal, retry_after_s, changed))

    def _to_peers(self, peers: tuple[NodeId, ...], message: messages.Message) -> None:
        for peer in peers:
            self._peers.send(peer, message)

    # -- the origin -------------------------------------------------------------------------------

    def _fetch(self, chunk: Chunk, start: int, end: int, request: int = 0) -> None:
        if self._origin is None:
            text = "this node knows no origin: give it --origin URL"
            self._fetch_failed(jobs.FetchEnded(chunk, text, True, 0.0, False, request=request))
            return
        worker = min(range(len(self._fetch_load)), key=lambda i: (self._fetch_load[i], i))
        self._fetch_load[worker] += 1
        self._fetch_worker[(chunk, request)] = worker
        self._nursery.start_soon(
            self._submit_fetch, self._origin, (chunk, request), start, end, worker
        )

    async def _submit_fetch(
        self, origin: Origin, key: FetchKey, start: int, end: int, worker: int
    ) -> None:
        """Sign a fetch, which may need fresh credentials, and hand it to a worker."""
        chunk, request = key
        try:
            job = await origin.fetch_job(self.store.manifest, chunk)
        except (OriginError, UsageError) as error:
            fatal = not isinstance(error, OriginError) or error.fatal
            text = str(error)
            self._fetch_failed(jobs.FetchEnded(chunk, text, fatal, 0.0, False, request=request))
            return
        job = replace(job, start=start, end=end, request=request) if end else job
        self._fetch_jobs[key] = job
        self._pool.submit(worker, job)

    async def _refused(self, origin: Origin, job: jobs.FetchJob, ended: jobs.FetchEnded) -> None:
        """A redirect, or credentials that are not good any more: the origin may know a way."""
        if await origin.refused(job, ended):
            key = (job.chunk, job.request)
            worker = self._fetch_worker.get(key)
            if worker is not None:
                await self._submit_fetch(origin, key, job.start, job.end, worker)
        else:
            self._fetch_failed(ended)

    def _fetch_ended(self, key: FetchKey) -> None:
        worker = self._fetch_worker.pop(key, None)
        self._fetch_jobs.pop(key, None)
        if worker is not None:
            self._fetch_load[worker] -= 1

    def _fetch_failed(self, ended: jobs.FetchEnded) -> None:
        self._fetch_ended((ended.chunk, ended.request))
        if ended.no_space:
            log.warning("no space for chunk=%d in the cache dir", ended.chunk)
        else:
            log.warning("origin fetch failed chunk=%d error=%s", ended.chunk, ended.text)
        hint_s, changed = ended.retry_after_s or None, ended.code == CHANGED
        if ended.request:
            self.feed(events.PartFailed(ended.request, ended.text, ended.fatal, hint_s))
        elif ended.no_space:
            self.feed(events.SpaceExhausted(ended.chunk))
        else:
            self.feed(events.FetchFailed(ended.chunk, ended.text, ended.fatal, hint_s, changed))

    # -- reports ----------------------------------------------------------------------------------

    def _take(self, report: jobs.Report) -> None:
        match report:
            case jobs.Got():
                self._got(report)
            case jobs.GotBlocks(request, chunk):
                self._fetch_ended((chunk, request))
                self._links.ended(request)
                self.feed(events.BlocksVerified(request))
            case jobs.Dropped(chunk):
                self._dropped(chunk)
            case jobs.AskEnded():
                self._ask_ended(report)
            case jobs.FetchEnded(chunk=chunk, status=status, request=request):
                job = self._fetch_jobs.get((chunk, request))
                if status in REFUSALS and job is not None and self._origin is not None:
                    self._nursery.start_soon(self._refused, self._origin, job, report)
                else:
                    self._fetch_failed(report)
            case jobs.Requested():
                self.origin_requests += report.status == 206
                self._audit.record(
                    unquote(report.object), report.start, report.end, report.status, report.bytes,
                    round(report.seconds * 1000), report.request_id, report.kind,
                )  # fmt: skip
            case jobs.Damaged(chunk) if self._is_gone(chunk):
                self._seal.computed(chunk, b"")  # it was dropped while it was read
            case jobs.Damaged(chunk):
                log.warning("damaged chunk=%d in the cache: dropped, to be fetched again", chunk)
                self.store.forget(chunk)
                self._seal.computed(chunk, b"")
                self.feed(events.ChunkDamaged(chunk))
            case jobs.Checksummed(chunk, checksum):
                self._seal.computed(chunk, checksum)
            case jobs.LinkClosed(link, peer, _text):
                self._links.closed(link, NodeId(peer))

    def _is_gone(self, chunk: Chunk) -> bool:
        swarm = self.swarm
        return swarm.reading.room.evicts and chunk not in swarm.held and chunk not in swarm.suspects

    def _dropped(self, chunk: Chunk) -> None:
        """A worker has let go of a chunk; its bytes go when all have."""
        self._dropping[chunk] -= 1
        if not self._dropping[chunk]:
            del self._dropping[chunk]
            self.store.punch(chunk)
            self.feed(events.ChunkDropped(chunk))

    def _got(self, report: jobs.Got) -> None:
        source = events.Source(report.source)
        if source is events.Source.ORIGIN:
            self._fetch_ended((report.chunk, report.request))
        if report.request:
            self._links.ended(report.request)
        if source is events.Source.DISK and report.chunk in self.store.suspects:
            self.resumed_bytes += self.store.manifest.extent(report.chunk).length
        self.store.record(report.chunk, report.pin, report.digests, report.checksum)
        self.feed(events.ChunkVerified(report.chunk, source, report.pin, report.request))
        self._on_chunk(report.chunk)

    def _ask_ended(self, report: jobs.AskEnded) -> None:
        if report.why == "failed" and self._links.again(report.request):
            return
        self._links.ended(report.request)
        match report.why:
            case "corrupt":
                self.feed(events.ChunkCorrupt(report.request))
            case "busy":
                self.feed(events.AskRefused(report.request, report.retry_after_s))
            case "not_have":
                self.feed(events.AskRefused(report.request, None))
            case "no_space":
                log.warning("no space for chunk=%d in the cache dir", report.chunk)
                self.feed(events.SpaceExhausted(report.chunk, report.request))
            case _:
                self.feed(events.AskFailed(report.request, report.text))
