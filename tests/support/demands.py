"""A reader for tests: waits on the state map, reads the cache file, and says what it lacks."""

import os
import time
from pathlib import Path
from types import TracebackType

from node.statemap import VERIFIED, StateMap
from node.status import ask_node
from p2p.errors import P2PError
from p2p.manifest import Manifest

LIMIT_S = 60.0


class Reader:
    """One open stream of a `support.demanding_node`. `number` tells readers of a node apart."""

    def __init__(self, cache_dir: Path, number: int) -> None:
        self._cache, self.number = cache_dir, number
        end = time.monotonic() + LIMIT_S
        while not self._says("satisfied", number):
            assert time.monotonic() < end, f"no node at {cache_dir}"
            time.sleep(0.02)
        (path,) = cache_dir.glob("*/state")
        self.directory = path.parent
        self.manifest = Manifest.decode((self.directory / "manifest").read_bytes())
        self.map = StateMap(path)

    def _says(self, call: str, *arguments: object) -> bool:
        try:
            answer = ask_node(self._cache, "demand", call=call, arguments=list(arguments))
        except P2PError:
            return False
        return bool(answer["ready"])

    def tell(self, call: str, *arguments: object) -> None:
        """A call of `Demand` of this reader."""
        assert self._says(call, self.number, *arguments), call

    def file(self, path: str) -> int:
        """A file's index."""
        return [file.path for file in self.manifest.files].index(path)

    def here(self, file: int, start: int, end: int) -> bool:
        """All blocks of the range are verified."""
        manifest, size = self.manifest, self.manifest.block_bytes
        first = manifest.chunks_of(file).start * self.map.stride
        states = self.map.blocks(0, first + start // size, first + (end - 1) // size + 1)
        return states.count(VERIFIED) == len(states)

    def read(self, file: int, start: int, end: int) -> bytes:
        """The bytes, as soon as they are here and stay while they are read."""
        limit, asked = time.monotonic() + LIMIT_S, False
        with (self.directory / "files" / self.manifest.files[file].path).open("rb") as stream:
            while True:
                evictions = self.map.evictions
                if self.here(file, start, end):
                    data = os.pread(stream.fileno(), end - start, start)
                    if self.map.evictions == evictions:
                        break
                elif not asked:
                    self.tell("need", file, start, end)
                    asked = True
                assert time.monotonic() < limit, f"bytes {start} to {end} of {file} never came"
                time.sleep(0.0005)
        self.tell("read", file, start, end)
        if asked:
            self.tell("satisfied")
        return data

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._says("closed", self.number)
        self.map.close()
