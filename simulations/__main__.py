"""`python -m simulations demo`, `bench picker`, `fetch`, `tracker`, `scale` and `protocol`."""

import sys
from pathlib import Path

import click


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
