"""What `p2p-node join` was asked to do. The only module of the node that reads the environment."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from node.origins.base import OriginOptions
from p2p.errors import UsageError
from p2p.liveness import GONE_MOST_S
from p2p.manifest import DEFAULT_BLOCK_BYTES, DEFAULT_CHUNK_BYTES
from p2p.rates import RateLimits


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """Flags, then environment, then the connector's file, then defaults; `None` means unset."""

    trackers: tuple[tuple[str, int], ...]
    model_dir: Path | None
    cache_dir: Path
    origin: str | None = None
    """the origin's URL as given: may hold credentials; never shown"""
    origin_options: OriginOptions = field(default_factory=OriginOptions)
    """for `origin`; see `options_for` where another one names it"""
    model: str | None = None
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    advertise: tuple[tuple[str, int], ...] = ()
    """empty: what is listened on; of a wildcard, all of `source_ips` with its port, or the address
    that the tracker is reached from"""
    http: tuple[str, int] | None = None
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    block_bytes: int = DEFAULT_BLOCK_BYTES
    token: bytes = b""
    workers: int = 1
    connections: int = 4
    """origin requests at once, of each worker"""
    source_ips: tuple[str, ...] = ()
    """addresses of this machine to reach the origin and peers from, in the order given"""
    bind_device: bool = True
    """bind connections from `source_ips` to their interfaces too, where that is allowed"""
    pin_workers: bool = False
    limits: RateLimits = field(default_factory=RateLimits)
    """of all workers together, when the node starts"""
    require_seal: bool = False
    """readers wait until the store's checksum of a file is known to match"""
    replace: bool = False
    follow: bool = False
    """start the new revision when the object changes at the origin"""
    prefetch: bool = True
    """get the whole model; else only what is read"""
    cache_bytes: int | None = None
    """the most that the cache may hold; what was read goes for what is wanted"""
    mount: Path | None = None
    expire_s: float | None = None
    """in a bounded cache, what was read goes so long after its last use"""
    until_complete: bool = False
    linger_s: float = 30.0
    report: Path | None = None
    audit: Path | None = None
    log_path: Path | None = None
    log_level: str = "warning"
    quiet: bool = False

    def __repr__(self) -> str:
        return f"<JoinConfig cache_dir={str(self.cache_dir)!r} workers={self.workers}>"

    def options_for(self, url: str) -> OriginOptions:
        """The options for an origin that somebody else named, once its URL is known."""
        return with_environment(self.origin_options, url)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the control process waits, and why so long."""

    connect_s: float = 1.0
    """a dial inside one data centre takes under 1 ms; a second tells a dead host"""
    tracker_connect_s: float = 5.0
    """a tracker with 1,000 nodes knocking at once"""
    tracker_silence_s: float = GONE_MOST_S + 1
    """no heartbeat is confirmed: later than silent peers are given up, so that it is known by then
    whether it is this node that is cut off"""
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
        raise UsageError(
            "say where the files go: --model-dir DIR (or MODEL_DIR), --mount DIR or --cache-dir"
        )
    resolved = Path(os.path.abspath(model_dir))
    return resolved.parent / f".{resolved.name}.shoal"


def reader_socket() -> Path:
    """The socket of the node that programs of this host read from: `P2P_SOCKET`, else that of the
    cache dir in `P2P_CACHE_DIR`, else of the one beside `MODEL_DIR`.

    Raises:
      UsageError: none of them is set.
    """
    if given := environment("P2P_SOCKET"):
        return Path(given)
    cache, model_dir = environment("P2P_CACHE_DIR"), environment("MODEL_DIR")
    if not cache and not model_dir:
        raise UsageError("say which node to read from: P2P_SOCKET=CACHE/reader.sock, or MODEL_DIR")
    cache_dir = Path(cache) if cache else default_cache_dir(Path(model_dir or ""))
    return cache_dir / "reader.sock"


def check_mount(mount: Path | None, others: Mapping[str, Path | None]) -> None:
    """A node that looks for something in its own mount waits for itself, and nothing ends that.

    Args:
      others: folders that it works in, by what they are called.

    Raises:
      UsageError: one of them is the mount's, in it or around it.
    """
    if mount is None:
        return
    at = Path(os.path.realpath(mount))
    for name, folder in others.items():
        if folder is None:
            continue
        other = Path(os.path.realpath(folder))
        if at.is_relative_to(other) or other.is_relative_to(at):
            raise UsageError(f"--mount {mount} and {name} {folder} overlap: give each its own")


def check_source_ips(ips: tuple[str, ...]) -> list[str]:
    """What is to be said of addresses that this host has not got now: NICs may come later.

    Raises:
      UsageError: it has none of them.
    """
    missing = [ip for ip in ips if not _is_here(ip)]
    if missing and len(missing) == len(ips):
        raise UsageError(
            f"source address {', '.join(missing)}: this host has no such address (see `ip addr`)"
        )
    return [f"source address {ip} is not this host's now: going on without it" for ip in missing]


def _is_here(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind((ip, 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def check_require_seal(require_seal: bool, prefetch: str | None) -> None:
    """A file that is only read in part is never sealed.

    Raises:
      UsageError: both are asked for.
    """
    if require_seal and prefetch == "none":
        raise UsageError(
            "--require-seal and --prefetch none exclude each other: a file is sealed when all of "
            "it is here; leave one out"
        )


def is_oss(url: str) -> bool:
    """`url` names a place in OSS, where the connector's variables and its file mean something."""
    return url.partition(":")[0].lower() == "oss"


def with_environment(options: OriginOptions, url: str) -> OriginOptions:
    """Fill in what the connector's variables say, if `url` is for OSS; nothing given is replaced.

    S3's variables are left to botocore, which knows their order.
    """
    if not is_oss(url):
        return options
    credentials = None if options.anonymous else environment("OSS_CREDENTIALS_FILE")
    return replace(
        options,
        endpoint=options.endpoint or environment("OSS_ENDPOINT"),
        region=options.region or environment("OSS_REGION"),
        credentials_file=options.credentials_file or (Path(credentials) if credentials else None),
    )


def read_source_ips(given: Iterable[str] = ()) -> tuple[str, ...]:
    """The addresses in `given`, else in `HTTP_SOURCE_IP`, separated by commas; each once.

    Raises:
      UsageError: one of them is not an IP address.
    """
    texts = list(given)
    what = "--source-ip" if texts else "HTTP_SOURCE_IP"
    found: dict[str, None] = {}
    for part in ",".join(texts or [environment("HTTP_SOURCE_IP") or ""]).split(","):
        if text := part.strip():
            try:
                found[str(ipaddress.ip_address(text))] = None
            except ValueError as error:
                raise UsageError(f"{what}: {text!r} is not an IP address") from error
    return tuple(found)


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def why_not_appendable(path: Path) -> str | None:
    """Make the file and its folder, if they are not there, and say what stands in the way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        return error.strerror or str(error)
    return None
