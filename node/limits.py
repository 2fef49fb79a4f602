"""The host's limits as people give and change them; `node.throttle` is what holds them."""

from collections.abc import Callable
from typing import Any

from p2p.errors import UsageError
from p2p.rates import RateLimits
from p2p.units import format_rate, parse_rate

FIELDS = ("upload_bytes_s", "download_bytes_s")


def parse_limit(text: str | None) -> int | None:
    """Bytes a second of `--max-upload`; None for `off`, or when it is not given.

    Raises:
      UsageError: not a rate.
    """
    return None if text is None or text == "off" else int(parse_rate(text))


def shown_limit(rate_bytes_s: int | None) -> str:
    """What a person reads: `20mbit` or `off`."""
    return "off" if rate_bytes_s is None else format_rate(rate_bytes_s)


def changed(limits: RateLimits, request: dict[str, Any]) -> RateLimits:
    """`limits` with what a request names put in its place.

    Raises:
      UsageError: an unknown field, not a whole number of bytes a second, or too few.
    """
    values = {name: getattr(limits, name) for name in FIELDS}
    for name, value in request.items():
        if name not in FIELDS:
            raise UsageError(f"unknown field {name!r}: one of {', '.join(FIELDS)}")
        if value is not None and type(value) is not int:
            raise UsageError(f"{name} is a whole number of bytes a second, or null for no limit")
        values[name] = value
    return RateLimits(**values)


def limit_command(
    current: Callable[[], RateLimits], change: Callable[[RateLimits], None]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The node's answer to `limit`: change what is named, and show what is in force."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request:
            change(changed(current(), request))
        limits = current()
        return {name: getattr(limits, name) for name in FIELDS}

    return answer
