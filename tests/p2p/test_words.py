"""Bitfield, units, digest and manifest: small words that everything else is built of."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.bitfield import Bitfield
from p2p.digest import block_digest, chunk_pin
from p2p.errors import ManifestError, UsageError
from p2p.exposure import check_exposure, check_http
from p2p.manifest import MAX_CHUNKS, File, Manifest
from p2p.units import parse_address, parse_size


def manifest(*sizes: int, chunk: int = 8192, block: int = 4096) -> Manifest:
    files = tuple(File(f"f{i:03}", size, '"e"') for i, size in enumerate(sizes))
    return Manifest("m", "http://o/", files, chunk, block)


@given(st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)))
def test_a_bitfield_is_a_set_that_travels(held, dropped):
    field = Bitfield(100, held)
    for index in dropped:
        field.discard(index)
    expected = held - dropped
    again = Bitfield.from_bytes(bytes(field), 100)
    assert list(again) == sorted(expected)
    assert len(again) == len(field) == len(expected)
    assert field.complete == (len(expected) == 100)


def test_a_bitfield_of_a_wrong_length_or_with_a_spare_bit_is_refused():
    for data in (b"\xff", b"\xff\xff\xff", b"\xff\x01"):
        with pytest.raises(ValueError, match="bit"):
            Bitfield.from_bytes(data, 15)


def test_chunks_never_span_files_and_an_empty_file_has_none():
    drawn = manifest(0, 1, 8192, 8193, 0, 20000)
    assert drawn.chunk_count == 0 + 1 + 1 + 2 + 0 + 3
    assert [list(drawn.chunks_of(i)) for i in range(6)] == [[], [0], [1], [2, 3], [], [4, 5, 6]]
    assert drawn.extent(3) == (3, 8192, 1)
    assert drawn.extent(6) == (5, 16384, 3616)
    assert [drawn.block_count(c) for c in range(7)] == [1, 2, 2, 1, 2, 2, 1]
    assert drawn.order == [0, 1, 2, 4, 3, 5, 6], "heads of all files first, then file order"


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=20))
def test_the_chunks_of_a_manifest_cover_every_byte_once(sizes):
    drawn = manifest(*sizes)
    seen = [0] * len(sizes)
    for chunk in range(drawn.chunk_count):
        file, offset, length = drawn.extent(chunk)
        assert offset == seen[file]
        assert length > 0
        seen[file] += length
    assert seen == list(sizes)
    assert sorted(drawn.order) == list(range(drawn.chunk_count))


def test_a_manifest_decodes_to_itself_and_its_id_is_pinned():
    drawn = manifest(5, 10_000)
    again = Manifest.decode(drawn.encode())
    assert again == drawn
    assert again.id == drawn.id
    golden = "2c1539490f6d1413811e73bb6b7d8748b7b724a62677ee413c59c86c7c4c3b9e"
    assert drawn.id.hex() == golden, "the id is the same for every node of every version"
    assert manifest(5, 10_001).id != drawn.id


@given(st.binary(max_size=300))
def test_garbage_is_never_a_manifest(data):
    with pytest.raises(ManifestError):
        Manifest.decode(data)


def test_a_manifest_has_one_encoding_only():
    tree = msgpack.unpackb(manifest(5).encode())
    with pytest.raises(ManifestError, match="canonical"):
        Manifest.decode(msgpack.packb(dict(reversed(tree.items()))))
    with pytest.raises(ManifestError, match="canonical"):
        Manifest.decode(msgpack.packb({**tree, "zzz": 1}))


def test_the_bytes_of_some_chunks_are_counted_though_files_end_anywhere():
    made = manifest(1, 0, 8192, 8193, 20_000)
    lengths = [made.extent(chunk).length for chunk in range(made.chunk_count)]
    assert lengths == [1, 8192, 8192, 1, 8192, 8192, 3616]
    for held in ([], [0], [1, 2], [3], [0, 3, 6], [4, 5], list(range(7))):
        assert made.bytes_of(Bitfield(7, held)) == sum(lengths[chunk] for chunk in held)


@pytest.mark.parametrize(("names", "words"), [("ba", "sorted"), ("aa", "twice")])
def test_files_out_of_order_and_files_named_twice_are_refused(names, words):
    with pytest.raises(ManifestError, match=words):
        Manifest("m", "", tuple(File(name, 1, "e") for name in names))


def test_more_chunks_than_a_bitfield_may_have_are_refused_with_the_way_out():
    Manifest("m", "", (File("x", MAX_CHUNKS * 4096, "e"),), 4096, 4096)
    with pytest.raises(ManifestError, match="--chunk-size"):
        Manifest("m", "", (File("x", MAX_CHUNKS * 4096 + 1, "e"),), 4096, 4096)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "nul\0", "x/", "é" * 200]
)
def test_a_file_name_that_would_leave_the_model_dir_is_refused(path):
    with pytest.raises(ManifestError):
        Manifest("m", "", (File(path, 1, "e"),))


def test_a_name_that_is_both_file_and_folder_is_refused():
    with pytest.raises(ManifestError, match="both"):
        Manifest("m", "", (File("a", 1, "e"), File("a/b", 1, "e")))


def test_a_changed_digest_changes_the_pin():
    digests = [block_digest(b"one"), block_digest(b"two")]
    assert chunk_pin(digests) == chunk_pin(b"".join(digests))
    assert chunk_pin(digests) != chunk_pin(digests[::-1])
    assert block_digest(b"").hex() == "99aa06d3014798d86001c324468d497f", "xxh3-128's own vector"


@pytest.mark.parametrize(
    ("text", "size"), [("16MiB", 1 << 24), ("64k", 65536), ("1GB", 10**9), ("7", 7), ("1.5K", 1536)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "5 apples", "-1", "1e5"])
def test_what_is_not_a_size_is_named(text):
    with pytest.raises(UsageError, match="16MiB"):
        parse_size(text)


def test_addresses_with_ipv6_and_without_a_port():
    assert parse_address("[::1]:70") == ("::1", 70)
    assert parse_address("host:1") == ("host", 1)
    for text in ("host", ":1", "::1:5", "h:99999", "h:x"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(text)


def test_without_a_token_nothing_listens_beyond_loopback():
    check_exposure(["127.0.0.1", "::1", "localhost", "127.9.9.9"], b"")
    check_exposure(["0.0.0.0", "10.0.0.1"], b"token")
    for host in ("0.0.0.0", "10.0.0.1", "example.org", "::"):
        with pytest.raises(UsageError, match="token"):
            check_exposure([host], b"")


def test_what_asks_nobody_for_a_token_is_public_only_when_that_was_said():
    check_http("127.0.0.1", public=False)
    check_http("0.0.0.0", public=True)
    with pytest.raises(UsageError, match="--http-public"):
        check_http("0.0.0.0", public=False)
