"""The options of `p2p-node join`: what they are called, and what `--help` says about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

MAX_WORKERS = 64
MAX_CONNECTIONS = 256  # of one worker; more requests at once than that only wait for each other

_FILE = click.Path(path_type=Path)

_SWARM = (
    click.option(
        "--tracker",
        envvar="P2P_TRACKER",
        required=True,
        metavar="HOST:PORT[,HOST:PORT]",
        help="Trackers, tried in order.",
    ),
    click.option("--model", metavar="NAME", help="The model's name [default: from the origin]."),
    click.option(
        "--listen",
        multiple=True,
        default=["127.0.0.1:0"],
        show_default=True,
        metavar="HOST:PORT",
        help="For peers. May be repeated.",
    ),
    click.option(
        "--advertise",
        multiple=True,
        metavar="HOST:PORT",
        help="What peers are told to dial; may be repeated [default: what is listened on; of "
        "0.0.0.0 the source addresses, or the one that the tracker is reached from].",
    ),
    click.option(
        "--token-file",
        type=_FILE,
        envvar="P2P_TOKEN_FILE",
        metavar="FILE",
        help="The cluster token [default: P2P_TOKEN].",
    ),
    click.option("--chunk-size", default="16MiB", show_default=True, metavar="SIZE"),
    click.option("--block-size", metavar="SIZE", help="[default: 1MiB, at most the chunk size]"),
)

_ORIGIN = (
    click.option(
        "--origin",
        metavar="URL",
        help="Where the model comes from [default: OSS_PATH, then the tracker's].",
    ),
    click.option(
        "--endpoint",
        metavar="URL",
        help="The store's address [default: OSS_ENDPOINT; for S3 AWS_ENDPOINT_URL_S3].",
    ),
    click.option("--region", help="[default: OSS_REGION; for S3 AWS_REGION]"),
    click.option(
        "--addressing",
        type=click.Choice(["auto", "virtual", "path"]),
        default="auto",
        show_default=True,
        help="Where the bucket's name goes: before the endpoint's, or into the path.",
    ),
    click.option(
        "--files",
        multiple=True,
        metavar="NAME[,NAME]",
        help="The model's objects, where the bucket cannot be listed. May be repeated.",
    ),
    click.option(
        "--credentials",
        type=_FILE,
        metavar="FILE",
        help="The connector's JSON file of keys [default: OSS_CREDENTIALS_FILE].",
    ),
    click.option("--profile", metavar="NAME", help="For S3, of the AWS configuration."),
    click.option("--anonymous", is_flag=True, help="Sign nothing, whatever keys there are."),
    click.option(
        "--follow",
        is_flag=True,
        help="Start the new revision when the object changes at the origin.",
    ),
    click.option(
        "--connections",
        type=click.IntRange(1, MAX_CONNECTIONS),
        metavar="N",
        help="Origin requests at once of each worker [default: the connector's, then 4].",
    ),
)

_NICS = (
    click.option(
        "--source-ip",
        multiple=True,
        metavar="IP[,IP]",
        help="Local addresses, one of each NIC: to the origin and to peers all of them are used. "
        "May be repeated [default: HTTP_SOURCE_IP].",
    ),
    click.option(
        "--bind-device/--no-bind-device",
        default=True,
        help="Bind connections from source addresses to their interfaces too, where that is "
        "allowed [default: yes].",
    ),
    click.option(
        "--pin-workers",
        is_flag=True,
        help="Keep each worker on the cores near one source address's NIC (NUMA).",
    ),
)

_FILES = (
    click.option(
        "--model-dir",
        type=_FILE,
        envvar="MODEL_DIR",
        metavar="DIR",
        help="Where the files appear, each when complete and verified.",
    ),
    click.option(
        "--mount",
        type=_FILE,
        metavar="DIR",
        help="Show all files there at once; reads wait for what is not here yet (FUSE).",
    ),
    click.option(
        "--require-seal",
        is_flag=True,
        help="Readers wait until the store's checksum vouches for the file.",
    ),
    click.option("--replace", is_flag=True, help="Overwrite existing files that differ."),
    click.option(
        "--cache-dir",
        type=_FILE,
        envvar="P2P_CACHE_DIR",
        metavar="DIR",
        help="Chunks and journal [default: a hidden folder beside the model dir].",
    ),
    click.option(
        "--prefetch",
        type=click.Choice(["all", "none"]),
        default="all",
        show_default=True,
        help="Get the whole model, or only what is read.",
    ),
    click.option(
        "--cache-size",
        metavar="SIZE",
        help="The most that the cache may hold, like 200GiB; may be smaller than the model "
        "[default: no limit].",
    ),
    click.option(
        "--expire",
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="Of a cache that is smaller than the model: what was read goes so long after its last "
        "use, if another node has it [default: the connector's expireTimeSec; else only for what "
        "is wanted].",
    ),
    click.option(
        "--connector-config",
        type=_FILE,
        metavar="FILE",
        help="Settings of the OSS connector [default for oss: /etc/oss-connector/config.json].",
    ),
)

_RUN = (
    click.option(
        "--workers",
        type=click.IntRange(0, MAX_WORKERS),
        metavar="N",
        help="Data workers; 0 moves bytes inside the control process "
        "[default: the connector's vcpus, at most the cores; then 1].",
    ),
    click.option(
        "--max-upload",
        default="off",
        show_default=True,
        metavar="RATE|off",
        help="To all peers together, like 20mbit or 2.5MB; see `p2p-node limit`.",
    ),
    click.option(
        "--max-download",
        default="off",
        show_default=True,
        metavar="RATE|off",
        help="From peers and origin together.",
    ),
    click.option(
        "--until-complete", is_flag=True, help="Exit 0 when everything is complete and verified."
    ),
    click.option(
        "--linger",
        type=click.FloatRange(0),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Then serve until no live node is incomplete, at most so long.",
    ),
)

_SEEN = (
    click.option(
        "--http",
        default="off",
        show_default=True,
        metavar="HOST:PORT|off",
        help="This node's health and metrics.",
    ),
    click.option("--http-public", is_flag=True, help="Allow --http beyond loopback."),
    click.option(
        "--report",
        type=_FILE,
        metavar="FILE",
        help="JSON figures, written whole at completion and at exit.",
    ),
    click.option("--audit", type=_FILE, metavar="FILE", help="One line for each origin request."),
    click.option(
        "--log-file",
        type=_FILE,
        metavar="FILE",
        help="Log there; then the terminal shows only warnings.",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help="[default: the connector's for its log file; else warning]",
    ),
    click.option("--quiet", is_flag=True, help="No progress display."),
)


def join_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare all options of `join`, in the order in which `--help` shows them."""
    for option in reversed((*_SWARM, *_ORIGIN, *_NICS, *_FILES, *_RUN, *_SEEN)):
        command = option(command)
    return command
