"""The stores' checksums put together from those of parts, against libraries that read the whole.

Goal: however an object is cut, and whoever read the pieces, the parts make the checksum that the
store tells of the whole. Neither library is used by the code under test.
"""

from collections.abc import Callable
from random import Random

import pytest
from awscrt import checksums
from fastcrc import crc64
from hypothesis import given
from hypothesis import strategies as st

from p2p.checksum import CHECKSUM_BYTES, combine, expected, written
from p2p.manifest import File

WHOLE: dict[str, Callable[[bytes], int]] = {
    "crc64xz": crc64.xz,
    "crc64nvme": checksums.crc64nvme,
}
CHECK = b"123456789"
KNOWN = {"crc64xz": 0x995DC9BBDF1939FA, "crc64nvme": 0xAE8B14860A799888}  # the CRC catalogue's
MIB = 1024**2

kinds = st.sampled_from(sorted(WHOLE))
values = st.integers(0, 2**64 - 1)


def combined(kind: str, pieces: list[bytes]) -> int:
    """What the code under test makes of the pieces' checksums and lengths."""
    return combine(kind, [(WHOLE[kind](piece), len(piece)) for piece in pieces])


@pytest.mark.parametrize("kind", KNOWN)
def test_the_known_check_value_comes_out_of_three_parts_cut_anywhere(kind):
    for one in range(len(CHECK) + 1):
        for other in range(one, len(CHECK) + 1):
            pieces = [CHECK[:one], CHECK[one:other], CHECK[other:]]
            assert combined(kind, pieces) == KNOWN[kind], pieces


@given(kinds, st.lists(st.binary(max_size=40), max_size=8))
def test_any_parts_make_the_checksum_of_the_whole(kind, pieces):
    assert combined(kind, pieces) == WHOLE[kind](b"".join(pieces))


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("pieces", [[], [b""], [b"", b"", b""]], ids=len)
def test_nothing_has_the_checksum_of_nothing(kind, pieces):
    assert combined(kind, pieces) == WHOLE[kind](b"") == 0


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("last", [1, 4095, 4096, MIB - 1, MIB + 1])
def test_chunks_of_full_size_and_a_last_one_of_any_size_make_an_object(kind, last):
    data = Random(last).randbytes(3 * MIB + last)
    assert combined(kind, [data[at : at + MIB] for at in range(0, len(data), MIB)]) == (
        WHOLE[kind](data)
    )


@given(values, values, st.integers(1, 2**40))
def test_parts_too_long_for_a_test_to_read_agree_with_the_stores_own_library(one, other, length):
    theirs = checksums.combine_crc64nvme(one, other, length)
    assert combine("crc64nvme", [(one, 5), (other, length)]) == theirs


@given(kinds, st.lists(st.tuples(values, st.integers(0, 2**40)), min_size=2, max_size=6))
def test_parts_can_be_put_together_in_any_grouping(kind, parts):
    """So a file of terabytes can be taken in chunk by chunk, as its checksums come."""
    total, length = 0, 0
    for part in parts:
        total, length = combine(kind, [(total, length), part]), length + part[1]
    tail = (combine(kind, parts[1:]), sum(length for _, length in parts[1:]))
    assert combine(kind, parts) == total == combine(kind, [parts[0], tail])


@pytest.mark.parametrize("kind", KNOWN)
def test_two_parts_that_changed_places_make_another_checksum(kind):
    pieces = [b"a" * 4096, b"b" * 4096]
    assert combined(kind, pieces) != combined(kind, pieces[::-1])


@pytest.mark.parametrize("kind", ["crc32", "crc64", "CRC64XZ", ""])
def test_a_checksum_of_an_unknown_kind_is_an_error_even_of_nothing(kind):
    with pytest.raises(KeyError):
        combine(kind, [])
    with pytest.raises(KeyError):
        combine(kind, [(1, 0), (2, 1)])


@given(kinds, values)
def test_a_manifests_word_is_read_as_it_was_written(kind, value):
    word = written(kind, value)
    assert expected(word) == (kind, value)
    File("f", 1, "e", checksum=word)
    assert len(word) == len(f"{kind}:") + 2 * CHECKSUM_BYTES, "leading zeros are kept"


def test_the_word_in_a_manifest_is_the_kind_and_the_value_in_hex():
    assert written("crc64xz", KNOWN["crc64xz"]) == "crc64xz:995dc9bbdf1939fa"
    assert written("crc64nvme", 0xAB) == "crc64nvme:00000000000000ab"
    assert expected("crc64nvme:ae8b14860a799888") == ("crc64nvme", KNOWN["crc64nvme"])
