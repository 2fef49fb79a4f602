"""A cluster in a temporary folder for each end-to-end test, with 0 and with 2 workers."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster
from support.oss import OssServer
from support.oss_model import ID, SECRET


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory if there is room: 8 nodes of 1 GiB would wait for a disk's write-back."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and shutil.disk_usage(shm).free > 12 * 1024**3
    path = Path(tempfile.mkdtemp(prefix="shoal-test-", dir=shm if roomy else None))
    yield path
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if (point := line.split()[4]).startswith(f"{path}/"):  # of a node that was killed
            subprocess.run(["umount", "-l", point], check=True)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=[0, 2], ids=["workers=0", "workers=2"])
def cluster(request: pytest.FixtureRequest, folder: Path) -> Iterator[Cluster]:
    """A cluster whose nodes have this many workers each."""
    cluster = Cluster(folder, request.param)
    yield cluster
    cluster.close()


@pytest.fixture
def one(folder: Path) -> Iterator[Cluster]:
    """A cluster with one worker a node, as users run it."""
    cluster = Cluster(folder, 1)
    yield cluster
    cluster.close()


@pytest.fixture
def oss() -> Iterator[Callable[..., OssServer]]:
    """Start an `OssServer`; all are closed at the end."""
    started: list[OssServer] = []

    def start(*arguments: Any, **options: Any) -> OssServer:
        started.append(OssServer(*arguments, **{"credentials": {ID: SECRET}, **options}))
        return started[-1]

    yield start
    for server in started:
        server.close()
