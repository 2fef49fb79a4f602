"""What a reader needs of a range that is on its way is cut out of it, and nothing of it is lost."""

from contextlib import closing
from random import Random

import pytest
import trio

from node import jobs
from node.chunks import Chunks, Sink
from node.nics import Sources
from node.ranges import Tries
from node.spans import Span, Spans
from node.store import Cache, ChunkStore
from p2p.errors import StoreFull
from p2p.manifest import File, Manifest

BLOCK, BLOCKS = 64 * 1024, 16


class Bench:
    """One range that is the whole chunk; others that begin are noted, but for the `refused` one."""

    def __init__(self, chunks: Chunks) -> None:
        self.refused = -1
        self._tried = 0
        self.begun: list[tuple[int, int, str]] = []
        sources = Sources((), 4)
        self.spans = Spans(sources, BLOCK)
        job = jobs.FetchJob(0, "http://origin/x", [], "e", "", BLOCK * BLOCKS)
        self.span = Span(
            job, Sink(chunks, 0, None), 0, Tries(Random(0)), sources.all[0], self._begin
        )
        self.spans.all[self.span] = None

    def _begin(self, start: int, end: int, kind: str) -> None:
        self._tried += 1
        if self._tried - 1 == self.refused:
            raise StoreFull("no space")
        self.begun.append((start // BLOCK, end // BLOCK, kind))

    def asked_for(self) -> trio.CancelScope:
        """Its request is under way."""
        self.span.request = trio.CancelScope()
        return self.span.request

    def hurry(self, first: int, last: int) -> bool:
        """A reader is blocked on these blocks."""
        return self.spans.hurry(0, first * BLOCK, last * BLOCK)

    @property
    def left(self) -> tuple[int, int]:
        """Blocks that the range itself still brings."""
        return self.span.sink.position // BLOCK, self.span.sink.end // BLOCK


@pytest.fixture
def bench(tmp_path):
    manifest = Manifest("m", "", (File("x", BLOCK * BLOCKS, "e"),), BLOCK * BLOCKS, BLOCK)
    with (
        closing(Cache.open(tmp_path)) as cache,
        closing(ChunkStore.open(cache, manifest)) as store,
        closing(Chunks(store.directory)) as chunks,
    ):
        made = Bench(chunks)
        yield made
        made.span.sink.close()


def test_pieces_are_asked_for_at_the_same_time_and_what_comes_after_them_too(bench):
    bench.asked_for()
    assert not bench.hurry(4, 9)
    assert sorted(bench.begun) == [
        (4, 6, "urgent"), (6, 8, "urgent"), (8, 9, "urgent"), (9, 16, "first"),
    ]  # fmt: skip
    assert bench.left == (0, 4)


def test_what_comes_next_anyway_is_left_to_the_request_that_brings_it(bench):
    bench.asked_for()
    assert not bench.hurry(0, 9)
    assert bench.begun == []
    assert bench.left == (0, 16)


def test_a_range_that_waits_keeps_the_first_piece_and_waits_no_more(bench):
    assert bench.hurry(0, 5)
    assert sorted(bench.begun) == [(2, 4, "urgent"), (4, 5, "urgent"), (5, 16, "first")]
    assert bench.left == (0, 2)
    assert bench.span.urgent


def test_a_range_that_waits_goes_on_waiting_for_what_no_reader_needs(bench):
    assert not bench.hurry(4, 6)
    assert sorted(bench.begun) == [(4, 6, "urgent"), (6, 16, "first")]
    assert bench.left == (0, 4)
    assert not bench.span.urgent


@pytest.mark.parametrize("under_way", [True, False])
@pytest.mark.parametrize("refused", range(4))
def test_what_cannot_begin_stays_with_the_range(bench, refused, under_way):
    if under_way:
        bench.asked_for()
    bench.refused = refused
    bench.hurry(4, 9)
    spans = sorted([(0, bench.left[1]), *(entry[:2] for entry in bench.begun)])
    ends = [0, *(end for _, end in spans)]
    assert [start for start, _ in spans] == ends[:-1], "each block is of one request"
    assert ends[-1] == BLOCKS
    assert bench.span.urgent == (not under_way and bench.left[1] > 4), "a reader waits for it"


def test_a_block_half_here_is_not_cut(bench):
    bench.asked_for()
    bench.span.sink.advance(BLOCK // 2)
    assert not bench.hurry(1, 3)
    assert sorted(bench.begun) == [(1, 3, "urgent"), (3, 16, "first")]
    assert bench.left == (0, 1)


def test_a_range_that_was_cut_in_the_middle_of_a_block_goes_on_there(bench):
    bench.span.sink.advance(BLOCK // 2)
    assert bench.hurry(0, 3)
    assert sorted(bench.begun) == [(2, 3, "urgent"), (3, 16, "first")]
    assert bench.span.urgent


def test_an_origin_that_is_left_alone_is_not_asked_sooner_by_a_hurry(bench):
    bench.span.resting = True
    assert not bench.hurry(0, 9)
    assert bench.begun == []
    assert bench.span.urgent, "but then it waits for no slot"


def test_what_is_urgent_and_waits_is_not_cut_again(bench):
    assert bench.hurry(0, 3)
    begun = list(bench.begun)
    assert not bench.hurry(0, 1)
    assert bench.begun == begun


def test_ranges_that_begin_later_hear_of_a_hurry_before(bench):
    del bench.spans.all[bench.span]
    bench.spans.expect(0)
    assert not bench.hurry(0, 2)
    bench.spans.all[bench.span] = None
    assert bench.spans.began(0)
    assert bench.begun == [(2, 16, "first")]
    assert not bench.spans.began(0), "each is told once"
    assert bench.begun == [(2, 16, "first")]
