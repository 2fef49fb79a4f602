"""`python -m simulations demo`, `netlab`, `cluster`, `images`, `protocol` and `bench ...`."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from simulations.case import Case
    from simulations.cluster.case import ClusterCase


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Programs that drive the real thing."""


@main.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--nodes", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--workers", type=click.IntRange(0, 8), default=1, show_default=True)
def demo(model: Path | None, nodes: int, workers: int) -> None:
    """An origin, a tracker and nodes on this machine share a real model."""
    import trio

    from simulations.demo import default_model, run

    sys.exit(trio.run(run, model or default_model(), nodes, workers))


LAB = (
    click.option("--nodes", type=click.IntRange(1, 200), default=8, show_default=True),
    click.option("--rate", default="100mbit", show_default=True, metavar="RATE",
                 help="Of each node's link, both ways, headers included."),
    click.option("--origin-rate", metavar="RATE", help="[default: as the nodes']"),
    click.option("--size", default="256MiB", show_default=True, metavar="SIZE"),
    click.option("--chunk-size", default="256KiB", show_default=True, metavar="SIZE"),
    click.option("--block-size", metavar="SIZE",
                 help="[default: a 16th of the chunk, at least 32KiB]"),
    click.option("--workers", type=click.IntRange(0, 8), default=0, show_default=True,
                 help="Of each node; 0: one process a node, as so many share this machine."),
    click.option("--slow", default="0", show_default=True, metavar="N|PERCENT",
                 help="So many nodes send slower than they receive."),
    click.option("--slow-rate", type=click.FloatRange(1, 100), default=25, show_default=True,
                 metavar="PERCENT", help="At this part of the rate."),
    click.option("--stagger", type=click.FloatRange(0), default=0, show_default=True,
                 metavar="SECONDS", help="Nodes start over so long; 0: all together."),
    click.option("--kill", "kills", type=click.FloatRange(0, 100), multiple=True,
                 metavar="PERCENT", help="Kill a node when it holds so much. May be repeated."),
    click.option("--queue", default="640KiB", show_default=True, metavar="SIZE",
                 help="What each port of the switch holds; more is dropped."),
    click.option("--congestion", type=click.Choice(["cubic", "bbr", "reno"]), default="cubic",
                 show_default=True),
    click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE"),
)  # fmt: skip


