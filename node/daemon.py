"""`p2p-node join`, whole: builds the concrete parts, ties them together, and ends them in order."""

import logging
import os
import random
import signal
import time
from contextlib import closing
from dataclasses import replace

import trio

from node import jobs
from node.adopt import adopt_existing
from node.allowance import Allowances
from node.announcer import Announcer
from node.attach import Attach
from node.audit import Audit
from node.config import JoinConfig, Timeouts
from node.cutoff import tell_lost
from node.delivery import Delivery
from node.demand import Demand
from node.dial import Dialler
from node.download import Download
from node.fields import split_pins
from node.holding import check, holding_of
from node.inherit import inherit, remove_older
from node.links import Links
from node.nics import limits_for
from node.origins.base import Origin, default_model, open_origin
from node.peers import Peers, bound_text
from node.progress import show_progress
from node.publish import ModelDir
from node.report import Report
from node.sealing import NodeSeal
from node.status import serve_status
from node.store import Cache, ChunkStore
from node.tracker_client import TrackerClient
from node.view import View
from node.worker import WorkerSettings
from node.workers import WorkerPool
from p2p import events, messages
from p2p.errors import OriginError, P2PError, StoreError, UsageError
from p2p.ids import NodeId, short
from p2p.manifest import Manifest, check_sizes
from p2p.swarm import Swarm
from p2p.units import format_size

log = logging.getLogger(__name__)


async def run(config: JoinConfig) -> int:
    """Hold a model, and its next revisions as far as they are to be followed; the exit code.

    Raises:
      P2PError: what cannot be mended by waiting, in one line.
    """
    audit, past = Audit(config.audit), Report()
    with closing(audit):
        while True:
            daemon = Daemon(config, audit, past)
            code = await daemon.run()
            if not daemon.moved:
                return code
            past, config = daemon.report, replace(config, limits=daemon.pool.limits)


