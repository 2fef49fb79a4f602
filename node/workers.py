"""The pool of data workers: starts them, restarts them, and answers for those that died."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from math import inf

import trio

from node import jobs
from node.apart import arguments
from node.datagrams import Datagrams
from node.throttle import Meter
from node.worker import Arrival, Worker, WorkerSettings
from p2p.errors import StoreError
from p2p.rates import RateLimits

log = logging.getLogger(__name__)

QUICK_DEATH_S = 2.0
QUICK_DEATHS = 5
STOP_S = 1.0

Listener = Callable[[int, jobs.Report], None]
NO_FIGURES = jobs.Figures(0, 0, 0, 0, 0, 0.0, [])


def add_nics(one: dict[str, list[int]], other: dict[str, list[int]]) -> dict[str, list[int]]:
    """Both, added up."""
    nothing = [0, 0]
    return {
        ip: [x + y for x, y in zip(one.get(ip, nothing), other.get(ip, nothing), strict=True)]
        for ip in {**one, **other}
    }


def _add(one: jobs.Figures, other: jobs.Figures) -> jobs.Figures:
    return jobs.Figures(
        one.origin_bytes + other.origin_bytes,
        one.peer_bytes + other.peer_bytes,
        one.served_bytes + other.served_bytes,
        one.duplicate_bytes + other.duplicate_bytes,
        one.busy_count + other.busy_count,
        one.cpu_s + other.cpu_s,
        one.fetching + other.fetching,
        add_nics(one.nics, other.nics),
    )


class _Handle:
    """One worker as the pool sees it: what it was given, and what it has not answered."""

    def __init__(self) -> None:
        self.queue: deque[Arrival] = deque()
        self.filled = trio.Event()
        self.figures = NO_FIGURES
        self.past = NO_FIGURES
        self.limits: jobs.SetLimits | None = None
        self.budget: jobs.SetBudget | None = None
        self.datagrams: Datagrams | None = None
        """the way to the one in a process of its own"""
        self.worker: Worker | None = None
        """the one in this process, from its first job on"""
        self.model: jobs.OpenModel | None = None
        self.links: dict[int, bytes] = {}
        self.asks: dict[int, int] = {}
        """chunks by request"""
        self.fetches: dict[tuple[int, int], None] = {}
        """(chunk, request)"""
        self.rehashes: dict[int, jobs.RehashJob] = {}
        self.checksums: dict[int, jobs.ChecksumJob] = {}
        self.drops: dict[int, jobs.DropJob] = {}

    def put(self, job: jobs.Job, sock: socket.socket | None) -> None:
        """Queue a job and remember what it owes."""
        match job:
            case jobs.SetLimits():
                self.limits = job
            case jobs.SetBudget():
                self.budget = job
            case jobs.OpenModel():
                self.model = job
            case jobs.AddDownlink(link, peer) | jobs.AddUplink(link, peer):
                self.links[link] = peer
            case jobs.AskJob(request=request, chunk=chunk):
                self.asks[request] = chunk
            case jobs.AskAheadJob(asks=asks):
                self.asks.update((request, chunk) for request, chunk, _ in asks)
            case jobs.FetchJob(chunk=chunk, request=request):
                self.fetches[(chunk, request)] = None
            case jobs.RehashJob():
                self.rehashes[job.chunk] = job
            case jobs.ChecksumJob():
                self.checksums[job.chunk] = job
            case jobs.DropJob():
                self.drops[job.chunk] = job
        if self.worker is not None:
            self.worker.take(job, sock)
            return
        if self.queue or not self._try(job, sock):
            self.queue.append((job, sock))
            self.filled.set()

    def _try(self, job: jobs.Job, sock: socket.socket | None) -> bool:
        """Send a job to the worker's process, if it can be sent now."""
        with contextlib.suppress(OSError):  # the worker has died: `receive` sees it too
            if self.datagrams is not None and self.datagrams.send(jobs.encode(job), sock):
                if sock is not None:
                    sock.close()
                return True
        return False

    async def write(self, datagrams: Datagrams) -> None:
        """Send what had to wait, for ever."""
        self.datagrams = datagrams
        while True:
            while self.queue:
                if self._try(*self.queue[0]):
                    self.queue.popleft()
                else:
                    await datagrams.room()
            self.filled = trio.Event()
            await self.filled.wait()

    def settle(self, report: jobs.Report) -> None:
        """A report came: strike what it answers."""
        match report:
            case jobs.Figures():
                self.figures = report
            case jobs.Got(chunk=chunk, source=source, request=request):
                self.asks.pop(request, None)
                if source == "origin":
                    self.fetches.pop((chunk, request), None)
                elif source == "disk":
                    self.rehashes.pop(chunk, None)
            case jobs.AskEnded(request=request):
                self.asks.pop(request, None)
            case jobs.GotBlocks(request, chunk):
                self.asks.pop(request, None)
                self.fetches.pop((chunk, request), None)
            case jobs.Dropped(chunk):
                self.drops.pop(chunk, None)
            case jobs.FetchEnded(chunk=chunk, request=request):
                self.fetches.pop((chunk, request), None)
            case jobs.Damaged(chunk):
                self.rehashes.pop(chunk, None)
                self.checksums.pop(chunk, None)
            case jobs.Checksummed(chunk=chunk):
                self.checksums.pop(chunk, None)
            case jobs.LinkClosed(link=link):
                self.links.pop(link, None)

    def died(self) -> list[jobs.Report]:
        """Answers to everything that the dead worker owed; hashing is simply done again."""
        text = "a data worker died"
        lost: list[jobs.Report] = [
            jobs.AskEnded(request, chunk, "failed", 0.0, text)
            for request, chunk in self.asks.items()
        ]
        lost += [
            jobs.FetchEnded(chunk, text, False, 0.0, False, request=request)
            for chunk, request in self.fetches
        ]
        lost += [jobs.LinkClosed(link, peer, text) for link, peer in self.links.items()]
        lost += [jobs.Dropped(chunk) for chunk in self.drops]
        again: list[jobs.Job] = [*self.rehashes.values(), *self.checksums.values()]
        for _, sock in self.queue:
            if sock is not None:
                sock.close()
        self.queue.clear()
        self.asks, self.fetches, self.links, self.drops = {}, {}, {}, {}
        self.past = _add(self.past, self.figures)
        self.past.fetching.clear()
        self.figures = NO_FIGURES
        for setting in (self.limits, self.budget):
            if setting is not None:
                self.put(setting, None)
        if self.model is not None:
            self.put(self.model, None)
        for job in again:
            self.put(job, None)
        return lost


