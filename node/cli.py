"""`p2p-node`: the command line. Imports what a command needs only when it runs."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from node import config as configuration
from node.limits import FIELDS, parse_limit, shown_limit
from node.options import MAX_CONNECTIONS, MAX_WORKERS, join_options
from node.origins.base import OriginOptions
from p2p.errors import P2PError, UsageError, single_error
from p2p.rates import RateLimits
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
@join_options
def join(**options: Any) -> None:
    """Join a swarm and hold its model.

    The OSS connector's variables and its configuration file are understood: with OSS_ENDPOINT,
    OSS_REGION, OSS_PATH, MODEL_DIR and keys, --tracker is all that is to be given.
    """
    config, warnings = _join_config(options)
    import logging

    from node.audit import start_logging

    start_logging(config.log_level, config.log_path)
    warnings += configuration.check_source_ips(config.source_ips)
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)
    if config.mount is not None:
        from node.mount.prepare import prepare

        prepare(config.mount)
    import trio

    from node.daemon import run

    try:
        code = trio.run(run, config)
    except BaseExceptionGroup as group:
        raise single_error(group) from None
    sys.exit(code)


def _join_config(options: dict[str, Any]) -> tuple[configuration.JoinConfig, list[str]]:
    """What is to be done, and what is to be said about it once there is a log."""
    from p2p.exposure import check_http
    from p2p.manifest import check_sizes

    chunk_bytes = parse_size(options["chunk_size"])
    block_text = options["block_size"]
    block_bytes = parse_size(block_text) if block_text else min(2**20, chunk_bytes)
    check_sizes(chunk_bytes, block_bytes)
    http = _optional(lambda text: parse_address(text, what="--http"), options["http"])
    if http is not None:
        check_http(http[0], options["http_public"])
    trackers = tuple(
        parse_address(part.strip(), what="--tracker") for part in options["tracker"].split(",")
    )
    configuration.check_require_seal(options["require_seal"], options.get("prefetch"))
    model_dir, mount = options["model_dir"], options["mount"]
    cache_dir = options["cache_dir"] or configuration.default_cache_dir(model_dir or mount)
    configuration.check_mount(mount, {"--model-dir": model_dir, "--cache-dir": cache_dir})
    origin = options["origin"] or configuration.environment("OSS_PATH")
    if options["until_complete"] and options["prefetch"] == "none":
        raise UsageError("--until-complete and --prefetch none exclude each other: leave one out")
    config = configuration.JoinConfig(
        trackers=trackers,
        model_dir=model_dir,
        cache_dir=cache_dir,
        origin=origin,
        origin_options=_origin_options(options, origin),
        model=options["model"],
        listen=tuple(parse_address(text, what="--listen") for text in options["listen"]),
        advertise=tuple(parse_address(text, what="--advertise") for text in options["advertise"]),
        http=http,
        chunk_bytes=chunk_bytes,
        block_bytes=block_bytes,
        token=configuration.read_token(options["token_file"]),
        source_ips=configuration.read_source_ips(options["source_ip"]),
        bind_device=options["bind_device"],
        pin_workers=options["pin_workers"],
        limits=RateLimits(parse_limit(options["max_upload"]), parse_limit(options["max_download"])),
        prefetch=options["prefetch"] == "all",
        cache_bytes=_optional(parse_size, options["cache_size"]),
        replace=options["replace"],
        follow=options["follow"],
        require_seal=options["require_seal"],
        mount=mount,
        until_complete=options["until_complete"],
        linger_s=options["linger"],
        report=options["report"],
        quiet=options["quiet"],
    )
    return _with_connector(config, options)


def _origin_options(options: dict[str, Any], origin: str | None) -> OriginOptions:
    for other in ("credentials", "profile"):
        if options["anonymous"] and options[other]:
            raise UsageError(f"--anonymous and --{other} exclude each other: leave one out")
    names = [name.strip() for text in options["files"] for name in text.split(",")]
    given = OriginOptions(
        endpoint=options["endpoint"] or None,
        region=options["region"] or None,
        addressing=options["addressing"],
        files=tuple(dict.fromkeys(name for name in names if name)),
        credentials_file=options["credentials"],
        profile=options["profile"] or None,
        anonymous=options["anonymous"],
    )
    return configuration.with_environment(given, origin or "")


def _with_connector(
    config: configuration.JoinConfig, options: dict[str, Any]
) -> tuple[configuration.JoinConfig, list[str]]:
    """Add what flags or the connector's file say; files are made only when all else is right."""
    from node import connector

    settings, warnings = connector.load(
        options["connector_config"], use_default=configuration.is_oss(config.origin or "")
    )
    workers, connections = options["workers"], options["connections"]
    if workers is None:
        workers = min(settings.vcpus or 1, configuration.core_count(), MAX_WORKERS)
    if connections is None:
        connections = min(settings.connections or config.connections, MAX_CONNECTIONS)

    def appendable(flag: str, ours: Path | None, theirs: Path | None) -> Path | None:
        path = ours or theirs
        reason = configuration.why_not_appendable(path) if path else None
        if reason is None:
            return path
        if ours:
            raise UsageError(f"{flag} {path}: {reason}")
        warnings.append(f"connector config names {path}: {reason}; going on without (see {flag})")
        return None

    audit = appendable("--audit", options["audit"], settings.audit_path)
    log_path = appendable("--log-file", options["log_file"], settings.log_path)
    level = options["log_level"] or (settings.log_level if log_path else None)
    added = replace(
        config,
        workers=workers,
        connections=connections,
        expire_s=settings.expire_s if options["expire"] is None else options["expire"],
        audit=audit,
        log_path=log_path,
        log_level=level or config.log_level,
    )
    return added, warnings


