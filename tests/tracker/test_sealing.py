"""Who is asked for checksums: holders, of whole files, no more than needed, and again in time.

Goal: the tracker learns every checksum that some node can tell, and no node reads a chunk for it
twice within `ASK_AGAIN_S`.
Method: holders drawn as text (one row a node, one column a chunk), then a state machine in which
nodes hold, lose, answer and go as they like.
"""

from math import inf
from random import Random

import pytest
from fastcrc import crc64
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2p.bitfield import Bitfield
from p2p.errors import RemoteProtocolError
from p2p.ids import NodeId
from p2p.manifest import File, Manifest
from p2p.seal import Broken
from tracker.sealing import ASK_AGAIN_S, ASK_CHUNKS, ASK_DELAY_S, Sealing

CHUNK = 4096


def node(name: str) -> NodeId:
    return NodeId(name.encode().ljust(16, b"."))


A, B, C = map(node, "abc")


def data(chunk: int) -> bytes:
    return bytes([chunk % 251]) * CHUNK


def manifest(*chunk_counts: int) -> Manifest:
    """Files of so many chunks; chunk by chunk as `data` has them."""
    files, chunk = [], 0
    for number, count in enumerate(chunk_counts):
        whole = b"".join(map(data, range(chunk, chunk + count)))
        checksum = f"crc64xz:{crc64.xz(whole):016x}"
        files.append(File(f"f{number}", len(whole), "e", checksum=checksum))
        chunk += count
    return Manifest("m", "", tuple(files), CHUNK, CHUNK)


def sealing(*chunk_counts: int) -> Sealing:
    return Sealing(manifest(*chunk_counts), Random(0))


def holders(**rows: str) -> dict[NodeId, Bitfield]:
    """Drawn nodes: `#` is a chunk held, `.` is one lacking."""
    return {
        node(name): Bitfield(len(row), [i for i, c in enumerate(row) if c == "#"])
        for name, row in rows.items()
    }


def crcs(*chunks: int, wrong: tuple[int, ...] = ()) -> bytes:
    """The message's bytes: 8 a chunk; those of `wrong` chunks are of other bytes."""
    values = [crc64.xz(data(chunk)) ^ (chunk in wrong) for chunk in chunks]
    return b"".join(value.to_bytes(8, "big") for value in values)


def asked(sealing: Sealing, at: dict[NodeId, Bitfield], now: float) -> dict[NodeId, list[int]]:
    """Who is asked for which chunks."""
    sends = sealing.ask(at, lambda chunk: True, now)
    assert len({to for to, _ in sends}) == len(sends), "one message a node"
    return {to: message.chunks for to, message in sends}


def test_of_a_chunk_that_nobody_has_fetched_no_node_is_looked_at():
    tracked = sealing(2)

    class Untouched(dict):
        def values(self):
            raise AssertionError("all nodes are looked at")

    assert tracked.ask(Untouched(), lambda chunk: False, 1.0) == []


# -- what comes -----------------------------------------------------------------------------------


def test_checksums_seal_and_break_files_and_each_is_told_once():
    tracked = sealing(2, 1, 1)
    assert tracked.take([1, 2], crcs(1, 2)) == ([1], [])
    sealed, (broken,) = tracked.take([3, 0], crcs(3, 0, wrong=(3,)))
    assert sealed == [0]
    read = f"crc64xz:{crc64.xz(data(3)) ^ 1:016x}"
    assert broken == Broken(2, tracked.seal._manifest.files[2].checksum, read)
    assert tracked.take([0, 1, 2, 3], crcs(0, 1, 2, 3)) == ([], [])


def test_a_message_of_nothing_is_in_bounds():
    tracked = sealing(1)
    assert tracked.take([], b"") == ([], [])
    assert tracked.trust([]) == []


@pytest.mark.parametrize(
    ("chunks", "checksums"),
    [
        ([0, 1], crcs(0)),
        ([0], crcs(0, 1)),
        ([0], crcs(0)[:-1]),
        ([0], b""),
        ([], crcs(0)),
        ([0, 2], crcs(0, 2)),
        ([2, 0], crcs(2, 0)),
    ],
)
def test_checksums_out_of_bounds_are_the_senders_error_and_none_is_taken(chunks, checksums):
    tracked = sealing(1, 1)
    with pytest.raises(RemoteProtocolError):
        tracked.take(chunks, checksums)
    assert list(tracked.seal.pending) == [0, 1]
    assert tracked.take([0, 1], crcs(0, 1)) == ([0, 1], [])


