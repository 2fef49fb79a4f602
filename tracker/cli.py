"""`tracker`: the command line. Imports what a command needs only when it runs."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from p2p.errors import P2PError, single_error
from p2p.units import format_rate, format_size, parse_address, parse_rate


class Group(click.Group):
    """Prints the mistakes that we know as one line, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; our own errors become an exit code."""
        try:
            return super().invoke(context)
        except P2PError as error:
            click.echo(f"tracker: {error}", err=True)
            context.exit(error.exit_code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shoal")
def main() -> None:
    """The tracker of a swarm: it knows the nodes and says who may read the origin."""


@main.command()
@click.option(
    "--listen",
    default="127.0.0.1:7070",
    show_default=True,
    envvar="P2P_TRACKER_LISTEN",
    metavar="HOST:PORT",
    help="For nodes.",
)
@click.option(
    "--http",
    default="127.0.0.1:7071",
    show_default=True,
    envvar="P2P_TRACKER_HTTP",
    metavar="HOST:PORT|off",
    help="For people: /status /metrics /healthz /readyz.",
)
@click.option("--http-public", is_flag=True, help="Allow --http beyond loopback.")
@click.option("--origin", default="", metavar="URL", help="The model for nodes that name none.")
@click.option(
    "--start-with",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Grant leases once N nodes have joined.",
)
@click.option(
    "--origin-rate",
    metavar="RATE",
    help="What an account's origin may be read at, like 80Gbit [default: found out].",
)
@click.option(
    "--origin-requests",
    type=click.FloatRange(0, 10**9, min_open=True),
    metavar="N",
    help="Requests a second that it may be sent [default: found out].",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="P2P_TOKEN_FILE",
    metavar="FILE",
    help="The cluster token [default: P2P_TOKEN].",
)
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)
def serve(
    listen: str,
    http: str,
    http_public: bool,
    origin: str,
    start_with: int,
    origin_rate: str | None,
    origin_requests: float | None,
    token_file: Path | None,
    log_level: str,
) -> None:
    """Serve nodes until a signal comes."""
    from p2p.exposure import check_exposure, check_http
    from tracker.config import ServeConfig, read_token

    address = parse_address(listen, what="--listen")
    web = None if http == "off" else parse_address(http, what="--http")
    if web is not None:
        check_http(web[0], http_public)
    rate = parse_rate(origin_rate) if origin_rate is not None else None
    config = ServeConfig(
        address, web, origin, start_with, read_token(token_file), rate, origin_requests
    )
    check_exposure([address[0]], config.token)
    import logging

    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    import trio

    from tracker.server import Server

    async def run() -> None:
        await Server(config).run()

    try:
        trio.run(run)
    except BaseExceptionGroup as group:
        raise single_error(group) from None


@main.command()
@click.option("--http", default="127.0.0.1:7071", show_default=True, metavar="HOST:PORT")
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
def status(http: str, as_json: bool) -> None:
    """Show models, nodes, progress, origin ratio, and the slowest node."""
    import httpx

    host = parse_address(http, what="--http")
    try:
        answer = httpx.get(f"http://{http}/status", timeout=5, trust_env=False)
        answer.raise_for_status()
        shown = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise P2PError(f"no tracker answers at http://{host[0]}:{host[1]}/: {error}") from error
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "size", "nodes", "complete", "progress", "origin ratio", "slowest node")
    for model in shown["models"]:
        nodes = model["nodes"]
        progress = sum(node["progress"] for node in nodes) / len(nodes) if nodes else 0.0
        slowest = min(nodes, key=lambda node: node["progress"], default=None)
        last = f"{slowest['addresses'][0]} {slowest['progress']:.0%}" if slowest else "-"
        table.add_row(
            model["model"], format_size(model["bytes"]), str(len(nodes)),
            str(model["complete_nodes"]), f"{progress:.1%}", f"{model['origin_ratio']:.3f}", last,
        )  # fmt: skip
    # in a pipe there is no width to keep to: names stay whole for whoever greps them
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
    for budget in shown["budgets"]:
        if line := _budget_line(budget):
            click.echo(line)


def _budget_line(budget: dict[str, Any]) -> str:
    """What is in force at an account; nothing where nothing is."""
    rate, requests = budget["in_force"]["bytes_s"], budget["in_force"]["requests_s"]
    words = [format_rate(rate)] if rate is not None else []
    words += [f"{requests:g} requests/s"] if requests is not None else []
    refused = budget["refused_requests"]
    return f"budget of {budget['account']}: {', '.join(words)}; refused {refused}" if words else ""
