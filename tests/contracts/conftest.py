"""An OSS bucket with a model in it, and the keys to it, for the contracts of the OSS origin."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.oss import OssServer
from support.oss_model import FILES, ID, SECRET, fill


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """No variable of whoever runs the tests."""
    for name in ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keys(monkeypatch) -> None:
    """The right keys, in the environment."""
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", SECRET)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., OssServer]]:
    """Serve FILES below `model/`, beside a folder whose name begins the same."""
    started: list[OssServer] = []

    def start(files: dict[str, bytes] = FILES, **options: object) -> OssServer:
        root = tmp_path / f"bucket-{len(started)}"
        fill(root, files)
        started.append(OssServer(root, credentials={ID: SECRET}, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()