class Daemon:
    """One node of one revision of a model, from the first hello to the last bye.

    Args:
      past: figures of earlier revisions in this process.
    """

    def __init__(self, config: JoinConfig, audit: Audit, past: Report) -> None:
        self.config = config
        self.audit = audit
        self.moved = False
        self.timeouts = Timeouts()
        self.node = NodeId(os.urandom(16))
        self.rng = random.Random(self.node)
        self.origin: Origin | None = None
        if config.origin:
            self.origin = self._open_origin(config.origin)
        self.cache = Cache.open(config.cache_dir)
        settings = WorkerSettings(
            connections=config.connections,
            source_ips=config.source_ips,
            bind_device=config.bind_device,
            pin=config.pin_workers,
            log_path=str(config.log_path or ""),
        )
        self.pool = WorkerPool(config.workers, settings, config.limits)
        self.peers = Peers(
            self.node, config.token, self.timeouts, config.source_ips,
            Dialler(bind_device=config.bind_device),
        )  # fmt: skip
        self.tracker = TrackerClient(
            config.trackers, self.node, config.token, self._join, self, self.timeouts
        )
        self.allowances = Allowances(self.pool.count, self.pool.submit, self.tracker.send)
        self.view = View(config, self.node, self.pool, self.peers, self.tracker, past)
        self.report = self.view.report
        self.manifest: Manifest | None = None
        self.confirmed = self._waiting = False
        self.store: ChunkStore | None = None
        self.download: Download | None = None
        self.model_dir: ModelDir | None = None
        self.seal: NodeSeal | None = None
        self.delivery: Delivery | None = None
        self.demand: Demand | None = None
        self.attach = Attach(config.cache_dir, config.require_seal)
        self.nursery: trio.Nursery
        self.exit_code = 0
        self._replaces = bool(past.manifest_id)
        self.announcer = Announcer(self.tracker, self.view, self.timeouts)
        self._complete = trio.Event()
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
        listeners = await self.peers.listen(config.listen, config.advertise)
        try:
            async with trio.open_nursery() as self.nursery:
                await self.nursery.start(self._watch_signals)
                await self.nursery.start(self.peers.serve, listeners)
                await self.nursery.start(serve_status, config.cache_dir, self.view.commands())
                await self.nursery.start(self.attach.serve)
                if config.mount is not None:
                    from node.mount.keeper import keep_mounted

                    await self.nursery.start(
                        keep_mounted, config.mount, self.attach.path, config.log_path
                    )
                if config.http is not None:
                    from node.metrics import NodeCollector  # 70 ms, for this alone
                    from p2p.web import serve_web

                    self.view.http_at = await self.nursery.start(
                        serve_web,
                        config.http,
                        self.view.status,
                        lambda: self.report.complete,
                        NodeCollector(self.view.status),
                    )
                log.info("node=%s peers at %s", short(self.node), bound_text(listeners))
                self.nursery.start_soon(self.pool.run)
                self.nursery.start_soon(self.tracker.run)
                self.nursery.start_soon(self.view.nics.run)
                self.nursery.start_soon(show_progress, self.view.snapshot, config.quiet)
        finally:
            self.view.write_report()
            if self.store is not None:
                self.store.close()
            self.cache.close()
        return self.exit_code

    def _open_origin(self, url: str) -> Origin:
        origin = open_origin(url, self.config.options_for(url))
        origin.audit = self.audit
        return origin

    def _join(self, local_ip: str) -> messages.Join:
        manifest = self.manifest or self._manifest_on_disk()
        url = self.origin.url if self.origin else ""
        return messages.Join(
            self.config.model or (default_model(url) if url else ""),
            url,
            self.peers.reached_from(local_ip),
            manifest.encode() if manifest else b"",
            self.confirmed and self.manifest is not None,
            self.config.chunk_bytes,
            self.config.block_bytes,
            self.config.follow,
            self.origin.account if self.origin else "",
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
                self.origin = self._open_origin(url)
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
            self.origin = self._open_origin(manifest.origin)
        bounded = check(config, manifest)
        self.store = store = await self._open_store(manifest)
        holding = holding_of(config, store)
        if config.prefetch and not bounded and (lacking := store.lacking_bytes()):
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
            self.rng, limits_for(config.connections * self.pool.count, len(config.source_ips)),
            holding, begun=not self._waiting,
        )  # fmt: skip
        links = Links(
            self.pool, self.peers.dial_data, self.peers.pairs, self._feed, self.nursery,
            self.pool.homes,
        )  # fmt: skip
        self.seal = self.view.seal = NodeSeal(store, self.pool, self.tracker, self._on_file)
        self.delivery = Delivery(
            store, self.model_dir, self.seal.seal.vouches, self.timeouts.space_retry_s
        )
        self.download = self.view.download = Download(
            swarm, store, self.pool, self.peers, links, self.tracker, self.origin, self.audit,
            self.seal, self.allowances, self.nursery, self._on_chunk, self._on_complete,
            self.announcer.lost,
        )  # fmt: skip
        self.demand = self.view.demand = Demand(self._feed, evicts=swarm.reading.room.evicts)
        self.download.resumed_bytes = 0 if self._replaces else resumed
        self.peers.attach(
            manifest.id, manifest.chunk_count, swarm.bitfield_for, self._feed, links,
            on_demand=swarm.reading.on_demand,
        )  # fmt: skip
        self.attach.opened(
            store.directory, self.seal.seal, self.seal.broken_text, manifest, self.demand
        )
        self.nursery.start_soon(self.download.run)
        self.nursery.start_soon(self.seal.run)
        self.nursery.start_soon(self.delivery.run)
        self.announcer.can_fetch = self.origin is not None
        self.nursery.start_soon(self.announcer.run, self.download)
        if self._tracker_pins:
            self._feed(events.PinsLearned(tuple(self._tracker_pins.items())))
        if self.tracker.connected:
            self._tracker_found()
        self.view.keep_on()
        self._feed(events.DeadlinePassed())
        self.nursery.start_soon(self._finish)

    async def _open_store(self, manifest: Manifest) -> ChunkStore:
        """The store of a revision, with what older ones in the cache have of it."""
        try:
            inherit(self.cache.path, manifest)
            store = ChunkStore.open(self.cache, manifest)
        except OSError as error:
            raise StoreError(f"cache dir {self.cache.path}: {error.strerror}") from error
        if self._replaces or self.config.cache_bytes is not None:
            await trio.to_thread.run_sync(remove_older, self.cache.path, manifest)
        return store

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
        self.announcer.announce_empty(store.manifest.id, store.held)
        for start in range(0, len(chunks), messages.MAX_BATCH):
            self._pins_came = trio.Event()
            self.tracker.send(messages.PinsQuery(chunks[start : start + messages.MAX_BATCH]))
            with trio.move_on_after(5):
                await self._pins_came.wait()
        pins = {chunk: self._tracker_pins[chunk] for chunk in chunks if chunk in self._tracker_pins}
        log.info("hashing existing files in the model dir: %d chunks", len(pins))
        adopted = self.view.adopted
        await adopt_existing(self.pool, store, candidates, pins, self.config.replace, adopted)
        return adopted.adopted_bytes

    # -- the tracker ------------------------------------------------------------------------------

    def _feed(self, event: events.Event) -> None:
        if self.download is not None:
            self.download.feed(event)

    def tracker_lost(self) -> None:
        """The session ended."""
        self.announcer.forget()
        self.allowances.lost(trio.current_time())
        self.nursery.start_soon(
            tell_lost, lambda: self.tracker.connected, lambda: self.view.cut_off, self._feed
        )

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
            case messages.Holders():
                self._holders(message)
            case messages.Leases(chunks, started_at):
                if begins := self._waiting and started_at > 0:
                    self._waiting = False
                self.view.started_at = started_at or self.view.started_at
                self.allowances.leased(message, trio.current_time())
                if chunks or begins:
                    self._feed(events.LeasesGranted(tuple(chunks)))
                if message.elsewhere:
                    self._feed(events.FetchedElsewhere(tuple(message.elsewhere)))
            case messages.Allowance():
                self.allowances.allowed(message, trio.current_time())
            case messages.PinsKnown(chunks, pins):
                self._pins_known(chunks, pins)
            case messages.PinsWanted(chunks):
                self._send_pins(chunks)
            case messages.Sealed() | messages.SealBroken() | messages.ChecksumsWanted():
                self._seal_message(message)
            case messages.OnlyCopies(_, incomplete):
                if incomplete == 0:
                    self._swarm_done.set()
            case messages.OriginFailed(text):
                self.attach.no_path(text)
                if not self.report.complete:
                    raise P2PError(text)

    def _joined(self, message: messages.Joined) -> None:
        if self.report.joined_at is None:
            self.report.joined_at = time.time()
        self.confirmed = self.confirmed or message.confirmed
        self._waiting = message.waiting
        if self.manifest is None:
            known = [m for m in self.cache.manifests() if m.id == message.manifest_id]
            manifest = Manifest.decode(message.manifest) if message.manifest else known[0]
            self.nursery.start_soon(self._start, manifest)
            return
        if message.manifest_id != self.manifest.id:
            self._moves_on(self.manifest, message)
        elif self.download is not None:
            self._tracker_found()

    def _tracker_found(self) -> None:
        assert self.seal is not None
        assert self.download is not None
        self.announcer.announce(self.download)
        self.seal.joined()
        self._feed(events.TrackerFound())

    def _moves_on(self, ours: Manifest, message: messages.Joined) -> None:
        """The swarm has another revision than ours."""
        name = f"revision {message.manifest_id.hex()[:8]} of {ours.model!r}"
        theirs = Manifest.decode(message.manifest) if message.manifest else None
        again = theirs is not None and theirs.same_objects(ours)
        if theirs is not None and (again or self.config.follow):
            anew = "a file does not match the store's checksum: it is begun anew"
            why = anew if again else "the origin's files changed"
            log.warning("moving to %s: %s", name, why)
            kept = set(theirs.files)
            if self.model_dir is not None and self.delivery is not None:
                for file in self.delivery.delivered:
                    if ours.files[file] not in kept:
                        self.model_dir.withdraw(file)
            self.moved = True
            self.nursery.start_soon(self._drain)
        elif self.report.complete:
            self.confirmed = False
            log.warning("the swarm moved to %s: this node keeps the one it has", name)
        else:
            raise P2PError(
                f"the swarm moved to {name} (the origin's files changed): run join again, "
                "or use --follow"
            )

    def _seal_message(
        self, message: messages.Sealed | messages.SealBroken | messages.ChecksumsWanted
    ) -> None:
        if self.seal is None:
            return
        match message:
            case messages.Sealed(files):
                self.seal.sealed(files)
            case messages.ChecksumsWanted(chunks):
                self.seal.wanted(chunks)
            case messages.SealBroken(file, stored, read):
                self.seal.broken(file, stored, read)

    def _pins_known(self, chunks: list[int], pins: bytes) -> None:
        if self.manifest is None:
            return
        pairs = split_pins(chunks, pins, self.manifest.chunk_count)
        self._pins_came.set()
        if self.download is None:
            self._tracker_pins.update(pairs)
        else:
            self._feed(events.PinsLearned(pairs))

    def _holders(self, message: messages.Holders) -> None:
        """What readers here wait for has come to these nodes."""
        if self.manifest is None or len(message.nodes) != len(message.chunks):
            return
        pairs = split_pins(message.chunks, message.pins, self.manifest.chunk_count)
        self._feed(events.PinsLearned(pairs))
        for pair, node in zip(pairs, message.nodes, strict=True):
            self._feed(events.PeerHas(NodeId(node), (pair,)))

    def _send_pins(self, chunks: list[int]) -> None:
        if self.download is None:
            return
        pins = self.download.swarm.pins
        known = [chunk for chunk in chunks if chunk in pins]
        for start in range(0, len(known), messages.MAX_BATCH):
            batch = known[start : start + messages.MAX_BATCH]
            joined = b"".join(pins[chunk] for chunk in batch)
            self.tracker.send(messages.PinsReport(batch, joined))

    # -- the end ----------------------------------------------------------------------------------

    def _on_chunk(self, chunk: int) -> None:
        assert self.store is not None
        assert self.manifest is not None
        file = self.manifest.extent(chunk).file
        if self.store.file_complete(file):
            if self.delivery is not None and file not in self.delivery.delivered:
                self.store.stamp(file)
            self._on_file(file)

    def _on_file(self, file: int) -> None:
        """It is complete, or the seal has decided about it."""
        self.attach.settled(file)
        if self.delivery is not None:
            self.delivery.look(file)
        if self.seal is not None and file in self.seal.seal.broken and self.config.until_complete:
            raise P2PError(self.seal.broken_text(file))

    def _on_complete(self) -> None:
        if self.report.completed_at is None:
            self.report.completed_at = time.time()
        self._complete.set()

    async def _finish(self) -> None:
        """Wait for the last chunk and the last file; then leave, if that was asked for."""
        assert self.manifest is not None
        assert self.delivery is not None
        await self._complete.wait()
        await self.delivery.done.wait()
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
