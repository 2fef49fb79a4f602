"""The shared map of verified blocks, as a second mapping of the same file sees it."""

from pathlib import Path

from node.statemap import COUNTERS, COUNTERS_AT, VERIFIED, StateMap


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
