"""What `p2p-node join` was asked to do. The only module of the node that reads the environment."""

import os
from dataclasses import dataclass
from pathlib import Path

from p2p.errors import UsageError
from p2p.manifest import DEFAULT_BLOCK_BYTES, DEFAULT_CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """Flags, then environment, then defaults; `None` means unset."""

    trackers: tuple[tuple[str, int], ...]
    model_dir: Path | None
    cache_dir: Path
    origin: str | None = None
    """the origin's URL as given: may hold credentials; never shown"""
    model: str | None = None
    listen: tuple[str, int] = ("127.0.0.1", 0)
    advertise: tuple[str, int] | None = None
    http: tuple[str, int] | None = None
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    block_bytes: int = DEFAULT_BLOCK_BYTES
    token: bytes = b""
    workers: int = 1
    replace: bool = False
    until_complete: bool = False
    linger_s: float = 30.0
    report: Path | None = None
    quiet: bool = False

    def __repr__(self) -> str:
        return f"<JoinConfig cache_dir={str(self.cache_dir)!r} workers={self.workers}>"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the control process waits, and why so long."""

    connect_s: float = 1.0
    """a dial inside one data centre takes under 1 ms; a second tells a dead host"""
    tracker_connect_s: float = 5.0
    """a tracker with 1,000 nodes knocking at once"""
    ping_s: float = 2.0
    """a silent control session says that it lives so often"""
    silence_s: float = 8.0
    """four pings lost: the peer is gone or stopped"""
    heartbeat_s: float = 0.5
    """a lease ends 2 s after its last progress (design): four chances to report some"""
    idle_heartbeat_s: float = 2.0
    """when nothing is under way; the tracker forgets a node after 10 s"""
    space_retry_s: float = 2.0
    """between two tries to give a file its final name on a full filesystem"""
    earlier_tracker_s: float = 5.0
    """on a later tracker of the list: how often the earlier ones are asked"""
    drain_s: float = 1.5
    """from a signal to the exit; 3 s are promised"""


def environment(name: str) -> str | None:
    """The value of an environment variable, with the empty string as unset."""
    return os.environ.get(name) or None


def read_token(token_file: Path | None) -> bytes:
    """The cluster token: the file's content without surrounding white space, else `P2P_TOKEN`.

    Raises:
      UsageError: the file cannot be read or is empty.
    """
    if token_file is None:
        return (environment("P2P_TOKEN") or "").strip().encode()
    try:
        token = token_file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"token file {token_file}: {error.strerror}") from error
    if not token:
        raise UsageError(f"token file {token_file} is empty")
    return token


def default_cache_dir(model_dir: Path | None) -> Path:
    """A hidden folder beside the model dir, so that a hard link can join the two.

    Raises:
      UsageError: there is no model dir either.
    """
    if model_dir is None:
        raise UsageError("say where the files go: --model-dir DIR (or MODEL_DIR), or --cache-dir")
    resolved = Path(os.path.abspath(model_dir))
    return resolved.parent / f".{resolved.name}.shoal"