class WorkerPool:
    """`count` workers; `reports` gives (worker, report) in the order they came.

    Args:
      workers: processes; 0 runs one worker inside this process.
      limits: of all workers together; see `set_limits`.
    """

    def __init__(
        self, workers: int, settings: WorkerSettings, limits: RateLimits | None = None
    ) -> None:
        self.count = max(1, workers)
        self._inline = workers == 0
        slots = -(-settings.upload_slots // self.count)
        self._settings = replace(settings, upload_slots=slots, many=self.count > 1)
        self._handles = [_Handle() for _ in range(self.count)]
        self._sender, self.reports = trio.open_memory_channel[tuple[int, jobs.Report]](inf)
        self._listener: Listener | None = None
        self.pids: list[int | None] = [None] * self.count
        self._meter = Meter()
        self.set_limits(limits or RateLimits())

    @property
    def homes(self) -> dict[str, int]:
        """Source addresses with a worker that is pinned near them."""
        found: dict[str, int] = {}
        for index in range(self.count):
            if not self._inline and (home := self._settings_of(index).home):
                found.setdefault(home, index)
        return found

    def submit(self, worker: int, job: jobs.Job, sock: socket.socket | None = None) -> None:
        """Queue a job, with a socket to hand over if it has one. Never waits."""
        self._handles[worker].put(job, sock)

    def listen(self, listener: Listener | None) -> None:
        """Call this with each report from now on, and with those that wait, instead of giving them
        to `reports`. It must not raise; None ends it."""
        self._listener = listener
        if listener is not None:
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    listener(*self.reports.receive_nowait())

    def set_limits(self, limits: RateLimits) -> None:
        """From now on; for workers that are restarted, too."""
        self.limits = limits
        for worker in range(self.count):
            self.submit(worker, jobs.SetLimits(limits.upload_bytes_s, limits.download_bytes_s))

    def totals(self) -> jobs.Figures:
        """Figures of all workers, those that died included. With no processes, no CPU time: it is
        this process's own."""
        total = NO_FIGURES
        for handle in self._handles:
            if handle.worker is not None:
                handle.figures = handle.worker.figures()
            total = _add(total, _add(handle.past, handle.figures))
        if self._inline:
            return jobs.Figures(
                total.origin_bytes, total.peer_bytes, total.served_bytes, total.duplicate_bytes,
                total.busy_count, 0.0, total.fetching, total.nics,
            )  # fmt: skip
        return total

    async def run(self) -> None:
        """Keep the workers running until cancelled; then stop them.

        Raises:
          StoreError: a worker cannot be kept alive.
        """
        try:
            async with trio.open_nursery() as nursery:
                for index in range(self.count):
                    nursery.start_soon(self._run_inline if self._inline else self._keep, index)
        finally:
            self._meter.close()

    def _report(self, index: int, report: jobs.Report) -> None:
        self._handles[index].settle(report)
        if self.count > 1 and isinstance(report, jobs.Got):
            for other in range(self.count):
                if other != index:
                    self.submit(other, jobs.Arrived(report.chunk))
        if isinstance(report, jobs.OpenFailed):
            raise StoreError(f"data worker: {report.text}")
        if not isinstance(report, jobs.Figures | jobs.Opened):
            self._pass_on(index, report)

    def _pass_on(self, index: int, report: jobs.Report) -> None:
        if self._listener is not None:
            self._listener(index, report)
        else:
            self._sender.send_nowait((index, report))

    async def _run_inline(self, index: int) -> None:
        handle = self._handles[index]

        async def arrivals() -> AsyncIterator[Arrival]:
            while True:
                while handle.queue:
                    yield handle.queue.popleft()
                handle.worker = worker  # from here on jobs go to it at once
                await trio.sleep_forever()

        worker = Worker(
            lambda report: self._report(index, report), self._settings, self._meter, apart=False
        )
        self.pids[index] = os.getpid()
        try:
            await worker.run(arrivals())
        finally:
            handle.figures, handle.worker = worker.figures(), None

    async def _keep(self, index: int) -> None:
        deaths = 0
        while True:
            begin = trio.current_time()
            await self._run_process(index)
            deaths = deaths + 1 if trio.current_time() - begin < QUICK_DEATH_S else 1
            if deaths >= QUICK_DEATHS:
                raise StoreError("a data worker died five times in a row: see its messages above")
            log.warning("data worker %d died: its transfers are lost, it is restarted", index)
            for report in self._handles[index].died():
                self._pass_on(index, report)
            await trio.sleep(0.05 * deaths)

    def _settings_of(self, index: int) -> WorkerSettings:
        settings = self._settings
        if not settings.pin or not settings.source_ips:
            return settings
        return replace(settings, home=settings.source_ips[index % len(settings.source_ips)])

    async def _run_process(self, index: int) -> None:
        """One life of one worker process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            process = await trio.lowlevel.open_process(
                [
                    sys.executable, "-m", "node.apart", str(theirs.fileno()),
                    *arguments(self._settings_of(index)), str(self._meter.descriptor),
                ],
                pass_fds=[theirs.fileno(), self._meter.descriptor],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.pids[index] = process.pid
        datagrams = Datagrams(ours)
        handle = self._handles[index]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle.write, datagrams)
                while messages := await datagrams.receive():
                    for data, _ in messages:
                        self._report(index, jobs.decode(data))  # type: ignore[arg-type]
                nursery.cancel_scope.cancel()
        finally:
            handle.datagrams = None
            datagrams.close()  # the worker sees the end of its jobs, and stops
            with trio.CancelScope(shield=True):
                with trio.move_on_after(STOP_S):
                    await process.wait()
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                    await process.wait()
            self.pids[index] = None
