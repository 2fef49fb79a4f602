"""The seal at the tracker: who is asked for checksums that are missing, and what all are told.

Owners send a chunk's checksum with its pin. What is missing all the same (after a restart of the
tracker, or when files were adopted) is asked of a node that holds the chunk: its bytes match the
pin, so its checksum is as good as the owner's.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import Random

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.checksum import CHECKSUM_BYTES
from p2p.errors import RemoteProtocolError
from p2p.ids import Chunk, NodeId
from p2p.manifest import Manifest
from p2p.seal import Broken, Seal

ASK_DELAY_S = 1.0  # an owner's own report comes within two heartbeats
ASK_AGAIN_S = 10.0  # reading 256 chunks of 16 MiB from a disk takes seconds
ASK_CHUNKS = 256


class Sealing:
    """The seal of one revision."""

    def __init__(self, manifest: Manifest, rng: Random) -> None:
        self.seal = Seal(manifest)
        self._manifest = manifest
        self._rng = rng
        self._asked: dict[Chunk, float] = {}
        self.ask_at = inf

    def take(self, chunks: list[Chunk], checksums: bytes) -> tuple[list[int], list[Broken]]:
        """Checksums of chunks came; returns the files that are sealed and broken by them.

        Raises:
          RemoteProtocolError: not 8 bytes a chunk, or no such chunk.
        """
        size = CHECKSUM_BYTES
        if len(checksums) != size * len(chunks):
            raise RemoteProtocolError("checksums do not fit their chunks")
        if chunks and max(chunks) >= self._manifest.chunk_count:
            raise RemoteProtocolError(f"chunk {max(chunks)} of {self._manifest.chunk_count}")
        sealed, broken = [], []
        for i, chunk in enumerate(chunks):
            crc = int.from_bytes(checksums[i * size : (i + 1) * size], "big")
            self._asked.pop(chunk, None)
            file = self.seal.take(chunk, crc)
            if file is not None and file in self.seal.broken:
                broken.append(self.seal.broken[file])
            elif file is not None:
                sealed.append(file)
        return sealed, broken

    def trust(self, files: Iterable[int]) -> list[int]:
        """A node says that these files were sealed before; returns those that are news.

        Raises:
          RemoteProtocolError: no such file.
        """
        listed = list(files)
        if listed and max(listed) >= len(self._manifest.files):
            raise RemoteProtocolError(f"file {max(listed)} of {len(self._manifest.files)}")
        news = [file for file in listed if self.seal.trust(file)]
        for file in news:
            for chunk in self._manifest.chunks_of(file):
                self._asked.pop(chunk, None)
        return news

    def look_soon(self, now: float) -> None:
        """Something was held or lost: see in a second whether checksums are missing."""
        if self.seal.pending:
            self.ask_at = min(self.ask_at, now + ASK_DELAY_S)

    def ask(
        self, holders: Mapping[NodeId, Bitfield], fetched: Callable[[Chunk], bool], now: float
    ) -> list[tuple[NodeId, m.ChecksumsWanted]]:
        """Ask holders for what is missing of files that the swarm holds whole.

        Args:
          fetched: whether anybody can hold a chunk; to look at all nodes for each costs too much.
        """
        self.ask_at = inf
        by_node: dict[NodeId, list[Chunk]] = {}
        for file in self.seal.pending:
            chunks = self._manifest.chunks_of(file)
            held = (fetched(c) and any(c in bits for bits in holders.values()) for c in chunks)
            if not all(held):
                continue
            for chunk in self.seal.wanted(file):
                if self._asked.get(chunk, -inf) + ASK_AGAIN_S > now:
                    continue
                able = [node for node, bits in holders.items() if chunk in bits]
                asked = by_node.setdefault(self._rng.choice(able), [])
                if len(asked) < ASK_CHUNKS:
                    asked.append(chunk)
                    self._asked[chunk] = now
        if self._asked or by_node:
            self.ask_at = now + ASK_DELAY_S
        return [(node, m.ChecksumsWanted(chunks)) for node, chunks in by_node.items() if chunks]
