"""Nothing listens wider than asked, and nothing beyond loopback without a cluster token."""

import ipaddress
from collections.abc import Iterable

from p2p.errors import UsageError


def is_loopback(host: str) -> bool:
    """`host` is this machine and nothing else: 127.0.0.0/8, ::1 or localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(hosts: Iterable[str], token: bytes) -> None:
    """Check the addresses that a program listens on or advertises.

    Raises:
      UsageError: one is not loopback, and there is no token.
    """
    for host in hosts:
        if not token and not is_loopback(host):
            raise UsageError(
                f"{host} is not loopback, and without a cluster token anyone who reaches it could "
                "read the model: give --token-file FILE (or P2P_TOKEN) on every node and tracker"
            )


def check_http(host: str, public: bool) -> None:
    """Check the address of the HTTP side, which asks nobody for a token.

    Raises:
      UsageError: it is not loopback, and that was not asked for.
    """
    if not public and not is_loopback(host):
        raise UsageError(
            f"--http {host} is not loopback and asks nobody for a token: add --http-public if "
            "everyone who reaches it may see names and progress (it shows no secret)"
        )