def lab_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare what a run on the shaped cluster takes."""
    for option in reversed(LAB):
        command = option(command)
    return command


def case_of(
    nodes: int, rate: str, origin_rate: str | None, size: str, chunk_size: str,
    block_size: str | None, workers: int, slow: str, slow_rate: float, stagger: float,
    kills: tuple[float, ...], queue: str, congestion: str,
) -> "Case":  # fmt: skip
    """The run that these options mean; leaves with one line if they mean none."""
    from p2p.errors import P2PError, UsageError
    from p2p.manifest import check_sizes
    from p2p.units import parse_rate, parse_size
    from simulations.case import Case, default_block, parse_share

    try:
        chunk_bytes = parse_size(chunk_size)
        block_bytes = parse_size(block_size) if block_size else default_block(chunk_bytes)
        check_sizes(chunk_bytes, block_bytes)
        mbits = [(parse_rate(text) or 0) * 8 / 1e6 for text in (rate, origin_rate or rate)]
        if not all(mbits):
            raise UsageError("a link needs a rate, like 100mbit")
        return Case(
            nodes, mbits[0], parse_size(size), mbits[1], chunk_bytes, block_bytes, workers,
            parse_share(slow, nodes), slow_rate / 100, stagger,
            tuple(sorted(part / 100 for part in kills)), queue_bytes=parse_size(queue),
            congestion=congestion,
        )  # fmt: skip
    except P2PError as error:
        sys.exit(str(error))


def repeating(*words: str) -> str:
    """The command that was given, as RESULTS.md shows it."""
    return shlex.join(["python", "-m", "simulations", *words, *sys.argv[1 + len(words) :]])


@main.command()
@lab_options
def netlab(json_file: Path | None, **options: Any) -> None:
    """One run on a cluster of network namespaces, every link shaped. Needs root.

    An origin with nginx, a tracker and nodes on one bridge; prints a row a node. Everything is
    removed at the end, whatever happens.
    """
    from simulations.bench.swarm import measure

    measure(case_of(**options), 1, (), repeating("netlab"), json_file)


@main.command()
@click.option("--nodes", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option("--size", default="256MiB", show_default=True, metavar="SIZE")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Instead of a file of random bytes.",
)
@click.option(
    "--rate",
    metavar="RATE",
    help="Shape every node's link and the origin's, both "
    "ways, headers included, as netlab does; as root [default: unshaped].",
)
@click.option(
    "--kill", "kills", type=click.IntRange(0), default=0, metavar="N", help="Kill so many nodes."
)
@click.option("--restart", is_flag=True, help="Killed nodes come back, on what they had.")
@click.option(
    "--pause",
    "pauses",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Freeze so many others for a while.",
)
@click.option(
    "--disconnect",
    "disconnects",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Take so many others off the network for a while.",
)
@click.option("--restart-tracker", is_flag=True, help="End and start the tracker, too.")
@click.option(
    "--at",
    default="50%",
    show_default=True,
    metavar="PERCENT",
    help="Of the model, when a fault comes.",
)
@click.option(
    "--away",
    "away_s",
    type=click.FloatRange(0),
    default=12,
    show_default=True,
    metavar="SECONDS",
    help="How long nodes are paused or disconnected.",
)
@click.option("--chunk-size", default="256KiB", show_default=True, metavar="SIZE")
@click.option("--block-size", metavar="SIZE", help="[default: the chunk's, at most 1MiB]")
@click.option(
    "--workers",
    type=click.IntRange(0, 8),
    default=0,
    show_default=True,
    help="Of each node; 0: one process a node, as so many share this machine.",
)
@click.option("--keep", is_flag=True, help="Leave it running at the end.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def cluster(json_file: Path | None, **options: Any) -> None:
    """A cluster in containers (deploy/compose.yaml), with faults; every copy is compared.

    Needs a Docker engine, Compose, and the images of `make image`. Everything is removed at the
    end, whatever happens; Ctrl-C ends it at any time. Exit code 1 if a copy is missing or differs,
    2 if there is no engine.
    """
    case = _cluster_case(**options)
    try:
        from simulations.cluster.run import measure
    except ModuleNotFoundError as error:
        click.echo(f"{error.name} is not installed: pip install 'shoal[cluster]'", err=True)
        sys.exit(2)
    sys.exit(measure(case, repeating("cluster"), json_file))


def _cluster_case(
    rate: str | None, size: str, chunk_size: str, block_size: str | None, at: str, **same: Any
) -> "ClusterCase":
    """The run that these options mean; leaves with one line if they mean none."""
    from p2p.errors import P2PError
    from p2p.manifest import check_sizes
    from p2p.units import MIB, parse_rate, parse_size
    from simulations.cluster.case import ClusterCase, parse_percent

    try:
        chunk_bytes = parse_size(chunk_size)
        block_bytes = parse_size(block_size) if block_size else min(chunk_bytes, MIB)
        check_sizes(chunk_bytes, block_bytes)
        mbit = parse_rate(rate) * 8 / 1e6 if rate else None
        return ClusterCase(
            mbit=mbit, size=parse_size(size), chunk_bytes=chunk_bytes, block_bytes=block_bytes,
            at=parse_percent(at), **same,
        )  # fmt: skip
    except P2PError as error:
        sys.exit(str(error))


@main.command()
@click.argument("what", type=click.Choice(["build", "base", "wheelhouse"]), default="build")
@click.option(
    "--base-image",
    metavar="IMAGE",
    help="[default: the public one, or where no registry is reachable our own]",
)
def images(what: str, base_image: str | None) -> None:
    """Make the images of the cluster; or only a base (as root), or only the wheels."""
    try:
        from simulations.cluster.engine import EngineError, NoEngine, connect
        from simulations.cluster.images import base, build, wheelhouse
    except ModuleNotFoundError as error:
        click.echo(f"{error.name} is not installed: pip install 'shoal[cluster]'", err=True)
        sys.exit(2)
    try:
        if what == "wheelhouse":
            wheelhouse()
        elif what == "base":
            base(connect())
        else:
            build(connect(), base_image)
    except EngineError as error:
        click.echo(str(error), err=True)
        sys.exit(2 if isinstance(error, NoEngine) else 1)


@main.command()
def protocol() -> None:
    """Print p2p/PROTOCOL.md."""
    from simulations.protocol_doc import document

    click.echo(document(), nl=False)


@main.group()
def bench() -> None:
    """Measure one part; prints machine and command with the figures."""


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def picker(json_file: Path | None) -> None:
    """The cost of one pick at 65,536 chunks and 64 peers."""
    from simulations.bench.picker import measure

    measure(json_file)


@bench.command()
@click.option("--size", default="4GiB", show_default=True, metavar="SIZE")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--workers", type=click.IntRange(0, 64), metavar="N", help="[default: the node's]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def fetch(size: str, runs: int, workers: int | None, json_file: Path | None) -> None:
    """One node, curl, aria2c and s5cmd read a file from nginx on loopback."""
    from simulations.bench.fetch import measure

    measure(size, runs, workers, json_file)


@bench.command()
@click.option("--size", default="4GiB", show_default=True, metavar="SIZE")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--workers", type=click.IntRange(0, 64), metavar="N", help="[default: the node's]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def peer(size: str, runs: int, workers: int | None, json_file: Path | None) -> None:
    """One node reads a model from another one, beside curl from nginx."""
    from simulations.bench.peer import measure

    measure(size, runs, workers, json_file)


@bench.command()
@click.option("--size", default="2GiB", show_default=True, metavar="SIZE")
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def workers(size: str, runs: int, json_file: Path | None) -> None:
    """Moving with 1, 2 and 4 data workers, hashing with 1 and 2."""
    from simulations.bench.workers import measure

    measure(size, runs, json_file)


@bench.command()
@click.option("--size", default="512MiB", show_default=True, metavar="SIZE")
@click.option("--runs", type=click.IntRange(1, 100), default=7, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def read(size: str, runs: int, json_file: Path | None) -> None:
    """Python and the mount on a model that is here, beside os.pread and a bare mount of pyfuse3."""
    from simulations.bench.read import measure

    measure(size, runs, json_file)


@bench.command("hash")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def hash_(json_file: Path | None) -> None:
    """Digest and checksums of a block of 1 MiB."""
    from simulations.bench.hash import measure

    measure(json_file)


@bench.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def store(json_file: Path | None) -> None:
    """Opening a store of 65,536 chunks, recording a chunk, the journal."""
    from simulations.bench.store import measure

    measure(json_file)


@bench.command()
@lab_options
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--vs", multiple=True, metavar="libtorrent|aria2c", help="Beside ours, once each.")
def swarm(runs: int, vs: tuple[str, ...], json_file: Path | None, **options: Any) -> None:
    """A swarm on the shaped cluster against the physical bound. Needs root."""
    from simulations.bench.swarm import measure

    measure(case_of(**options), runs, vs, repeating("bench", "swarm"), json_file)


@bench.command()
@click.option("--nodes", type=click.IntRange(3, 16), default=4, show_default=True,
              help="The last one joins when the others hold everything.")  # fmt: skip
@click.option("--rate", default="1gbit", show_default=True, metavar="RATE")
@click.option("--first-byte", type=click.FloatRange(0), default=30, show_default=True,
              metavar="MS", help="Until the origin answers.")  # fmt: skip
@click.option("--size", default="2GiB", show_default=True, metavar="SIZE")
@click.option("--chunk-size", default="4MiB", show_default=True, metavar="SIZE")
@click.option("--block-size", default="64KiB", show_default=True, metavar="SIZE")
@click.option("--workers", type=click.IntRange(0, 8), default=1, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def latency(
    nodes: int, rate: str, first_byte: float, size: str, chunk_size: str, block_size: str,
    workers: int, seed: int, json_file: Path | None,
) -> None:  # fmt: skip
    """Cold random reads of a loading swarm, beside GETs from the unloaded origin. Needs root."""
    from p2p.units import parse_rate, parse_size
    from simulations.bench.latency import measure
    from simulations.case import Case

    mbit = (parse_rate(rate) or 0) * 8 / 1e6
    case = Case(
        nodes, mbit, parse_size(size), mbit, parse_size(chunk_size), parse_size(block_size), workers
    )
    measure(case, first_byte, workers, seed, repeating("bench", "latency"), json_file)


@bench.command()
@click.option("--nodes", type=click.IntRange(2, 16), default=2, show_default=True)
@click.option("--rate", default="1gbit", show_default=True, metavar="RATE")
@click.option("--size", default="512MiB", show_default=True, metavar="SIZE")
@click.option("--chunk-size", default="4MiB", show_default=True, metavar="SIZE")
@click.option("--block-size", default="1MiB", show_default=True, metavar="SIZE")
@click.option("--workers", type=click.IntRange(0, 8), default=1, show_default=True)
@click.option("--runs", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def stream(
    nodes: int, rate: str, size: str, chunk_size: str, block_size: str, workers: int, runs: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    """A program reads a model in order while a node loads it. Needs root."""
    from p2p.units import parse_rate, parse_size
    from simulations.bench.stream import measure
    from simulations.case import Case

    mbit = (parse_rate(rate) or 0) * 8 / 1e6
    case = Case(
        nodes, mbit, parse_size(size), mbit, parse_size(chunk_size), parse_size(block_size), workers
    )
    measure(case, runs, workers, repeating("bench", "stream"), json_file)


@bench.command()
@click.option("--nodes", type=click.IntRange(1, 15_000), default=1000, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=30, show_default=True)
@click.option("--warm-up", type=click.FloatRange(0), default=5, show_default=True,
              metavar="SECONDS", help="Not counted: the first leases come at once.")  # fmt: skip
@click.option("--leases", type=click.FloatRange(1), default=750, show_default=True,
              metavar="N", help="A second, of all nodes together.")  # fmt: skip
@click.option("--heartbeat", type=click.FloatRange(0.05, 1.9), default=1, show_default=True,
              metavar="SECONDS", help="Of each node; a lease lives 2 s without one.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(1), default=65_536, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def tracker(
    nodes: int, seconds: float, warm_up: float, leases: float, heartbeat: float, chunks: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    """A tracker under the load of a large swarm: CPU, memory, latency of leases."""
    from simulations.bench.crowd import Load
    from simulations.bench.tracker import measure

    measure(Load(nodes, leases, heartbeat, chunks), seconds, warm_up, json_file)


@bench.command()
@click.option("--nodes", type=int, multiple=True, default=(10, 100, 1000), show_default=True)
@click.option("--peers", type=int, multiple=True, default=(8, 64), show_default=True)
@click.option("--chunks", type=int, multiple=True, default=(1024, 8192, 65_536), show_default=True)
@click.option("--events", type=click.IntRange(1), default=512, show_default=True, metavar="N",
              help="Heartbeats, and chunks at a node, of each size.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def scale(
    nodes: tuple[int, ...], peers: tuple[int, ...], chunks: tuple[int, ...], events: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    """The cost of an event in both cores, by nodes, peers and chunks; without sockets."""
    from simulations.bench.scale import measure

    measure(nodes, peers, chunks, events, json_file)


main()