def _word(value: object) -> str:
    """A figure of the status, for people."""
    if value is None or value == [] or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


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
    for nic in shown.pop("nics"):
        words = [f"{way} {format_size(nic[f'{way}_bytes_s'])}/s" for way in ("in", "out")]
        shown[f"nic {nic['source_ip']}"] = ", ".join(words)
    for key, value in shown.items():
        text = format_size(value) if key.endswith("bytes") and value is not None else _word(value)
        if key.endswith("_bytes_s"):
            text = shown_limit(value)
        click.echo(f"{key:<18} {text}")


@main.command()
@click.option("--cache-dir", type=click.Path(path_type=Path), envvar="P2P_CACHE_DIR", metavar="DIR")
@click.option("--model-dir", type=click.Path(path_type=Path), envvar="MODEL_DIR", metavar="DIR")
@click.option("--max-upload", metavar="RATE|off", help="To all peers together.")
@click.option("--max-download", metavar="RATE|off", help="From peers and origin together.")
def limit(
    cache_dir: Path | None,
    model_dir: Path | None,
    max_upload: str | None,
    max_download: str | None,
) -> None:
    """Change the limits of a running node, at once; without --max options show them.

    A RATE is written like 20mbit, 1.5gbit or 12.5MB (a second). What is not given stays as it is.
    The node keeps a change until it ends; its next start reads its own options again.
    """
    from node.status import ask_node

    texts = dict(zip(FIELDS, (max_upload, max_download), strict=True))
    wanted = {name: parse_limit(text) for name, text in texts.items() if text is not None}
    RateLimits(**wanted)  # a mistake is named before a node is asked
    shown = ask_node(cache_dir or configuration.default_cache_dir(model_dir), "limit", **wanted)
    for name in FIELDS:
        click.echo(f"max-{name.partition('_')[0]:<10} {shown_limit(shown[name])}")


@main.command()
@click.argument("path")
@click.option("--cache-dir", type=click.Path(path_type=Path), envvar="P2P_CACHE_DIR", metavar="DIR")
@click.option("--model-dir", type=click.Path(path_type=Path), envvar="MODEL_DIR", metavar="DIR")
@click.option("--off", is_flag=True, help="They may be dropped again.")
def keep(path: str, cache_dir: Path | None, model_dir: Path | None, off: bool) -> None:
    """Never drop PATH, a file or folder of the model, from a bounded cache; get what is missing.

    The node remembers it in its cache. Everything is meant by `.`.
    """
    from node.status import ask_node

    directory = cache_dir or configuration.default_cache_dir(model_dir)
    answer = ask_node(directory, "keep", path=path, keep=not off)
    word = "may be dropped" if off else "kept"
    click.echo(f"{len(answer['files'])} files {word}, {format_size(answer['kept_bytes'])} in all")


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
