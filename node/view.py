"""What one node shows to people: its progress, its status, its report. Holds no secret."""

import resource
from typing import Any

from node.adopt import Adopted
from node.config import JoinConfig
from node.demand import Demand
from node.download import Download
from node.holding import KEEPER, keep_command
from node.limits import limit_command
from node.nicwatch import NicWatch
from node.peers import Peers
from node.progress import Snapshot
from node.report import Report
from node.sealing import NodeSeal
from node.status import Command
from node.store import ChunkStore
from node.tracker_client import TrackerClient
from node.workers import WorkerPool
from p2p.ids import NodeId
from p2p.manifest import Manifest
from p2p.reading import Reading


class View:
    """Reads figures from the parts that keep them; `manifest` and `download` come when known.

    Args:
      past: figures of earlier revisions in this process: reports count them too.
    """

    def __init__(
        self,
        config: JoinConfig,
        node: NodeId,
        pool: WorkerPool,
        peers: Peers,
        tracker: TrackerClient,
        past: Report,
    ) -> None:
        self.config = config
        self.node = node
        self.pool = pool
        self.peers = peers
        self.tracker = tracker
        self.report = Report()
        self._past = past
        self.nics = NicWatch(config.source_ips, lambda: pool.totals().nics)
        self.seal: NodeSeal | None = None
        self.manifest: Manifest | None = None
        self.download: Download | None = None
        self.demand: Demand | None = None
        self.started_at = 0.0
        self.http_at: list[str] = []
        self.adopted = Adopted()
        """read from existing files by workers, which count them as origin bytes"""

    @property
    def origin_bytes(self) -> int:
        """Body bytes received from the origin in this run."""
        return max(0, self.pool.totals().origin_bytes - self.adopted.read_bytes)

    @property
    def cut_off(self) -> bool:
        """Not one peer is left, though there were some."""
        totals = self.pool.totals()
        if self.download is None or not (totals.peer_bytes or totals.served_bytes):
            return False
        return self.download.swarm.statistics().peers == 0

    def write_report(self) -> None:
        """Bring the report up to date and write it, if a file was named."""
        report, totals, past = self.report, self.pool.totals(), self._past
        report.origin_bytes = past.origin_bytes + self.origin_bytes
        report.peer_bytes = past.peer_bytes + totals.peer_bytes
        report.served_bytes = past.served_bytes + totals.served_bytes
        report.duplicate_bytes = past.duplicate_bytes + totals.duplicate_bytes
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report.worker_cpu_seconds = round(past.worker_cpu_seconds + totals.cpu_s, 3)
        own_s = usage.ru_utime + usage.ru_stime
        report.cpu_seconds = round(own_s + report.worker_cpu_seconds, 3)
        report.resumed_bytes, report.corrupt_chunks = past.resumed_bytes, past.corrupt_chunks
        if self.download is not None:
            report.resumed_bytes += self.download.resumed_bytes
            report.corrupt_chunks += self.download.swarm.statistics().corrupt_chunks
        report.seal = self.seal.seal.word if self.seal else ""
        if report.joined_at is not None:
            report.started_at = max(report.joined_at, self.started_at)
        if report.completed_at is not None and report.started_at is not None:
            report.seconds = round(report.completed_at - report.started_at, 3)
        if self.config.report is not None:
            report.write(self.config.report)

    def snapshot(self) -> Snapshot:
        """What the progress display shows."""
        totals = self.pool.totals()
        statistics = self.download.swarm.statistics() if self.download else None
        if self.manifest is None or statistics is None:
            text = "waiting for the manifest" if self.tracker.connected else "waiting for a tracker"
        else:
            text = "" if self.tracker.connected else "no tracker: going on with known peers"
        return Snapshot(
            model=self.manifest.model if self.manifest else self.config.model or "",
            total_bytes=self.manifest.total_bytes if self.manifest else 0,
            held_bytes=self.manifest.bytes_of(self.download.swarm.held)
            if self.manifest and self.download
            else 0,
            origin_bytes=self.origin_bytes,
            peer_bytes=totals.peer_bytes,
            served_bytes=totals.served_bytes,
            peers=statistics.peers if statistics else 0,
            complete=self.report.complete,
            waiting_for_space=bool(statistics and statistics.waiting_for_space),
            suspects=len(self.download.swarm.suspects) if self.download else 0,
            text=text,
            nics=tuple(
                (one["source_ip"], one["in_bytes_s"], one["out_bytes_s"])
                for one in self.nics.figures()
            ),
        )

    def commands(self) -> dict[str, Command]:
        """What the node's Unix socket answers."""
        limit = limit_command(lambda: self.pool.limits, self.pool.set_limits)
        keep = keep_command(self._parts, self._plan_to_keep)
        return {"status": lambda _request: self.status(), "limit": limit, "keep": keep}

    def _parts(self) -> tuple[ChunkStore, Reading] | None:
        return (self.download.store, self.download.swarm.reading) if self.download else None

    def _plan_to_keep(self, ranges: list[tuple[int, int, int]]) -> None:
        if self.demand is not None:
            self.demand.will_need(KEEPER, ranges)

    def keep_on(self) -> None:
        """What was kept at the last use is gone on with."""
        if self.download is not None and self.manifest is not None:
            files, kept = self.manifest.files, self.download.store.kept
            self._plan_to_keep([(file, 0, files[file].size_bytes) for file in kept])

    def _cache_figures(self) -> dict[str, Any]:
        """What a bounded cache holds and has dropped, and what readers asked for."""
        reading = self.download.swarm.reading if self.download else None
        return {
            "prefetch": "all" if self.config.prefetch else "none",
            "cache_limit_bytes": self.config.cache_bytes,
            "kept_chunks": len(reading.room.kept) if reading else 0,
            "evicted_chunks": reading.room.evicted_chunks if reading else 0,
            "again_bytes": reading.room.again_bytes if reading else 0,
            "readers": len(reading.needs) if reading else 0,
            "hedges": reading.urgent.hedges if reading else 0,
        }

    def status(self) -> dict[str, Any]:
        """What `p2p-node status` and `/status` show; it holds no secret."""
        snapshot = self.snapshot()
        statistics = self.download.swarm.statistics() if self.download else None
        return {
            "node": self.node.hex(),
            "model": snapshot.model,
            "manifest_id": self.report.manifest_id,
            "tracker_connected": self.tracker.connected,
            "peers_at": self.peers.advertised,
            "http_at": self.http_at,
            "bytes": snapshot.total_bytes,
            "held_bytes": snapshot.held_bytes,
            "chunks": self.report.chunks,
            "held_chunks": len(self.download.swarm.held) if self.download else 0,
            "complete": snapshot.complete,
            "origin_bytes": snapshot.origin_bytes,
            "peer_bytes": snapshot.peer_bytes,
            "served_bytes": snapshot.served_bytes,
            "resumed_bytes": self.download.resumed_bytes if self.download else 0,
            "corrupt_chunks": statistics.corrupt_chunks if statistics else 0,
            "suspect_chunks": snapshot.suspects,
            **self._cache_figures(),
            "peers": snapshot.peers,
            "waiting_for_space": snapshot.waiting_for_space,
            "workers": self.config.workers,
            "nics": self.nics.figures(),
            "max_upload_bytes_s": self.pool.limits.upload_bytes_s,
            "max_download_bytes_s": self.pool.limits.download_bytes_s,
            "seal": self.seal.seal.word if self.seal else "",
            "broken_files": [
                {"file": self.manifest.files[one.file].path, "stored": one.stored, "read": one.read}
                for one in (self.seal.seal.broken.values() if self.seal else ())
                if self.manifest
            ],
        }