def test_a_file_that_is_none_of_the_manifests_is_the_senders_error_and_nothing_is_trusted():
    tracked = sealing(1, 1)
    with pytest.raises(RemoteProtocolError, match="file 2 of 2"):
        tracked.trust([0, 2])
    assert list(tracked.seal.pending) == [0, 1]
    assert tracked.trust([1]) == [1]


def test_of_files_that_a_node_vouches_for_only_the_news_are_told():
    tracked = sealing(1, 1, 1, 1)
    tracked.take([0, 1], crcs(0, 1, wrong=(1,)))
    assert tracked.trust([0, 1, 2, 2]) == [2], "not what is sealed, nor what is broken"
    assert list(tracked.seal.pending) == [3]


# -- when to ask ----------------------------------------------------------------------------------


def test_a_look_is_due_exactly_a_second_after_the_first_change():
    tracked = sealing(1)
    assert tracked.ask_at == inf
    tracked.look_soon(5.0)
    assert tracked.ask_at == 5.0 + ASK_DELAY_S
    tracked.look_soon(5.5)
    assert tracked.ask_at == 5.0 + ASK_DELAY_S, "a stream of changes does not put it off"
    tracked.ask(holders(a="#"), lambda chunk: True, 6.0)
    tracked.look_soon(6.5)
    assert tracked.ask_at == 6.0 + ASK_DELAY_S


def test_when_all_is_decided_nothing_is_ever_due():
    tracked = sealing(1, 1)
    tracked.take([0, 1], crcs(0, 1, wrong=(1,)))
    tracked.look_soon(5.0)
    assert tracked.ask_at == inf
    assert asked(tracked, holders(a="##"), 6.0) == {}
    assert tracked.ask_at == inf


def test_a_look_that_finds_no_whole_file_waits_for_the_next_change():
    tracked = sealing(2)
    tracked.look_soon(0.0)
    assert asked(tracked, holders(a="#."), 1.0) == {}
    assert tracked.ask_at == inf


def test_once_all_that_was_asked_is_decided_another_way_nothing_is_due():
    tracked = sealing(2)
    asked(tracked, holders(a="##"), 0.0)
    tracked.trust([0])
    assert asked(tracked, holders(a="##"), ASK_DELAY_S) == {}
    assert tracked.ask_at == inf


# -- whom, and for what ---------------------------------------------------------------------------


def test_only_files_that_the_swarm_holds_whole_are_asked_for():
    tracked = sealing(2, 2, 2)
    held = holders(
        a="##...#",
        b="...##.",
    )
    assert asked(tracked, held, 0.0) == {A: [0, 1, 5], B: [4]}


def test_a_file_is_whole_too_when_no_single_node_has_all_of_it():
    tracked = sealing(4)
    held = holders(
        a="##..",
        b="..#.",
        c="...#",
    )
    assert asked(tracked, held, 0.0) == {A: [0, 1], B: [2], C: [3]}


def test_a_chunk_that_many_hold_is_asked_of_one_of_them_and_the_work_is_spread():
    tracked = sealing(300)
    spread = asked(tracked, holders(a="#" * 300, b="#" * 300, c="#" * 300), 0.0)
    assert sorted(chunk for chunks in spread.values() for chunk in chunks) == list(range(300))
    assert min(map(len, spread.values())) > 70, "a third each, give or take"


def test_nobody_is_asked_when_there_is_nobody():
    assert asked(sealing(2), {}, 0.0) == {}


def test_what_is_known_is_not_asked():
    tracked = sealing(3, 1)
    tracked.take([0, 2, 3], crcs(0, 2, 3))
    assert asked(tracked, holders(a="####"), 0.0) == {A: [1]}
    tracked.take([1], crcs(1))
    assert asked(tracked, holders(a="####"), ASK_AGAIN_S) == {}
    assert tracked.ask_at == inf


def test_a_chunk_that_was_not_answered_is_asked_again_exactly_in_time():
    tracked = sealing(2)
    held = holders(a="##")
    assert asked(tracked, held, 5.0) == {A: [0, 1]}
    assert tracked.ask_at == 5.0 + ASK_DELAY_S, "it looks again before that: nodes may go"
    tracked.take([1], crcs(1))
    assert asked(tracked, held, 5.0 + ASK_AGAIN_S - 0.001) == {}
    assert tracked.ask_at < inf
    assert asked(tracked, holders(b="##"), 5.0 + ASK_AGAIN_S) == {B: [0]}, "of who holds it then"
    assert asked(tracked, held, 5.0 + 2 * ASK_AGAIN_S - 0.001) == {}
    assert asked(tracked, held, 5.0 + 2 * ASK_AGAIN_S) == {A: [0]}


