"""What `tracker serve` was asked to do. Only this module of it reads the environment."""

import os
from dataclasses import dataclass
from pathlib import Path

from p2p.errors import UsageError


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Flags, then environment, then defaults."""

    listen: tuple[str, int]
    http: tuple[str, int] | None
    origin: str
    start_with: int
    token: bytes
    origin_rate_bytes_s: float | None = None
    origin_requests_s: float | None = None
    """what each account's origin may be asked by all nodes; None: it is found out"""

    def __repr__(self) -> str:
        return f"<ServeConfig listen={self.listen}>"


def read_token(token_file: Path | None) -> bytes:
    """The cluster token: the file's content without surrounding white space, else `P2P_TOKEN`.

    Raises:
      UsageError: the file cannot be read or is empty.
    """
    if token_file is None:
        return os.environ.get("P2P_TOKEN", "").strip().encode()
    try:
        token = token_file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"token file {token_file}: {error.strerror}") from error
    if not token:
        raise UsageError(f"token file {token_file} is empty")
    return token
