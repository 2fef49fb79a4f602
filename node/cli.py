"""`p2p-node`: the command line. Imports what a command needs only when it runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from node import config as configuration
from p2p.errors import P2PError, UsageError, single_error
from p2p.units import format_size, parse_address, parse_size


class Group(click.Group):
    """Prints the mistakes that we know as one line, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; our own errors become an exit code."""
        try:
            return super().invoke(context)
        except P2PError as error:
            click.echo(f"p2p-node: {error}", err=True)
            context.exit(error.exit_code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal")
def main() -> None:
    """A node of a swarm: fetch a model once per cluster, share it with peers, verify every byte."""


def _optional(parse: Callable[[str], Any], text: str | None) -> Any:
    return None if text is None or text == "off" else parse(text)


@main.command()
@click.option(
    "--tracker",
    envvar="P2P_TRACKER",
    required=True,
    metavar="HOST:PORT[,HOST:PORT]",
    help="Trackers, tried in order.",
)
@click.option(
    "--origin",
    metavar="URL",
    help="Where the model comes from [default: OSS_PATH, then the tracker's].",
)
@click.option("--model", metavar="NAME", help="The model's name [default: from the origin].")
@click.option(
    "--model-dir",
    type=click.Path(path_type=Path),
    envvar="MODEL_DIR",
    metavar="DIR",
    help="Where the files appear, each when complete and verified.",
)
@click.option("--replace", is_flag=True, help="Overwrite existing files that differ.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    envvar="P2P_CACHE_DIR",
    metavar="DIR",
    help="Chunks and journal [default: a hidden folder beside the model dir].",
)
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="For peers."
)
@click.option("--advertise", metavar="HOST:PORT", help="What peers are told to dial.")
@click.option(
    "--http",
    default="off",
    show_default=True,
    metavar="HOST:PORT|off",
    help="This node's health and metrics.",
)
@click.option("--http-public", is_flag=True, help="Allow --http beyond loopback.")
@click.option("--chunk-size", default="16MiB", show_default=True, metavar="SIZE")
@click.option("--block-size", metavar="SIZE", help="[default: 1MiB, at most the chunk size]")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="P2P_TOKEN_FILE",
    metavar="FILE",
    help="The cluster token [default: P2P_TOKEN].",
)
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="Data workers; 0 moves bytes inside the control process.",
)
@click.option(
    "--until-complete", is_flag=True, help="Exit 0 when everything is complete and verified."
)
@click.option(
    "--linger",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Then serve until no live node is incomplete, at most so long.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON figures, written whole at completion and at exit.",
)
@click.option("--quiet", is_flag=True, help="No progress display.")
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)
def join(**options: Any) -> None:
    """Join a swarm and hold its model."""
    level = options.pop("log_level")
    config = _join_config(options)
    import logging

    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for noisy in ("httpx", "httpcore", "hypercorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import trio

    from node.daemon import Daemon

    async def run() -> int:
        return await Daemon(config).run()

    try:
        code = trio.run(run)
    except BaseExceptionGroup as group:
        raise single_error(group) from None
    sys.exit(code)


def _join_config(options: dict[str, Any]) -> configuration.JoinConfig:
    from p2p.exposure import check_http

    chunk_bytes = parse_size(options["chunk_size"])
    block_text = options["block_size"]
    block_bytes = parse_size(block_text) if block_text else min(2**20, chunk_bytes)
    from p2p.manifest import check_sizes

    check_sizes(chunk_bytes, block_bytes)
    http = _optional(lambda text: parse_address(text, what="--http"), options["http"])
    if http is not None:
        check_http(http[0], options["http_public"])
    trackers = tuple(
        parse_address(part.strip(), what="--tracker") for part in options["tracker"].split(",")
    )
    model_dir = options["model_dir"]
    return configuration.JoinConfig(
        trackers=trackers,
        model_dir=model_dir,
        cache_dir=options["cache_dir"] or configuration.default_cache_dir(model_dir),
        origin=options["origin"] or configuration.environment("OSS_PATH"),
        model=options["model"],
        listen=parse_address(options["listen"], what="--listen"),
        advertise=_optional(lambda t: parse_address(t, what="--advertise"), options["advertise"]),
        http=http,
        chunk_bytes=chunk_bytes,
        block_bytes=block_bytes,
        token=configuration.read_token(options["token_file"]),
        workers=options["workers"],
        replace=options["replace"],
        until_complete=options["until_complete"],
        linger_s=options["linger"],
        report=options["report"],
        quiet=options["quiet"],
    )


@main.command()
@click.option("--cache-dir", type=click.Path(path_type=Path), envvar="P2P_CACHE_DIR", metavar="DIR")
@click.option("--model-dir", type=click.Path(path_type=Path), envvar="MODEL_DIR", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
def status(cache_dir: Path | None, model_dir: Path | None, as_json: bool) -> None:
    """Show the node that runs on a cache dir."""
    from node.status import read_status

    shown = read_status(cache_dir or configuration.default_cache_dir(model_dir))
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for key, value in shown.items():
        text = format_size(value) if key.endswith("bytes") else value
        click.echo(f"{key:<18} {text}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    envvar="P2P_CACHE_DIR",
    metavar="DIR",
    help="[default: the hidden folder beside DIR]",
)
def verify(directory: Path, cache_dir: Path | None) -> None:
    """Hash what is in a model dir (or cache dir) again; exit 1 and name what is damaged."""
    from node.verify import verify_directory

    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder")
    result = verify_directory(directory, cache_dir)
    for problem in result.problems:
        click.echo(problem)
    click.echo(
        f"{result.good_chunks} chunks good, {result.missing_chunks} missing, "
        f"{len(result.problems)} problems"
    )
    sys.exit(1 if result.problems else 0)