def test_a_message_asks_for_a_bounded_number_and_the_rest_is_asked_later():
    tracked = sealing(2 * ASK_CHUNKS + 3)
    held = holders(a="#" * (2 * ASK_CHUNKS + 3))
    assert asked(tracked, held, 0.0) == {A: list(range(ASK_CHUNKS))}
    assert tracked.ask_at == ASK_DELAY_S
    assert asked(tracked, held, ASK_DELAY_S) == {A: list(range(ASK_CHUNKS, 2 * ASK_CHUNKS))}
    rest = list(range(2 * ASK_CHUNKS, 2 * ASK_CHUNKS + 3))
    assert asked(tracked, held, 2 * ASK_DELAY_S) == {A: rest}
    assert asked(tracked, held, 3 * ASK_DELAY_S) == {}
    assert asked(tracked, held, ASK_AGAIN_S) == {A: list(range(ASK_CHUNKS))}


# -- every order ----------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Three nodes hold what they like of three files; a model remembers who was asked when."""

    FILES = (range(3), range(3, 4), range(4, 6))

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed):
        self.now = 0.0
        self.tracked = Sealing(manifest(3, 1, 2), Random(seed))
        self.held: dict[NodeId, set[int]] = {A: set(), B: set(), C: set()}
        self.asked_at: dict[int, float] = {}
        self.known: set[int] = set()
        self.trusted: set[int] = set()

    def pending(self):
        return [
            chunks
            for file, chunks in enumerate(self.FILES)
            if file not in self.trusted and not self.known.issuperset(chunks)
        ]

    @rule(who=st.sampled_from([A, B, C]), held=st.sets(st.integers(0, 5)))
    def hold(self, who, held):
        self.held[who] = held

    @rule(chunks=st.lists(st.integers(0, 5), max_size=3))
    def answer(self, chunks):
        sealed, broken = self.tracked.take(chunks, crcs(*chunks))
        before = self.pending()
        self.known.update(chunks)
        after = self.pending()
        assert [self.FILES[file] for file in sorted(sealed)] == [
            file for file in before if file not in after
        ]
        assert broken == []

    @rule(file=st.integers(0, 2))
    def trust(self, file):
        news = self.FILES[file] in self.pending()
        assert self.tracked.trust([file]) == ([file] if news else [])
        if news:
            self.trusted.add(file)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, ASK_AGAIN_S - 1.0, ASK_AGAIN_S]))
    def ask(self, seconds):
        self.now += seconds
        union = set().union(*self.held.values())
        wanted = {
            chunk
            for chunks in self.pending()
            for chunk in chunks
            if union.issuperset(chunks)
            and chunk not in self.known
            and self.asked_at.get(chunk, -inf) + ASK_AGAIN_S <= self.now
        }
        got = asked(self.tracked, {who: Bitfield(6, h) for who, h in self.held.items()}, self.now)
        for who, chunks in got.items():
            assert self.held[who].issuperset(chunks), "of holders only"
        assert sorted(chunk for chunks in got.values() for chunk in chunks) == sorted(wanted)
        self.asked_at.update(dict.fromkeys(wanted, self.now))

    @invariant()
    def what_waits_for_an_answer_is_looked_at_again(self):
        if hasattr(self, "tracked") and any(
            chunk in self.asked_at and chunk not in self.known
            for chunks in self.pending()
            for chunk in chunks
        ):
            assert self.tracked.ask_at <= self.now + ASK_DELAY_S

    def teardown(self):
        """Liveness: once one node stays, holds everything and answers, everything is sealed."""
        if not hasattr(self, "tracked"):
            return
        self.tracked.look_soon(self.now)
        everything = {A: Bitfield(6, range(6))}
        while self.tracked.seal.pending:
            assert self.tracked.ask_at < inf
            self.now = max(self.now, self.tracked.ask_at)
            for chunks in asked(self.tracked, everything, self.now).values():
                self.tracked.take(chunks, crcs(*chunks))
        assert self.tracked.seal.word == "sealed"


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
