"""Sizes and addresses as people write them, and as programs need them."""

import re

from p2p.errors import UsageError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZES = {
    "": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
    "k": KIB, "m": MIB, "g": GIB, "t": 1024**4,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1024**4,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes of `16MiB`, `64k`, `1GB` or `4096`.

    Raises:
      UsageError: not a number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].lower() not in _SIZES:
        raise UsageError(f"{text!r} is not a size: write it like 16MiB, 64KiB or 1GB")
    return int(float(match[1]) * _SIZES[match[2].lower()])


def format_size(size_bytes: float) -> str:
    """`1536` as `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def parse_address(text: str, *, what: str = "address") -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[V6]:PORT`.

    Raises:
      UsageError: the port is missing or out of range.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{what} {text!r} is not HOST:PORT (an IPv6 host goes in brackets)")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
