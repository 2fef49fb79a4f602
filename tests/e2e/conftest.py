"""A cluster in a temporary folder for each end-to-end test, with 0 and with 2 workers."""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "e2e_cluster", Path(__file__).with_name("cluster.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["e2e_cluster"] = _MODULE
_SPEC.loader.exec_module(_MODULE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory if there is room: 8 nodes of 1 GiB would wait for a disk's write-back."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and shutil.disk_usage(shm).free > 12 * 1024**3
    path = Path(tempfile.mkdtemp(prefix="shoal-test-", dir=shm if roomy else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=[0, 2], ids=["workers=0", "workers=2"])
def cluster(request: pytest.FixtureRequest, folder: Path) -> Iterator[object]:
    """A cluster whose nodes have this many workers each."""
    cluster = _MODULE.Cluster(folder, request.param)
    yield cluster
    cluster.close()
