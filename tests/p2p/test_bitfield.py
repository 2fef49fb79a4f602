"""A bitfield in parts: what changed is found, short, and makes the other side equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.bitfield import Bitfield, changed, indexes

SIZE = 60  # the last byte has spare bits
CHUNKS = st.sets(st.integers(0, SIZE - 1))


@given(CHUNKS, CHUNKS)
def test_what_changed_makes_one_bitfield_the_other(one, other):
    before, after = Bitfield(SIZE, one), Bitfield(SIZE, other)
    at, part = changed(bytes(before), bytes(after))
    assert len(part) <= max(one ^ other, default=-8) // 8 - min(one ^ other, default=0) // 8 + 1
    gained, lost = before.patch(at, part)
    assert bytes(before) == bytes(after)
    assert before.count == len(other)
    assert set(indexes(gained.to_bytes(len(part), "big"), at)) == other - one
    assert set(indexes(lost.to_bytes(len(part), "big"), at)) == one - other
    assert before.part(at, len(part)) == int.from_bytes(part, "big")


@pytest.mark.parametrize(
    ("at", "data"), [(0, b"\0" * 9), (8, b"\0"), (7, b"\0\0"), (7, b"\x01"), (0, b"\xff" * 8)]
)
def test_a_part_out_of_bounds_changes_nothing(at, data):
    bits = Bitfield(SIZE, [3])
    with pytest.raises(ValueError, match="bit"):
        bits.patch(at, data)
    assert list(bits) == [3]
    assert bits.count == 1


def test_an_empty_part_is_no_change():
    bits = Bitfield(SIZE, [3])
    assert bits.patch(0, b"") == bits.patch(8, b"") == (0, 0)
    assert Bitfield(0).patch(0, b"") == (0, 0)
