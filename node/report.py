"""The figures of one run, written whole or not at all."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from p2p.errors import P2PError


@dataclass(slots=True)
class Report:
    """What `--report FILE` holds. Bytes are of this run, workers included; times are unix seconds.

    `origin_bytes` are body bytes received, discarded ones too; `seconds` runs from `started_at` to
    `completed_at` (null until complete). `cpu_seconds` are of the control process and its workers,
    `worker_cpu_seconds` of the workers alone. `seal` is none (the store tells no checksums),
    pending, sealed or broken.
    """

    manifest_id: str = ""
    model: str = ""
    complete: bool = False
    bytes: int = 0
    chunks: int = 0
    origin_bytes: int = 0
    peer_bytes: int = 0
    served_bytes: int = 0
    resumed_bytes: int = 0
    duplicate_bytes: int = 0
    corrupt_chunks: int = 0
    joined_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    seconds: float | None = None
    cpu_seconds: float = 0.0
    worker_cpu_seconds: float = 0.0
    seal: str = ""

    def write(self, path: Path) -> None:
        """Replace the file at `path` at once.

        Raises:
          P2PError: it cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
            temporary.replace(path)
        except OSError as error:
            raise P2PError(f"report {path}: {error.strerror}") from error
