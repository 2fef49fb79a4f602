"""`p2p-node join`, whole: builds the concrete parts, ties them together, and ends them in order."""

import logging
import os
import random
import signal
import time
from collections import Counter
from functools import partial

import trio

from node import jobs
from node.adopt import adopt_existing
from node.config import JoinConfig, Timeouts
from node.download import Download
from node.links import Links
from node.metrics import NodeCollector
from node.origins.base import Origin, default_model, open_origin
from node.peers import Peers, address_text, bound_address, open_listeners, split_pins
from node.progress import show_progress
from node.publish import ModelDir
from node.status import serve_status
from node.store import Cache, ChunkStore
from node.tracker_client import TrackerClient
from node.view import View
from node.worker import WorkerSettings
from node.workers import WorkerPool
from p2p import events, messages
from p2p.errors import OriginError, P2PError, StoreFull, UsageError
from p2p.exposure import check_exposure
from p2p.ids import NodeId, short
from p2p.manifest import Manifest, check_sizes
from p2p.swarm import Limits, Swarm
from p2p.units import format_size
from p2p.web import serve_web

log = logging.getLogger(__name__)


class Daemon:
    """One node of one model, from the first hello to the last bye."""

    def __init__(self, config: JoinConfig) -> None:
        self.config = config
        self.timeouts = Timeouts()
        self.node = NodeId(os.urandom(16))
        self.rng = random.Random(self.node)
        self.origin: Origin | None = open_origin(config.origin) if config.origin else None
        self.cache = Cache.open(config.cache_dir)
        self.pool = WorkerPool(config.workers, WorkerSettings())
        self.peers = Peers(self.node, config.token, self.timeouts)
        self.tracker = TrackerClient(
            config.trackers, self.node, config.token, self._join, self, self.timeouts
        )
        self.view = View(config, self.node, self.pool, self.peers, self.tracker)
        self.report = self.view.report
        self.manifest: Manifest | None = None
        self.confirmed = False
        self.store: ChunkStore | None = None
        self.download: Download | None = None
        self.model_dir: ModelDir | None = None
        self.nursery: trio.Nursery
        self.exit_code = 0
        self._published: set[int] = set()
        self._to_publish, self._publish_queue = trio.open_memory_channel[int](100_000)
        self._announced: bytes | None = None
        self._complete = trio.Event()
        self._all_published = trio.Event()
        self._swarm_done = trio.Event()
        self._tracker_pins: dict[int, bytes] = {}
        self._pins_came = trio.Event()

    # -- start ------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until complete (`--until-complete`), told to stop, or failed; returns the exit code.

        Raises:
          P2PError: what cannot be mended by waiting, in one line.
        """
        config = self.config
        try:
            listeners = await open_listeners(*config.listen)
        except OSError as error:
            raise P2PError(
                f"cannot listen on {address_text(config.listen)}: {error.strerror or error}"
            ) from error
        bound = bound_address(listeners)
        advertise = config.advertise or bound
        check_exposure([bound[0], advertise[0]], config.token)
        self.peers.advertised = [address_text(advertise)]
        try:
            async with trio.open_nursery() as self.nursery:
                await self.nursery.start(self._watch_signals)
                await self.nursery.start(self.peers.serve, listeners)
                await self.nursery.start(serve_status, config.cache_dir, self.view.status)
                if config.http is not None:
                    self.view.http_at = await self.nursery.start(
                        serve_web,
                        config.http,
                        self.view.status,
                        lambda: self.report.complete,
                        NodeCollector(self.view.status),
                    )
                log.info("node=%s peers at %s", short(self.node), address_text(bound))
                self.nursery.start_soon(self.pool.run)
                self.nursery.start_soon(self.tracker.run)
                self.nursery.start_soon(show_progress, self.view.snapshot, config.quiet)
        finally:
            self.view.write_report()
            if self.store is not None:
                self.store.close()
            self.cache.close()
        return self.exit_code

    def _join(self) -> messages.Join:
        manifest = self.manifest or self._manifest_on_disk()
        url = self.origin.url if self.origin else ""
        return messages.Join(
            self.config.model or (default_model(url) if url else ""),
            url,
            self.peers.advertised,
            manifest.encode() if manifest else b"",
            self.confirmed and self.manifest is not None,
            self.config.chunk_bytes,
            self.config.block_bytes,
        )

    def _manifest_on_disk(self) -> Manifest | None:
        """The newest one of the model that was asked for."""
        wanted = self.config.model or (default_model(self.origin.url) if self.origin else None)
        for manifest in self.cache.manifests():
            if wanted is None or manifest.model == wanted:
                return manifest
        return None

    async def _list(self, model: str, url: str) -> None:
        """We hold the listing lease."""
        try:
            if self.origin is None:
                if not url:
                    raise UsageError(
                        "nobody named an origin: use --origin URL here or at the tracker"
                    )
                self.origin = open_origin(url)
            manifest = await self.origin.list(
                model, self.config.chunk_bytes, self.config.block_bytes
            )
        except P2PError as error:
            self.tracker.send(messages.ListingFailed(str(error)))
            fatal = error.fatal if isinstance(error, OriginError) else True
            if fatal and self.download is None and self._manifest_on_disk() is None:
                with trio.CancelScope(shield=True):
                    await self.tracker.say_bye(0.5)
                raise
            log.warning("the origin cannot be listed: %s", error)
            return
        self.tracker.send(messages.Listing(manifest.encode()))

    async def _start(self, manifest: Manifest) -> None:
        """The manifest is known: open the store, adopt what is there, and begin."""
        config = self.config
        self.manifest = self.view.manifest = manifest
        check_sizes(manifest.chunk_bytes, manifest.block_bytes)
        if (manifest.chunk_bytes, manifest.block_bytes) != (config.chunk_bytes, config.block_bytes):
            log.warning(
                "the swarm uses chunks of %s in blocks of %s: ours are overruled",
                format_size(manifest.chunk_bytes), format_size(manifest.block_bytes),
            )  # fmt: skip
        if self.origin is None and manifest.origin:
            self.origin = open_origin(manifest.origin)
        self.store = store = ChunkStore.open(self.cache, manifest)
        if lacking := store.lacking_bytes():
            log.warning("cache dir %s lacks %s for this model: going on until it is full",
                        config.cache_dir, format_size(lacking))  # fmt: skip
        self.report.manifest_id = manifest.id.hex()
        self.report.model = manifest.model
        self.report.bytes, self.report.chunks = manifest.total_bytes, manifest.chunk_count
        for worker in range(self.pool.count):
            self.pool.submit(worker, jobs.OpenModel(str(store.directory)))
        resumed = sum(manifest.extent(chunk).length for chunk in store.held)
        if config.model_dir is not None:
            self.model_dir = ModelDir(config.model_dir, manifest, config.replace)
            resumed += await self._adopt(store, self.model_dir)
        swarm = Swarm(
            manifest, self.node, store.held, dict(store.suspects), dict(store.pins),
            self.rng, Limits(),
        )  # fmt: skip
        links = Links(self.pool, self.peers.dial_data, self._feed, self.nursery)
        self.download = self.view.download = Download(
            swarm, store, self.pool, self.peers, links, self.tracker, self.origin,
            self._on_chunk, self._on_complete,
        )  # fmt: skip
        self.download.resumed_bytes = resumed
        self.peers.attach(
            manifest.id, manifest.chunk_count, lambda: bytes(swarm.held), self._feed, links
        )
        self._missing = Counter(
            manifest.extent(chunk).file
            for chunk in range(manifest.chunk_count)
            if chunk not in swarm.held
        )
        self.nursery.start_soon(self.download.run)
        self.nursery.start_soon(self._heartbeats)
        if self.model_dir is not None:
            self.nursery.start_soon(self._publish_files)
            for file in range(len(manifest.files)):
                if not self._missing[file]:
                    self._to_publish.send_nowait(file)
        if self._tracker_pins:
            self._feed(events.PinsLearned(tuple(self._tracker_pins.items())))
        if self.tracker.connected:
            self._announce()
            self._feed(events.TrackerFound())
        self._feed(events.DeadlinePassed())
        self.nursery.start_soon(self._finish)

    async def _adopt(self, store: ChunkStore, model_dir: ModelDir) -> int:
        """Files that are there already and match pins that the swarm knows; returns their bytes."""
        candidates = model_dir.check(store)
        if not candidates:
            return 0
        chunks = [
            chunk
            for file in sorted(candidates)
            for chunk in store.manifest.chunks_of(file)
            if chunk not in store.held
        ]
        self._announce_empty(store)
        for start in range(0, len(chunks), messages.MAX_BATCH):
            self._pins_came = trio.Event()
            self.tracker.send(messages.PinsQuery(chunks[start : start + messages.MAX_BATCH]))
            with trio.move_on_after(5):
                await self._pins_came.wait()
        pins = {chunk: self._tracker_pins[chunk] for chunk in chunks if chunk in self._tracker_pins}
        log.info("hashing existing files in the model dir: %d chunks", len(pins))
        adopted = await adopt_existing(self.pool, store, candidates, pins, self.config.replace)
        self.view.adopted_bytes = adopted.read_bytes
        return adopted.adopted_bytes

    def _announce_empty(self, store: ChunkStore) -> None:
        """Keep the session alive, and ask for no lease, while existing files are hashed."""
        self._announced = bytes(store.held)
        self.tracker.send(messages.Announce(self._announced, [], [], 0, 0, 0, 0))

    # -- the tracker ------------------------------------------------------------------------------

    def _feed(self, event: events.Event) -> None:
        if self.download is not None:
            self.download.feed(event)

    def tracker_lost(self) -> None:
        """The session ended."""
        self._announced = None
        self._feed(events.TrackerLost())

    def tracker_message(self, message: messages.Message) -> None:
        """One message of the tracker."""
        match message:
            case messages.ListOrigin(model, url):
                self.nursery.start_soon(self._list, model, url)
            case messages.Joined():
                self._joined(message)
            case messages.Peers(nodes, addresses):
                offered = zip(nodes, addresses, strict=False)
                self._feed(
                    events.PeersOffered(tuple((NodeId(node), tuple(at)) for node, at in offered))
                )
            case messages.PeersGone(nodes):
                self._feed(events.PeersWithdrawn(tuple(NodeId(node) for node in nodes)))
            case messages.Leases(chunks, started_at):
                self.view.started_at = started_at or self.view.started_at
                if chunks:
                    self._feed(events.LeasesGranted(tuple(chunks)))
            case messages.PinsKnown(chunks, pins):
                self._pins_known(chunks, pins)
            case messages.PinsWanted(chunks):
                self._send_pins(chunks)
            case messages.OnlyCopies(_, incomplete):
                if incomplete == 0:
                    self._swarm_done.set()
            case messages.OriginFailed(text) if not self.report.complete:
                raise P2PError(text)

    def _joined(self, message: messages.Joined) -> None:
        if self.report.joined_at is None:
            self.report.joined_at = time.time()
        self.confirmed = self.confirmed or message.confirmed
        if self.manifest is None:
            known = [m for m in self.cache.manifests() if m.id == message.manifest_id]
            manifest = Manifest.decode(message.manifest) if message.manifest else known[0]
            self.nursery.start_soon(self._start, manifest)
            return
        if message.manifest_id != self.manifest.id:
            raise P2PError(
                f"the swarm moved to revision {message.manifest_id.hex()[:8]} of "
                f"{self.manifest.model!r} (the origin's files changed): run join again"
            )
        if self.download is not None:
            self._announce()
            self._feed(events.TrackerFound())

    def _pins_known(self, chunks: list[int], pins: bytes) -> None:
        if self.manifest is None:
            return
        pairs = split_pins(chunks, pins, self.manifest.chunk_count)
        self._pins_came.set()
        if self.download is None:
            self._tracker_pins.update(pairs)
        else:
            self._feed(events.PinsLearned(pairs))

    def _send_pins(self, chunks: list[int]) -> None:
        if self.download is None:
            return
        pins = self.download.swarm.pins
        known = [chunk for chunk in chunks if chunk in pins]
        for start in range(0, len(known), messages.MAX_BATCH):
            batch = known[start : start + messages.MAX_BATCH]
            joined = b"".join(pins[chunk] for chunk in batch)
            self.tracker.send(messages.PinsReport(batch, joined))

    async def _heartbeats(self) -> None:
        assert self.download is not None
        while True:
            busy = not self.download.swarm.held.complete or self.download.swarm.fetching
            await trio.sleep(self.timeouts.heartbeat_s if busy else self.timeouts.idle_heartbeat_s)
            if self.tracker.connected:
                self._announce()

    def _announce(self) -> None:
        assert self.download is not None
        swarm, totals = self.download.swarm, self.pool.totals()
        bits = bytes(swarm.held)
        received = {lease[0]: lease[1] for lease in totals.fetching}
        fetching = list(swarm.fetching)
        statistics = swarm.statistics()
        self.tracker.send(
            messages.Announce(
                bits if bits != self._announced else b"",
                fetching,
                [received.get(chunk, 0) for chunk in fetching],
                swarm.wanted_leases if self.origin is not None else 0,
                self.view.origin_bytes,
                totals.peer_bytes,
                statistics.corrupt_chunks,
                len(self.download.swarm.suspects),
            )
        )
        self._announced = bits

    # -- the end ----------------------------------------------------------------------------------

    def _on_chunk(self, chunk: int) -> None:
        assert self.store is not None
        assert self.manifest is not None
        file = self.manifest.extent(chunk).file
        if self.store.file_complete(file) and file not in self._published:
            self.store.stamp(file)
            if self.model_dir is not None:
                self._to_publish.send_nowait(file)

    def _on_complete(self) -> None:
        if self.report.completed_at is None:
            self.report.completed_at = time.time()
        self._complete.set()

    async def _publish_files(self) -> None:
        """Give complete files their final names; a copy to another filesystem takes a thread."""
        assert self.model_dir is not None
        assert self.store is not None
        async for file in self._publish_queue:
            if file not in self._published:
                path = self.store.file_path(file)
                publish = partial(self.model_dir.publish, file, path)
                while True:
                    try:
                        await trio.to_thread.run_sync(publish)
                        break
                    except StoreFull as error:
                        log.warning("%s: trying again", error)
                        await trio.sleep(self.timeouts.space_retry_s)
                self._published.add(file)
                if len(self._published) == len(self.model_dir.manifest.files):
                    self._all_published.set()

    async def _finish(self) -> None:
        """Wait for the last chunk and the last file; then leave, if that was asked for."""
        assert self.manifest is not None
        await self._complete.wait()
        if self.model_dir is not None:
            await self._all_published.wait()
        self.report.complete = True
        self.view.write_report()
        log.info("complete model=%s bytes=%d", self.manifest.model, self.manifest.total_bytes)
        if not self.config.until_complete:
            return
        with trio.move_on_after(self.config.linger_s):
            while not self._swarm_done.is_set():
                self.tracker.send(messages.Leaving())
                with trio.move_on_after(1.0):
                    await self._swarm_done.wait()
        await self._drain()

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            task_status.started()
            async for number in received:
                log.info("signal %d: leaving", number)
                if self.config.until_complete and not self.report.complete:
                    self.exit_code = 128 + number
                await self._drain()

    async def _drain(self) -> None:
        """Say bye, stop the workers, and end everything."""
        with trio.move_on_after(self.timeouts.drain_s):
            self.peers.say_bye()
            await self.tracker.say_bye(0.5)
            await trio.sleep(0.05)
        self.nursery.cancel_scope.cancel()
