"""A data worker: takes jobs, moves bytes, reports. The same loop runs in a process of its own
(`node/apart.py`) or, with `--workers 0`, inside the control process.
"""

import contextlib
import logging
import resource
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from node import jobs
from node.checksums import checksum_function
from node.chunks import Chunks
from node.dial import Dialler, local_ip
from node.downlink import Downlink, Received
from node.fetch import Fetched, Fetcher
from node.permits import Permits
from node.polled import FAILURES, Polled
from node.throttle import DOWNLOAD, UPLOAD, Meter, Throttle
from node.uplink import Served, Uplink
from node.windows import Unsent, Windows
from p2p.checksum import CHECKSUM_BYTES, combine
from p2p.digest import chunk_pin
from p2p.errors import P2PError, RemoteProtocolError, UsageError
from p2p.poller import Poller
from p2p.slots import UploadSlots

log = logging.getLogger(__name__)

UPLINK_STALL_S = 30.0  # a peer that reads nothing for so long is gone
BALANCE_S = 0.1  # so long an idle NIC may wait before it takes work from a busy one

Arrival = tuple[jobs.Job, socket.socket | None]
Send = Callable[[jobs.Report], None]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How much at once and how long; the same for all workers of a node."""

    upload_slots: int = 8
    """transfers at once, in all workers together; 2 to 8 made no difference (probe)"""
    reserved_slots: int = 8
    """for what readers are blocked on: a need has as many pieces"""
    first_byte_s: float = 2.0
    stall_s: float = 2.0
    """no byte for so long: the peer is given up and its verified blocks are kept"""
    figures_s: float = 0.25
    """a lease lives by reported progress, announced every 0.5 s"""
    connections: int = 4
    """requests to the origin at once, in each worker and from each source address"""
    source_ips: tuple[str, ...] = ()
    bind_device: bool = True
    pin: bool = False
    home: str = ""
    """the source address that this worker uses first, and whose NIC it is pinned near"""
    log_path: str = ""
    many: bool = False
    """other workers write to the same files"""


class Worker:
    """The state of one worker: its store, its links, its fetches.

    Args:
      meter: the limits' memory, which all workers of the node share.
      apart: in a process of its own; it sends its figures then. Otherwise they are asked for.
    """

    def __init__(
        self, send: Send, settings: WorkerSettings, meter: Meter, *, apart: bool = True
    ) -> None:
        self._apart = apart
        self._nursery: trio.Nursery | None = None
        self._tell = send
        self._permits = Permits(self._send)
        self._settings = settings
        self._writing = meter.writing if settings.many else contextlib.nullcontext
        self._chunks: Chunks | None = None
        self._fetcher: Fetcher | None = None
        self._slots = UploadSlots(settings.upload_slots, settings.reserved_slots)
        self._fetched = Fetched()
        self._links: dict[str, tuple[Received, Served]] = {}
        """what data connections moved, by local address"""
        self._upload, self._download = Throttle(meter, UPLOAD), Throttle(meter, DOWNLOAD)
        self._downlinks: dict[int, Downlink] = {}
        self._scopes: dict[int, tuple[bytes, trio.CancelScope]] = {}
        self._polled: dict[int, Polled] = {}
        self._poller = Poller()
        self._windows = Windows()
        self._unsent = Unsent()
        self._last: jobs.Figures | None = None

    def _send(self, report: jobs.Report) -> None:
        """Report, with the totals before it: who hears of a chunk knows its bytes."""
        if self._apart and isinstance(report, jobs.Got | jobs.FetchEnded | jobs.AskEnded):
            self._send_figures()
        self._tell(report)

    async def run(self, arrivals: AsyncIterator[Arrival]) -> None:
        """Work until `Stop` or the end of the jobs."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._poller.run)
                nursery.start_soon(self._look_around)
                if len(self._settings.source_ips) > 1:
                    nursery.start_soon(self._balance)
                async for job, sock in arrivals:
                    if isinstance(job, jobs.Stop):
                        break
                    self.take(job, sock)
                nursery.cancel_scope.cancel()
        finally:
            if self._fetcher is not None:
                self._fetcher.close()
            if self._chunks is not None:
                self._chunks.close()

    def take(self, job: jobs.Job, sock: socket.socket | None) -> None:
        """Begin a job; what comes of it is reported."""
        nursery = self._nursery
        assert nursery is not None
        if isinstance(job, jobs.AskJob | jobs.AskAheadJob):
            self._ask(job)
        else:
            self._take(job, sock, nursery)

    def _take(self, job: jobs.Job, sock: socket.socket | None, nursery: trio.Nursery) -> None:
        match job:
            case jobs.OpenModel(directory):
                self._open(directory)
            case jobs.SetLimits(upload, download):
                self._upload.set(upload)
                self._download.set(download)
            case jobs.SetBudget(limited):
                self._permits.limited = limited
            case jobs.Allowed():
                self._permits.answered(job)
            case jobs.AddDownlink() | jobs.AddUplink():
                assert sock is not None
                self._add_link(job, sock, nursery)
            case jobs.CloseLinks(peer):
                for owner, scope in list(self._scopes.values()):
                    if owner == peer:
                        scope.cancel()
            case jobs.CancelJob(request, idle):
                for downlink in self._downlinks.values():
                    with contextlib.suppress(OSError):
                        if downlink.cancel(request, idle=idle):
                            break
            case jobs.Arrived(chunk):
                assert self._chunks is not None
                self._chunks.came(chunk)
            case jobs.FetchJob(chunk=chunk):
                assert self._fetcher is not None
                assert self._chunks is not None
                if not job.request:
                    self._chunks.leave_relays(chunk)
                    self._fetcher.spans.expect(chunk)  # of what is said before it starts
                nursery.start_soon(self._fetcher.fetch, job)
                if job.end:
                    nursery.start_soon(self._fetcher.warm, job)
            case jobs.HurryJob(chunk, start, end):
                assert self._fetcher is not None
                self._fetcher.hurry(chunk, start, end)
            case jobs.DropJob(chunk):
                self._drop(chunk)
            case jobs.RehashJob(chunk, pin):
                nursery.start_soon(self._rehash, chunk, pin)
            case jobs.ChecksumJob():
                nursery.start_soon(self._checksum, job)

    def _open(self, directory: str) -> None:
        try:
            self._chunks = Chunks(Path(directory), self._writing)
        except (OSError, P2PError) as error:
            self._send(jobs.OpenFailed(str(error)))
            return
        settings = self._settings
        self._fetcher = Fetcher(
            self._chunks, self._fetched, self._send, settings.connections, settings.source_ips,
            settings.home, Dialler(bind_device=settings.bind_device), self._download,
            self._permits,
        )  # fmt: skip
        self._send(jobs.Opened(0))

    def _drop(self, chunk: int) -> None:
        """Let go of a chunk that is marked as missing already."""
        if self._chunks is not None:
            self._chunks.dropped(chunk)
        for link in self._polled.values():
            if isinstance(link, Uplink):
                link.drop(chunk)
        self._send(jobs.Dropped(chunk))

    def _ask(self, job: jobs.AskJob | jobs.AskAheadJob) -> None:
        downlink = self._downlinks.get(job.link)
        if downlink is None:
            if isinstance(job, jobs.AskAheadJob):
                asks = job.asks
            else:
                asks = [(job.request, job.chunk, b"")]
            for request, chunk, _ in asks:
                text = "the connection is gone"
                self._send(jobs.AskEnded(request, chunk, "failed", 0.0, text))
            return
        try:
            if isinstance(job, jobs.AskJob):
                downlink.ask(job)
            else:
                downlink.ask_ahead(job.asks)
        except OSError as error:
            if job.link in self._scopes:
                self._scopes[job.link][1].cancel()
            log.debug("request not sent link=%d error=%s", job.link, error)

    def _add_link(
        self, job: jobs.AddDownlink | jobs.AddUplink, sock: socket.socket, nursery: trio.Nursery
    ) -> None:
        """The link counts from now on: the next job may name it before its task has run."""
        assert self._chunks is not None
        scope = trio.CancelScope()
        self._scopes[job.link] = (job.peer, scope)
        try:
            self._start_link(job, sock, scope, nursery)
        except RuntimeError:  # the worker has just stopped, and nobody is told any more
            sock.close()

    def _start_link(
        self,
        job: jobs.AddDownlink | jobs.AddUplink,
        sock: socket.socket,
        scope: trio.CancelScope,
        nursery: trio.Nursery,
    ) -> None:
        assert self._chunks is not None
        received, served = self._links.setdefault(local_ip(sock), (Received(), Served()))
        if isinstance(job, jobs.AddUplink):
            uplink = Uplink(sock, self._chunks, self._slots, served, UPLINK_STALL_S, self._upload)
            nursery.start_soon(self._uplink, job, uplink, sock, scope)
        else:
            settings = self._settings
            downlink = self._downlinks[job.link] = Downlink(
                sock, self._chunks, received, self._send,
                settings.first_byte_s, settings.stall_s, self._download,
            )  # fmt: skip
            nursery.start_soon(self._downlink, job, downlink, sock, scope)

    async def _downlink(
        self,
        job: jobs.AddDownlink,
        downlink: Downlink,
        sock: socket.socket,
        scope: trio.CancelScope,
    ) -> None:
        text = await self._hold(job.link, job.peer, sock, scope, downlink)
        del self._downlinks[job.link]
        downlink.fail(text)
        self._send(jobs.LinkClosed(job.link, job.peer, text))

    async def _uplink(
        self, job: jobs.AddUplink, uplink: Uplink, sock: socket.socket, scope: trio.CancelScope
    ) -> None:
        text = await self._hold(job.link, job.peer, sock, scope, uplink)
        uplink.close()
        self._send(jobs.LinkClosed(job.link, job.peer, text))

    async def _hold(
        self,
        number: int,
        peer: bytes,
        sock: socket.socket,
        scope: trio.CancelScope,
        link: Polled,
    ) -> str:
        """Run a link to its end; returns why it ended."""
        text = "closed"
        with scope, sock:
            self._polled[number] = link
            try:
                await link.run(self._poller)
            except FAILURES as error:
                slow = isinstance(error, trio.TooSlowError)
                text = "no byte came in time" if slow else str(error)
                if isinstance(error, RemoteProtocolError):
                    log.warning("data connection closed peer=%s error=%s", peer.hex()[:8], error)
            finally:
                del self._scopes[number], self._polled[number]
        return text

    async def _rehash(self, chunk: int, pin: bytes) -> None:
        assert self._chunks is not None
        blocks = self._chunks.manifest.block_count(chunk)
        digests = []
        for block in range(blocks):
            digests.append(self._chunks.check(chunk, block))
            await trio.lowlevel.checkpoint()
        if chunk_pin(digests) != pin:
            self._chunks.map.set_chunk(chunk, blocks, 0)
            self._send(jobs.Damaged(chunk))
            return
        for block, digest in enumerate(digests):
            self._chunks.store_digest(chunk, block, digest)
        self._chunks.map.set_chunk(chunk, blocks, 1)
        self._send(jobs.Got(chunk, "disk", 0, pin, b"".join(digests), b""))

    async def _checksum(self, job: jobs.ChecksumJob) -> None:
        """Only of bytes that match their digests: rotten ones would condemn a good file."""
        assert self._chunks is not None
        blocks, parts = self._chunks.manifest.block_count(job.chunk), []
        try:
            crc = checksum_function(job.kind)
        except UsageError:  # a node that reads from peers alone may lack the function
            self._send(jobs.Checksummed(job.chunk, b""))
            return
        for block in range(blocks):
            data = self._chunks.verified_block(job.chunk, block)
            if data is None:
                self._chunks.map.set_chunk(job.chunk, blocks, 0)
                self._send(jobs.Damaged(job.chunk))
                return
            parts.append((crc(data), len(data)))
            await trio.lowlevel.checkpoint()
        checksum = combine(job.kind, parts).to_bytes(CHECKSUM_BYTES, "big")
        self._send(jobs.Checksummed(job.chunk, checksum))

    async def _balance(self) -> None:
        while True:
            await trio.sleep(BALANCE_S)
            if self._fetcher is not None:
                self._fetcher.spans.balance(trio.current_time())

    async def _look_around(self) -> None:
        """Now and then: figures, links that stall, receive windows."""
        while True:
            if self._apart:
                self._send_figures()
            busy = [downlink.busy_socket for downlink in self._downlinks.values()]
            received = sum(one.bytes for one, _ in self._links.values()) + self._fetched.bytes
            now = trio.current_time()
            for link in list(self._polled.values()):
                link.check(now)
            self._windows.fit([sock for sock in busy if sock is not None], received, now)
            uplinks = [link.sock for link in self._polled.values() if isinstance(link, Uplink)]
            sent = sum(served.bytes for _, served in self._links.values())
            self._unsent.fit(uplinks, sent, now)
            self._slots.rate_bytes_s = self._unsent.rate_bytes_s
            self._slots.coming_bytes_s = self._windows.rate_bytes_s
            self._slots.go_on()
            await trio.sleep(self._settings.figures_s)

    def _send_figures(self) -> None:
        """Tell the totals, if they changed."""
        figures, last = self.figures(), self._last
        moved = last is None or (
            (figures.origin_bytes, figures.peer_bytes, figures.served_bytes, figures.fetching)
            != (last.origin_bytes, last.peer_bytes, last.served_bytes, last.fetching)
        )
        if moved:
            self._last = figures
            self._tell(figures)

    def figures(self) -> jobs.Figures:
        """The totals now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        received = [received for received, _ in self._links.values()]
        return jobs.Figures(
            self._fetched.bytes,
            sum(one.bytes for one in received),
            sum(served.bytes for _, served in self._links.values()),
            sum(one.duplicate_bytes for one in received) + self._fetched.duplicate_bytes,
            self._slots.busy_count,
            usage.ru_utime + usage.ru_stime,
            [[chunk, count] for chunk, count in self._fetched.under_way.items()],
            self._nics(),
        )

    def _nics(self) -> dict[str, list[int]]:
        """Bytes in and out by source address."""
        found = {ip: [0, 0] for ip in self._settings.source_ips}
        for ip, (received, served) in self._links.items():
            if ip in found:
                found[ip] = [received.bytes, served.bytes]
        for source in self._fetcher.sources.all if self._fetcher else ():
            if source.ip in found:
                found[source.ip][0] += source.bytes
        return found
