"""`python -m simulations demo`, `protocol` and `bench ...`."""

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


main()
