"""Memory that is held ready: what others write comes out of it, and at the end nothing is left."""

import os
import tempfile
from pathlib import Path

import pytest

from p2p.units import MIB
from simulations import memory
from simulations.bench.processes import TMPFS
from simulations.memory import _Reserve, held_ready

SLACK = 4 * MIB  # other programs write there, too


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.setattr(memory, "WAITING", 0)
    monkeypatch.setattr(memory, "AHEAD", 8 * MIB)
    monkeypatch.setattr(memory, "STEP", MIB)
    with tempfile.TemporaryDirectory(prefix="shoal-memory-", dir=TMPFS) as name:
        yield Path(name)


def used(folder: Path) -> int:
    there = os.statvfs(folder)
    return (there.f_blocks - there.f_bfree) * there.f_frsize


def test_it_shrinks_by_what_others_write_and_some_is_free_ahead_of_them(folder):
    before = used(folder)
    reserve = _Reserve(folder, 32 * MIB)
    assert abs(used(folder) - before - 24 * MIB) < SLACK
    (folder / "copy").write_bytes(bytes(16 * MIB))
    reserve.shrink()
    assert abs(used(folder) - before - 24 * MIB) < SLACK
    (folder / "more").write_bytes(bytes(16 * MIB))
    reserve.shrink()
    assert abs(used(folder) - before - 32 * MIB) < SLACK, "nothing is left of it"
    reserve.close()


def test_it_has_no_name_and_leaves_nothing_behind(folder):
    before = used(folder)
    with held_ready(folder, 32 * MIB):
        assert used(folder) - before > 8 * MIB
        assert list(folder.iterdir()) == []
    assert abs(used(folder) - before) < SLACK


def test_where_there_is_little_room_it_takes_less_and_never_what_is_to_be_left(folder, monkeypatch):
    monkeypatch.setattr(memory, "room_bytes", lambda _folder: memory.SPARE + 2 * MIB)
    before = used(folder)
    reserve = _Reserve(folder, 64 * MIB)
    assert used(folder) - before < SLACK + 2 * MIB
    reserve.close()
