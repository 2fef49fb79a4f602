"""What this node is to hold: the options against the model, and files that must stay."""

from collections.abc import Callable
from typing import Any

from node.config import JoinConfig
from node.status import Command
from node.store import ChunkStore
from p2p.errors import UsageError
from p2p.evictor import least_bytes, space_bytes
from p2p.manifest import Manifest
from p2p.reading import Holding, Reading
from p2p.units import format_size

KEEPER = -1  # the reader that stands for what is kept: it plans to read all of it
Plan = Callable[[list[tuple[int, int, int]]], None]


def check(config: JoinConfig, manifest: Manifest) -> bool:
    """Whether the cache is to be smaller than the model.

    Raises:
      UsageError: it is, and the other options need all of the model; or it is too small.
    """
    size, needed = config.cache_bytes, space_bytes(manifest)
    if size is None or size >= needed:
        return False
    text = f"--cache-size {format_size(size)} is smaller than the model ({format_size(needed)})"
    for flag, given in (
        ("--until-complete", config.until_complete),
        ("--model-dir", config.model_dir is not None),
    ):
        if given:
            raise UsageError(f"{text}: {flag} needs all of it; leave one out")
    if size < (least := least_bytes(manifest)):
        raise UsageError(f"{text} and than {format_size(least)}, the least for its chunks")
    return True


def holding_of(config: JoinConfig, store: ChunkStore) -> Holding:
    """What the swarm is to hold; a store that drops chunks is prepared for it.

    Raises:
      UsageError: see `check`.
      StoreError: see `ChunkStore.bound`.
    """
    if check(config, store.manifest):
        store.bound()
    kept = tuple(chunk for file in store.kept for chunk in store.manifest.chunks_of(file))
    return Holding(config.prefetch, config.cache_bytes, config.expire_s, kept)


def files_under(manifest: Manifest, path: str) -> list[int]:
    """The file of that path, or all files below it.

    Raises:
      UsageError: there is none.
    """
    folder = "" if path in (".", "./") else path.rstrip("/") + "/"
    found = [
        number
        for number, file in enumerate(manifest.files)
        if file.path == path or file.path.startswith(folder)
    ]
    if not found:
        raise UsageError(f"the model has no file or folder {path!r}")
    return found


def keep_command(parts: Callable[[], tuple[ChunkStore, Reading] | None], plan: Plan) -> Command:
    """`keep`: never drop a file or folder, or allow it again.

    Args:
      parts: the store and the swarm's readers, once the model is known.
      plan: makes the swarm get these ranges (file, start, end).
    """

    def command(request: dict[str, Any]) -> dict[str, Any]:
        path, kept = request.get("path"), request.get("keep", True)
        if not isinstance(path, str) or not isinstance(kept, bool):
            raise UsageError("keep takes a path, and true or false")
        if (known := parts()) is None:
            raise UsageError("this node does not know its model yet")
        store, room = known[0], known[1].room
        manifest, files = store.manifest, files_under(store.manifest, path)
        chunks = [chunk for file in files for chunk in manifest.chunks_of(file)]
        if kept:
            if text := room.keep(chunks):
                raise UsageError(text)
            plan([(file, 0, manifest.files[file].size_bytes) for file in files])
        else:
            room.let_go(chunks)
        for file in files:
            store.record_kept(file, kept=kept)
        total = sum(manifest.extent(chunk).length for chunk in room.kept)
        return {"files": [manifest.files[file].path for file in files], "kept_bytes": total}

    return command
