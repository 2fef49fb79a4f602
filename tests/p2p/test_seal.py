"""The seal's promises, from drawn files up to every order of checksums and of others' words.

Goal: a file is vouched for when all of it was read as the store has it, and never when one bit is
wrong; which chunks are still wanted is known at any time.
Method: files drawn as text (one letter a chunk), their checksums computed by the stores' own
libraries over the whole; then a state machine in which a model keeps the bytes that were read.
"""

from itertools import permutations

import pytest
from awscrt import checksums
from fastcrc import crc64
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2p.manifest import File, Manifest
from p2p.seal import Broken, Seal

CHUNK = 4096
WHOLE = {"crc64xz": crc64.xz, "crc64nvme": checksums.crc64nvme}


def content(letters: str) -> bytes:
    """A file with one chunk a letter; the last one is shorter, as in most files."""
    return b"".join(letter.encode() * CHUNK for letter in letters)[:-100]


def told(kind: str, data: bytes) -> str:
    """A manifest's word for the checksum of these bytes."""
    return f"{kind}:{WHOLE[kind](data):016x}"


class Drawn:
    """A drawn model: file name to letters. `-` before them: the store tells no checksum."""

    def __init__(self, kind: str = "crc64xz", **files: str) -> None:
        self.kind = kind
        self.names = list(files)
        self.data = [content(letters.lstrip("-")) for letters in files.values()]
        self.known = ["-" not in letters for letters in files.values()]
        entries = [
            File(name, len(data), "e", checksum=told(kind, data) if known else "")
            for name, data, known in zip(files, self.data, self.known, strict=True)
        ]
        self.manifest = Manifest("m", "", tuple(entries), CHUNK, CHUNK)

    def read(self, chunk: int, flipped: int | None = None) -> bytes:
        """The bytes of a chunk, with one bit wrong if that is asked for."""
        file, offset, length = self.manifest.extent(chunk)
        data = bytearray(self.data[file][offset : offset + length])
        if flipped is not None:
            data[flipped // 8 % length] ^= 1 << flipped % 8
        return bytes(data)

    def crc(self, chunk: int, flipped: int | None = None) -> int:
        return WHOLE[self.kind](self.read(chunk, flipped))


# -- chunks' checksums ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_a_file_is_sealed_by_its_last_checksum_in_whatever_order_they_come(kind, order):
    drawn = Drawn(kind, f="abcd")
    seal = Seal(drawn.manifest)
    for chunk in order[:-1]:
        assert seal.take(chunk, drawn.crc(chunk)) is None
        assert not seal.vouches(0)
    assert seal.take(order[-1], drawn.crc(order[-1])) == 0
    assert seal.vouches(0)
    assert list(seal.sealed) == [0]


def test_files_are_sealed_apart():
    drawn = Drawn(a="ab", b="c", c="de")
    seal = Seal(drawn.manifest)
    assert [seal.take(chunk, drawn.crc(chunk)) for chunk in (3, 1, 0, 4, 2)] == [
        None, None, 0, 2, 1,
    ]  # fmt: skip
    assert list(seal.sealed) == [0, 2, 1]


@given(
    kind=st.sampled_from(sorted(WHOLE)),
    order=st.permutations(range(3)),
    wrong=st.integers(0, 2),
    bit=st.integers(0, 8 * CHUNK - 1),
)
def test_one_wrong_bit_anywhere_is_always_broken(kind, order, wrong, bit):
    drawn = Drawn(kind, f="abc")
    seal = Seal(drawn.manifest)
    bits = {wrong: bit}
    decided = [seal.take(chunk, drawn.crc(chunk, bits.get(chunk))) for chunk in order]
    assert decided == [None, None, 0]
    assert not seal.vouches(0)
    assert not seal.sealed
    read = b"".join(drawn.read(chunk, bits.get(chunk)) for chunk in range(3))
    assert seal.broken == {0: Broken(0, told(kind, drawn.data[0]), told(kind, read))}


def test_chunks_that_changed_places_are_broken():
    drawn = Drawn(f="abc")
    seal = Seal(drawn.manifest)
    for chunk, other in ((0, 1), (1, 0), (2, 2)):
        seal.take(chunk, drawn.crc(other))
    assert list(seal.broken) == [0]


def test_the_first_checksum_of_a_chunk_counts():
    drawn = Drawn(f="abc")
    seal = Seal(drawn.manifest)
    for chunk in (0, 2):  # the one is taken in at once, the other waits for what is before it
        assert seal.take(chunk, drawn.crc(chunk)) is None
        assert seal.take(chunk, drawn.crc(chunk, flipped=9)) is None
    assert list(seal._crcs) == [2], "what is taken in is not kept"
    assert seal.take(1, drawn.crc(1)) == 0
    assert list(seal.sealed) == [0]


@pytest.mark.parametrize("flipped", [None, 3])
def test_a_checksum_that_comes_after_the_decision_decides_nothing(flipped):
    drawn = Drawn(f="ab")
    seal = Seal(drawn.manifest)
    seal.take(0, drawn.crc(0, flipped))
    seal.take(1, drawn.crc(1))
    before = dict(seal.sealed), dict(seal.broken)
    for chunk in (0, 1):
        assert seal.take(chunk, drawn.crc(chunk)) is None
        assert seal.take(chunk, drawn.crc(chunk, flipped=5)) is None
    assert (seal.sealed, seal.broken) == before


def test_wanted_names_exactly_the_chunks_whose_checksums_have_not_come():
    drawn = Drawn(a="x", f="abcde")
    seal = Seal(drawn.manifest)
    assert seal.wanted(0) == [0]
    assert seal.wanted(1) == [1, 2, 3, 4, 5]
    for chunk, missing in ((3, [1, 2, 4, 5]), (1, [2, 4, 5]), (2, [4, 5]), (5, [4])):
        seal.take(chunk, drawn.crc(chunk))
        assert seal.wanted(1) == missing
    assert seal.wanted(0) == [0], "another file's are its own"


# -- files without checksums, and empty ones ------------------------------------------------------


def test_a_file_of_which_the_store_tells_no_checksum_is_vouched_for_and_takes_no_part():
    drawn = Drawn(a="-ab", b="c")
    seal = Seal(drawn.manifest)
    assert seal.vouches(0)
    assert seal.unchecked == 1
    assert list(seal.pending) == [1]
    assert seal.take(0, drawn.crc(0, flipped=1)) is None
    assert seal.take(1, drawn.crc(1, flipped=1)) is None
    assert not seal.trust(0)
    assert seal.vouches(0)
    assert seal.unchecked == 1
    seal.take(2, drawn.crc(2))
    assert list(seal.sealed) == [1]
    assert seal.unchecked == 1


@pytest.mark.parametrize("kind", WHOLE)
def test_an_empty_file_is_compared_at_once(kind):
    drawn = Drawn(kind, a="", b="x", c="")
    seal = Seal(drawn.manifest)
    assert list(seal.sealed) == [0, 2]
    assert list(seal.pending) == [1]
    assert not seal.trust(0)


def test_an_empty_file_that_the_store_has_bytes_for_is_broken_at_once():
    stored = told("crc64xz", b"not empty")
    seal = Seal(Manifest("m", "", (File("f", 0, "e", checksum=stored),), CHUNK, CHUNK))
    assert seal.broken == {0: Broken(0, stored, told("crc64xz", b""))}
    assert not seal.vouches(0)


def test_empty_files_between_others_move_no_chunk():
    drawn = Drawn(a="", b="xy", c="", d="-", e="z")
    seal = Seal(drawn.manifest)
    assert [seal.take(chunk, drawn.crc(chunk)) for chunk in (2, 1, 0)] == [4, None, 1]
    assert seal.word == "sealed"


# -- others' words --------------------------------------------------------------------------------


def test_a_file_that_somebody_compared_is_trusted_and_that_is_news_once():
    drawn = Drawn(f="ab")
    seal = Seal(drawn.manifest)
    seal.take(1, drawn.crc(1, flipped=0))
    assert seal.trust(0)
    assert not seal.trust(0)
    assert seal.take(0, drawn.crc(0)) is None, "what was read before counts no more"
    assert seal._crcs == {}, "nor is it kept"
    assert seal.vouches(0)
    assert not seal.broken


def test_a_condemned_file_stays_so_whatever_was_and_whatever_comes():
    drawn = Drawn(a="a", b="b", c="c")
    stored, read = told("crc64xz", b"1"), told("crc64xz", b"2")
    seal = Seal(drawn.manifest)
    seal.trust(0)
    seal.take(2, drawn.crc(2, flipped=0))
    for file in range(3):  # sealed, pending, broken
        seal.condemn(file, stored, read)
    assert seal.broken == {file: Broken(file, stored, read) for file in range(3)}
    assert not seal.sealed
    assert not seal.pending
    assert not seal.trust(1)
    assert seal.take(1, drawn.crc(1)) is None
    assert not any(seal.vouches(file) for file in range(3))


def test_the_word_for_status_is_the_worst_of_all_files():
    assert Seal(Drawn(a="-a", b="-").manifest).word == "none"
    drawn = Drawn(a="a", b="b", c="-c", d="d")
    seal = Seal(drawn.manifest)
    assert seal.word == "pending"
    seal.take(0, drawn.crc(0))
    seal.trust(1)
    assert seal.word == "pending"
    seal.take(3, drawn.crc(3))
    assert seal.word == "sealed"
    pending = Seal(drawn.manifest)
    pending.take(1, drawn.crc(1, flipped=0))
    assert pending.word == "broken", "although others are pending"


# -- every order ----------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Good and bad reads, trust and blame; a model keeps the bytes, and compares whole files."""

    @initialize(kind=st.sampled_from(sorted(WHOLE)))
    def start(self, kind):
        self.drawn = Drawn(kind, a="abc", b="", c="-de", d="f", e="ghij")
        self.seal = Seal(self.drawn.manifest)
        self.read: dict[int, bytes] = {}
        self.state = dict.fromkeys([0, 3, 4], "pending") | {1: "sealed"}
        self.broken: dict[int, Broken] = {}

    def chunks(self, file):
        first = sum(-(-len(data) // CHUNK) for data in self.drawn.data[:file])
        return range(first, first - (-len(self.drawn.data[file]) // CHUNK))

    def file_of(self, chunk):
        (file,) = (f for f in range(len(self.drawn.data)) if chunk in self.chunks(f))
        return file

    @rule(
        chunk=st.integers(0, 9),
        flipped=st.one_of(st.none(), st.none(), st.integers(0, 8 * CHUNK - 1)),
    )
    def take(self, chunk, flipped):
        file, data = self.file_of(chunk), self.drawn.read(chunk, flipped)
        decided = None
        if self.state.get(file) == "pending" and chunk not in self.read:
            self.read[chunk] = data
            if all(one in self.read for one in self.chunks(file)):
                decided = file
                self.compare(file)
        assert self.seal.take(chunk, WHOLE[self.drawn.kind](data)) == decided

    def compare(self, file):
        whole = b"".join(self.read[chunk] for chunk in self.chunks(file))
        self.state[file] = "sealed" if whole == self.drawn.data[file] else "broken"
        if whole != self.drawn.data[file]:
            words = (told(self.drawn.kind, data) for data in (self.drawn.data[file], whole))
            self.broken[file] = Broken(file, *words)

    @rule(file=st.integers(0, 4))
    def trust(self, file):
        news = self.state.get(file) == "pending"
        assert self.seal.trust(file) == news
        if news:
            self.state[file] = "sealed"

    @precondition(lambda self: len(self.broken) < 2)
    @rule(file=st.sampled_from([0, 1, 3, 4]))
    def condemn(self, file):
        self.broken[file] = Broken(file, "crc64xz:" + "0" * 16, "crc64xz:" + "1" * 16)
        self.state[file] = "broken"
        self.seal.condemn(file, self.broken[file].stored, self.broken[file].read)

    @invariant()
    def agrees(self):
        if not hasattr(self, "seal"):
            return
        for name in ("pending", "sealed", "broken"):
            files = {file for file, state in self.state.items() if state == name}
            assert set(getattr(self.seal, name)) == files
        assert self.seal.broken == self.broken
        assert self.seal.unchecked == 1
        for file in range(5):
            assert self.seal.vouches(file) == (self.state.get(file, "sealed") == "sealed")
        for file in self.seal.pending:
            missing = [chunk for chunk in self.chunks(file) if chunk not in self.read]
            assert self.seal.wanted(file) == missing

    def teardown(self):
        """Liveness: once every chunk was read, nothing is pending."""
        if hasattr(self, "seal"):
            for chunk in range(10):
                self.take(chunk=chunk, flipped=None)
            assert self.seal.word in ("sealed", "broken")
            self.agrees()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
