"""The model dir: what is put there, and what is never touched."""

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from node.publish import ModelDir
from node.store import Cache, ChunkStore
from p2p.errors import UsageError
from p2p.manifest import File, Manifest

MANIFEST = Manifest("m", "", (File("d/x", 6, "e"), File("y", 3, "e")), 4096, 4096)
X, Y = 0, 1


class Place:
    """A model dir beside a store whose files are whole."""

    def __init__(self, path: Path, store: ChunkStore) -> None:
        self.path, self.store = path, store
        for file, data in ((X, b"theirs"), (Y, b"yyy")):
            store.file_path(file).write_bytes(data)

    def model_dir(self, *, replace: bool = False) -> ModelDir:
        """As the node opens it."""
        return ModelDir(self.path, MANIFEST, replace)

    def publish(self, file: int, *, replace: bool = False) -> None:
        """Give a file its final name."""
        self.model_dir(replace=replace).publish(file, self.store.file_path(file))

    def put(self, name: str, data: bytes) -> Path:
        """A file of the user's."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


@pytest.fixture
def place(tmp_path):
    """A model dir that does not exist yet."""
    with ExitStack() as stack:
        cache = stack.enter_context(closing(Cache.open(tmp_path / "cache")))
        store = stack.enter_context(closing(ChunkStore.open(cache, MANIFEST)))
        yield Place(tmp_path / "model", store)


def test_a_file_is_linked_under_its_name_read_only_and_again_changes_nothing(place):
    place.publish(X)
    target = place.path / "d" / "x"
    assert target.read_bytes() == b"theirs"
    assert target.samefile(place.store.file_path(X))
    assert target.stat().st_mode & 0o222 == 0
    before = target.stat()
    place.publish(X)
    assert target.stat() == before
    assert [path.name for path in place.path.rglob("*")] == ["d", "x"], "nothing is left beside it"


def test_a_file_of_the_same_bytes_is_left_as_it_is(place):
    mine = place.put("y", b"yyy")
    before = mine.stat()
    place.publish(Y)
    assert mine.stat() == before


@pytest.mark.parametrize("data", [b"mine!!", b"mine"], ids=["same size", "another size"])
def test_a_file_that_differs_is_replaced_only_when_told(place, data):
    mine = place.put("d/x", data)
    with pytest.raises(UsageError, match=r"d/x.*--replace"):
        place.publish(X)
    assert mine.read_bytes() == data
    place.publish(X, replace=True)
    assert mine.read_bytes() == b"theirs"


def test_a_file_of_another_size_is_named_before_anything_is_loaded(place):
    place.put("d/x", b"mine")
    with pytest.raises(UsageError, match=r"d/x.*--replace"):
        place.model_dir().check(place.store)
    assert place.model_dir(replace=True).check(place.store) == {}


def test_a_folder_where_a_file_belongs_is_never_replaced(place):
    place.put("y/mine", b"1")
    with pytest.raises(UsageError, match="y"):
        place.model_dir(replace=True).check(place.store)


def test_files_of_the_right_size_may_be_the_models_and_our_own_links_need_no_look(place):
    mine = place.put("d/x", b"maybe!")
    place.publish(Y)
    assert place.model_dir().check(place.store) == {X: mine}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "attempt",
    [lambda here: here.model_dir().check(here.store), lambda here: here.publish(X, replace=True)],
    ids=["check", "publish"],
)
def test_a_link_that_leads_out_of_the_model_dir_is_not_followed(
    place, tmp_path, attempt: Callable[[Place], object], replace
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if replace:
        (elsewhere / "x").write_bytes(b"mine")
    place.path.mkdir()
    os.symlink(elsewhere, place.path / "d")
    with pytest.raises(UsageError, match="leads out"):
        attempt(place)
    assert [path.read_bytes() for path in elsewhere.iterdir()] == ([b"mine"] if replace else [])
