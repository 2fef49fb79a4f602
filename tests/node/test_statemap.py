"""The shared map of verified blocks, as a second mapping of the same file sees it."""

import subprocess
import sys
import time
from pathlib import Path

from node.statemap import COUNTERS, COUNTERS_AT, MISSING, RELAYED, VERIFIED, StateMap


def pair(tmp_path: Path) -> tuple[StateMap, StateMap]:
    """The map of a node, and that of a reader: 100 chunks of 4 blocks."""
    path = tmp_path / "state"
    return StateMap.create(path, 100, 4), StateMap(path)


def counters(path: Path) -> bytes:
    return path.read_bytes()[COUNTERS_AT : COUNTERS_AT + 4 * COUNTERS]


def test_an_eviction_is_seen_by_a_reader_that_checks_before_and_after(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.set_chunk(7, 4, VERIFIED)
    before = reader.evictions
    assert reader.blocks(7, 0, 4) == b"\1\1\1\1"
    writer.evict(7, 4)
    writer.set_chunk(7, 4, VERIFIED)  # it is fetched again before the reader looks
    assert reader.blocks(7, 0, 4) == b"\1\1\1\1"
    assert reader.evictions == before + 1
    for one in (writer, reader):
        one.close()


def test_a_retired_map_says_so_and_wakes_every_reader(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    before = counters(tmp_path / "state")
    assert not reader.retired
    writer.retire()
    assert reader.retired
    after = counters(tmp_path / "state")
    assert all(before[at : at + 4] != after[at : at + 4] for at in range(0, len(after), 4))
    for one in (writer, reader):
        one.close()


def test_one_who_waits_is_woken_by_another_process_and_not_by_time(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    seen = reader.counter(7)
    code = (
        "import sys\nfrom pathlib import Path\nfrom node.statemap import StateMap\n"
        "input()\nStateMap(Path(sys.argv[1])).set(7, 2, 1)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "state")], stdin=subprocess.PIPE
    )
    with other:
        assert other.stdin is not None
        other.stdin.write(b"\n")
        other.stdin.close()
        begin = time.monotonic()
        while reader.find_missing(7 * 4 + 2, 7 * 4 + 3) >= 0:
            reader.wait(7, seen, 60.0)
    assert time.monotonic() - begin < 30, "the wake came, not the end of the time"
    reader.wait(7, seen, 60.0)  # the counter has changed: no wait at all
    assert (reader.find_missing(0, 400), reader.find_missing(7 * 4 + 2, 400)) == (0, 31)
    for one in (writer, reader):
        one.close()


def test_a_stale_map_is_retired_when_the_next_one_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = StateMap.create(path, 10, 4)
    second = StateMap.create(path, 10, 4)
    assert first.retired
    assert not second.retired
    assert second.generation == first.generation + 1
    path.write_bytes(b"rubbish")
    assert StateMap.create(path, 10, 4).generation == 1
    for one in (first, second):
        one.close()


def test_a_block_that_is_only_relayed_may_not_be_read(tmp_path: Path) -> None:
    writer, reader = pair(tmp_path)
    writer.set_chunk(3, 4, VERIFIED)
    assert reader.find_missing(12, 16) == -1
    writer.set(3, 2, RELAYED)
    assert reader.find_missing(12, 16) == 14
    writer.set(3, 3, MISSING)
    assert (reader.find_missing(12, 16), reader.find_missing(15, 16)) == (14, 15)
    writer.set(3, 1, MISSING)
    assert reader.find_missing(12, 16) == 13
    for one in (writer, reader):
        one.close()
