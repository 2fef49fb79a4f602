"""Files on their way to the model dir: each when it is complete, verified and vouched for.

chunks --all verified--> complete --sealed, or no checksum at the store--> published
"""

import logging
from collections.abc import Callable
from functools import partial

import trio

from node.publish import ModelDir
from node.store import ChunkStore
from p2p.errors import StoreFull

log = logging.getLogger(__name__)


class Delivery:
    """What is delivered of one revision.

    Args:
      model_dir: where files appear; None: the cache is all there is.
      vouched: whether a file may be delivered, as far as the seal goes.
      retry_s: between two tries on a full filesystem.
    """

    def __init__(
        self,
        store: ChunkStore,
        model_dir: ModelDir | None,
        vouched: Callable[[int], bool],
        retry_s: float,
    ) -> None:
        self._store = store
        self._model_dir = model_dir
        self._vouched = vouched
        self._retry_s = retry_s
        self.delivered: set[int] = set()
        self.done = trio.Event()
        self._queued: set[int] = set()
        self._send, self._queue = trio.open_memory_channel[int](len(store.manifest.files) + 1)

    def look(self, file: int) -> None:
        """Something has changed about a file: deliver it if it is ready now."""
        if file not in self._queued and self._is_ready(file):
            self._queued.add(file)
            self._send.send_nowait(file)

    def _is_ready(self, file: int) -> bool:
        return self._store.file_complete(file) and self._vouched(file)

    async def run(self) -> None:
        """Deliver until cancelled; a copy to another filesystem takes a thread."""
        for file in range(len(self._store.manifest.files)):
            self.look(file)
        async for file in self._queue:
            if self._model_dir is not None:
                await self._publish(self._model_dir, file)
            if not self._is_ready(file):  # damaged, or broken, while it waited for its turn
                self._queued.discard(file)
                continue
            self.delivered.add(file)
            if len(self.delivered) == len(self._store.manifest.files):
                self.done.set()

    async def _publish(self, model_dir: ModelDir, file: int) -> None:
        publish = partial(model_dir.publish, file, self._store.file_path(file))
        while self._is_ready(file):
            try:
                await trio.to_thread.run_sync(publish)
                return
            except StoreFull as error:
                log.warning("%s: trying again", error)
                await trio.sleep(self._retry_s)
