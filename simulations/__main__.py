"""`python -m simulations demo` and `python -m simulations bench picker`."""

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


main()
