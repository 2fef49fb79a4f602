"""A bucket of the tests' OSS server with a model in it, and how an origin is told of it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from node.origins.base import OriginOptions
from support.oss import OssServer

ID, SECRET = "test-id", "test-s3cr3t"
FILES = {
    "model.safetensors": bytes(range(256)) * 700,
    "a b/täxt %41+&=?#;.json": b"odd",
    "模型/~config'(1)!*.json": b"unicode",
    "empty": b"",
    "sub/one": b"1",
}


def fill(root: Path, files: dict[str, bytes]) -> None:
    """Write `files` below `model/`, beside a folder whose name begins the same."""
    for key, data in files.items():
        path = root / "model" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    root.joinpath("model-2").mkdir(parents=True)
    root.joinpath("model-2", "other").write_bytes(b"of another model")


def options(server: OssServer, kind: str = "v4", **more: object) -> OriginOptions:
    """V4 is what a known region brings about."""
    region = server.region if kind == "v4" else None
    return OriginOptions(endpoint=server.endpoint, region=region, **more)


def write_credentials(path: Path, credentials: object, expires_in_s: float = 3600) -> None:
    """A credentials file whose Expiration is not what the store thinks, unless told so."""
    key_id, secret, token = credentials[:3]
    end = datetime.now(UTC) + timedelta(seconds=expires_in_s)
    fields = {
        "AccessKeyId": key_id, "AccessKeySecret": secret, "SecurityToken": token,
        "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    path.write_text(json.dumps(fields))
