"""Sizes, rates and addresses as people write them, and as programs need them."""

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

_BITS = {"bit": 1, "kbit": 1000, "mbit": 1000**2, "gbit": 1000**3, "tbit": 1000**4}


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


def parse_rate(text: str) -> int:
    """Bytes a second of `80Gbit` or `100mbit` (bits, decimal), `12.5MB` or `20MiB` (bytes).

    `20mb`, `20M` and `20` are refused: some mean bits by them, and some bytes.

    Raises:
      UsageError: not a number with a known unit, or less than a byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+?)(?:/s|ps)?\s*", text)
    word, rate = match[2] if match else "", 0.0
    if match and word.lower() in _BITS:
        rate = float(match[1]) * _BITS[word.lower()] / 8
    elif match and word.endswith("B"):
        rate = float(match[1]) * _SIZES.get(word.lower(), 0)
    if rate < 1:
        raise UsageError(f"{text!r} is not a rate: write it like 20mbit, 80Gbit, 12.5MB or 20MiB")
    return int(rate)


def format_rate(rate_bytes_s: float) -> str:
    """`2500000` as `20mbit`, as `parse_rate` reads it."""
    bits = rate_bytes_s * 8
    for unit in ("gbit", "mbit", "kbit"):
        if bits >= _BITS[unit]:
            return f"{bits / _BITS[unit]:.6g}{unit}"
    return f"{bits:.6g}bit"


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
