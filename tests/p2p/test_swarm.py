"""The swarm's promises, from hand-drawn situations up to every order of events.

Goal: a chunk is never asked of two peers at once, never without a pin, never again of whoever sent
it wrong; and once one good seeder stays, everything completes.
"""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2p import events as ev
from p2p.ahead import SETTLE_S
from p2p.bitfield import Bitfield
from p2p.events import Source
from p2p.ids import Chunk, NodeId
from p2p.manifest import File, Manifest
from p2p.swarm import Limits, Swarm

CHUNKS = 8
ME = NodeId(b"\x10" * 16)


def node(name: str) -> NodeId:
    """A node with a larger id than ours, so that we dial it."""
    return NodeId(name.encode().ljust(16, b"."))


def pin(chunk: int) -> bytes:
    return bytes([chunk]) * 16


MANIFEST = Manifest("m", "", (File("f", CHUNKS * 4096, "e"),), 4096, 4096)
PINS = {chunk: pin(chunk) for chunk in range(CHUNKS)}


def bits(row: str) -> bytes:
    return bytes(Bitfield(CHUNKS, [i for i, c in enumerate(row) if c == "#"]))


def swarm(held: str = "", **peers: str) -> Swarm:
    """A swarm with drawn peers: `#` is a chunk held. All pins are known."""
    mine = Bitfield(CHUNKS, [i for i, c in enumerate(held) if c == "#"])
    drawn = Swarm(MANIFEST, ME, mine, {}, dict(PINS), Random(0), Limits())
    for name, row in peers.items():
        drawn.handle(ev.PeerReady(node(name), bits(row)), 0.0)
    return drawn


def settled(held: str = "", **peers: str) -> tuple[Swarm, list[ev.Command]]:
    """The same a moment later: the trees are drawn. And what was commanded then."""
    drawn = swarm(held, **peers)
    return drawn, drawn.handle(ev.DeadlinePassed(), SETTLE_S)


def of(kind: type, commands: list[ev.Command]) -> list:
    return [command for command in commands if isinstance(command, kind)]


def test_the_rarest_chunk_is_asked_for_first():
    drawn = swarm()
    drawn.handle(ev.PeerReady(node("a"), bits("........")), 0.0)
    drawn.handle(ev.PeerReady(node("b"), bits("........")), 0.0)
    drawn._limits = Limits(asks_total=1)
    commands = drawn.handle(ev.PeerHas(node("a"), ((0, pin(0)),)), 0.0)
    (first,) = of(ev.Ask, commands)
    drawn.handle(ev.PeerHas(node("b"), ((0, pin(0)), (1, pin(1)))), 0.0)
    drawn.handle(ev.PeerHas(node("a"), ((2, pin(2)),)), 0.0)
    drawn.handle(ev.PeerHas(node("b"), ((2, pin(2)),)), 0.0)
    verified = ev.ChunkVerified(first.chunk, Source.PEER, pin(first.chunk), first.request)
    (second,) = of(ev.Ask, drawn.handle(verified, 0.0))
    assert (second.chunk, second.peer) == (1, node("b")), "one holder against two of chunk 2"


def test_a_lease_is_fetched_reported_and_announced_to_its_root_at_once():
    """Of two nodes each is the root of every second chunk."""
    drawn, _ = settled(a="........")
    assert drawn.wanted_leases == Limits().origin_fetches, "just in time, not all there are"
    assert of(ev.Fetch, drawn.handle(ev.LeasesGranted((3, 2)), 1.0)) == [ev.Fetch(3), ev.Fetch(2)]
    assert drawn.fetching == (3, 2)
    commands = drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    assert ev.ReportFetched(((3, pin(3)),)) in commands
    assert of(ev.SendHave, commands) == [ev.SendHave((node("a"),), ((3, pin(3)),))]
    assert drawn.fetching == (2,)
    commands = drawn.handle(ev.ChunkVerified(2, Source.ORIGIN, pin(2)), 1.0)
    assert of(ev.SendHave, commands) == [], "this node is the root"


def test_of_many_nodes_only_the_root_hears_of_a_fetched_chunk_at_once_unless_it_holds_it():
    drawn, _ = settled(a="........", b="........", c="........", d=".......#")
    drawn.handle(ev.LeasesGranted((2, 4)), 1.0)
    for chunk, root in ((2, "b"), (4, "d")):
        commands = drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), 1.0)
        told = ev.SendHave((node(root),), ((chunk, pin(chunk)),))
        assert of(ev.SendHave, commands) == [told]
    drawn.handle(ev.PeerHas(node("c"), ((3, pin(3)),)), 1.0)
    held = drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, pin(3)), 1.0)
    assert of(ev.SendHave, held) == [], "the root announced it before"


def come(drawn: Swarm, now: float) -> list[ev.SendHave]:
    """The oldest request is answered well; what is told of it."""
    request, (ask, _) = next(iter(drawn._asks.items()))
    done = ev.ChunkVerified(ask.chunk, Source.PEER, pin(ask.chunk), request)
    return of(ev.SendHave, drawn.handle(done, now))


def test_a_chunk_from_a_peer_is_told_to_nobody_at_once_and_to_all_exactly_at_the_deadline():
    drawn = swarm(a="##......", b="........")
    drawn.handle(ev.DeadlinePassed(), SETTLE_S)
    assert [come(drawn, 1.0) for _ in range(2)] == [[], []]
    due = 1.0 + Limits().have_delay_s
    assert drawn.next_deadline() == due
    assert of(ev.SendHave, drawn.handle(ev.DeadlinePassed(), due - 0.001)) == []
    (have,) = of(ev.SendHave, drawn.handle(ev.DeadlinePassed(), due))
    assert have.peers == (node("a"), node("b"))
    assert sorted(have.pins) == [(0, pin(0)), (1, pin(1))]


def test_a_request_four_times_as_slow_as_others_is_asked_of_another_holder():
    drawn = swarm(a="###.....")
    (fast, _), (slow, (ask, _)) = drawn._asks.items()  # two of one peer at once
    drawn.handle(ev.ChunkVerified(drawn._asks[fast][0].chunk, Source.PEER, pin(0), fast), 1.0)
    assert drawn._late_s == 4.0
    third = next(request for request in drawn._asks if request not in (fast, slow))
    drawn.handle(ev.AskRefused(third, None), 1.0)
    drawn._late[slow] = 4.0
    assert of(ev.CancelAsk, drawn.handle(ev.DeadlinePassed(), 4.0)) == [], "nobody else holds it"
    assert drawn._late[slow] == 8.0, "looked at again"
    drawn.handle(ev.PeerReady(node("b"), bits("###.....")), 5.0)
    commands = drawn.handle(ev.DeadlinePassed(), 7.999)
    assert slow not in [cancel.request for cancel in of(ev.CancelAsk, commands)]
    commands = drawn.handle(ev.DeadlinePassed(), 8.0)
    assert of(ev.CancelAsk, commands) == [ev.CancelAsk(slow, node("a"))]
    assert [(a.chunk, a.peer) for a in of(ev.Ask, commands)] == [(ask.chunk, node("b"))]
    late = ev.ChunkVerified(ask.chunk, Source.PEER, pin(ask.chunk), slow)
    drawn.handle(late, 8.1)  # it came all the same: it counts, and changes nothing else
    assert ask.chunk in drawn.held


def test_a_full_batch_of_chunks_is_told_to_all_at_once():
    drawn = swarm(a="####....", b="........")
    for _ in range(Limits().have_batch - 1):
        assert come(drawn, 1.0) == []
    (have,) = come(drawn, 1.0)
    assert have.peers == (node("a"), node("b"))
    assert len(have.pins) == Limits().have_batch


def test_a_node_whose_chunks_nobody_takes_wants_no_more_leases():
    drawn = swarm(a="........")
    for chunk in range(CHUNKS):
        assert drawn.wanted_leases == Limits().origin_fetches, chunk
        drawn.handle(ev.LeasesGranted((chunk,)), 0.0)
        drawn.handle(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)), 0.0)
    drawn._backlog.add(Chunk(CHUNKS))  # one more than may wait
    assert drawn.wanted_leases == 0
    drawn.handle(ev.PeerHas(node("a"), ((0, pin(0)),)), 0.0)
    assert drawn.wanted_leases == Limits().origin_fetches, "it went on"
    drawn._backlog.add(Chunk(CHUNKS + 1))
    assert drawn.wanted_leases == 0
    drawn.handle(ev.PeerLost(node("a")), 0.0)
    assert drawn.wanted_leases == Limits().origin_fetches, "nobody waits for it"


def test_a_busy_peer_is_left_alone_until_it_said():
    drawn, _ = settled(a="#.......")
    (request,) = drawn._asks
    commands = drawn.handle(ev.AskRefused(request, 1.0), 1.0)
    assert of(ev.Ask, commands) == []
    again = drawn.next_deadline()
    assert 1.5 <= again <= 2.5
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), again - 0.001)) == []
    assert len(of(ev.Ask, drawn.handle(ev.DeadlinePassed(), again))) == 1


def test_corrupt_bytes_are_reported_and_asked_of_another_peer_only():
    drawn = swarm(a="#.......")
    (request,) = drawn._asks
    commands = drawn.handle(ev.ChunkCorrupt(request), 0.0)
    assert ev.ReportCorruption(node("a"), 0) in commands
    assert of(ev.Ask, commands) == []
    (ask,) = of(ev.Ask, drawn.handle(ev.PeerReady(node("b"), bits("#.......")), 0.0))
    assert (ask.peer, ask.chunk) == (node("b"), 0)
    assert drawn.statistics().corrupt_chunks == 1


def test_two_strikes_are_a_quarantine_of_exactly_a_minute():
    drawn = swarm(a="########")
    for request in (1, 2):
        drawn.handle(ev.ChunkCorrupt(request), 5.0)
    assert drawn.statistics().quarantined == 1
    for request in list(drawn._asks):
        drawn.handle(ev.AskFailed(request, "closed"), 5.0)
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), 5.0 + 59.9)) == []
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), 5.0 + 60.0))


def test_a_chunk_without_a_pin_is_not_asked_for_but_its_pin_is():
    drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(0), Limits())
    commands = drawn.handle(ev.PeerReady(node("a"), bits("#.......")), 0.0)
    assert commands == [ev.AskPins(node("a"), (0,))]
    (ask,) = of(ev.Ask, drawn.handle(ev.PinsLearned(((0, pin(0)),), node("a")), 0.1))
    assert ask.pin == pin(0)


def test_the_first_pin_is_kept_and_only_the_tracker_overrules_it():
    drawn = swarm(held="#.......", a="........")
    other = b"\xee" * 16
    assert drawn.handle(ev.PeerHas(node("a"), ((0, other),)), 0.0) == [ev.AskPins(None, (0,))]
    assert drawn.pins[0] == pin(0)
    assert drawn.handle(ev.PinsLearned(((0, other),)), 0.0) == [ev.Rehash(0, other)]


def test_a_fetched_chunk_that_is_not_what_others_have_is_hashed_again_and_not_announced():
    drawn = swarm(a="........")
    drawn.handle(ev.LeasesGranted((3,)), 0.0)
    other = b"\xee" * 16
    commands = drawn.handle(ev.ChunkVerified(3, Source.ORIGIN, other), SETTLE_S - 0.01)
    assert commands == [ev.Rehash(3, pin(3))]
    assert 3 not in drawn.held
    assert drawn.pins[3] == pin(3)


def test_a_damaged_chunk_is_dropped_told_and_wanted_again():
    drawn = swarm(held="########", a="########")
    assert drawn.handle(ev.CorruptionReported(node("a"), 4), 0.0) == [ev.Rehash(4, pin(4))]
    assert drawn.handle(ev.CorruptionReported(node("a"), 4), 0.5) == [], "once a second"
    commands = drawn.handle(ev.ChunkDamaged(4), 0.6)
    assert drawn.statistics().corrupt_chunks == 1
    assert ev.SendLost((node("a"),), (4,)) in commands
    (ask,) = of(ev.Ask, commands)
    assert ask.chunk == 4
    assert ev.Complete() in drawn.handle(ev.ChunkVerified(4, Source.PEER, pin(4), ask.request), 1.0)


def test_nothing_is_complete_until_every_suspect_was_hashed():
    suspects = {7: pin(7)}
    held = Bitfield(CHUNKS, range(7))
    drawn = Swarm(MANIFEST, ME, held, suspects, dict(PINS), Random(0), Limits())
    assert drawn.handle(ev.DeadlinePassed(), 0.0) == [ev.Rehash(7, pin(7))]
    assert not drawn.statistics().complete
    assert ev.Complete() in drawn.handle(ev.ChunkVerified(7, Source.DISK, pin(7)), 1.0)


def test_a_fatal_origin_error_returns_the_lease_at_once_and_others_are_tried_again():
    drawn = swarm()
    drawn.handle(ev.LeasesGranted((0, 1)), 0.0)
    fatal = drawn.handle(ev.FetchFailed(0, "404", fatal=True), 0.0)
    assert fatal == [ev.ReturnLease(0, "404", True, 0.0)]
    assert drawn.handle(ev.FetchFailed(1, "503", fatal=False, retry_after_s=3.0), 0.0) == []
    assert drawn.next_deadline() == 3.0
    assert drawn.handle(ev.DeadlinePassed(), 3.0) == [ev.Fetch(1)]


def test_without_space_nothing_is_asked_until_the_retry():
    drawn = swarm(a="########")
    first = next(iter(drawn._asks.values()))[0]
    assert of(ev.Ask, drawn.handle(ev.SpaceExhausted(first.chunk), 0.0)) == []
    assert drawn.statistics().waiting_for_space
    assert drawn.wanted_leases == 0
    retry_s = Limits().space_retry_s
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), retry_s - 0.01)) == []
    assert of(ev.Ask, drawn.handle(ev.DeadlinePassed(), retry_s))


def test_without_space_a_lease_goes_back_for_others_to_use():
    drawn = swarm()
    drawn.handle(ev.LeasesGranted((0, 1)), 0.0)
    drawn.handle(ev.FetchFailed(1, "503", fatal=False), 0.0)
    returned = of(ev.ReturnLease, drawn.handle(ev.SpaceExhausted(0), 0.0))
    assert [lease.chunk for lease in returned] == [0, 1], "the one that failed, and one that waits"
    assert not any(lease.fatal for lease in returned)
    assert drawn.fetching == ()


def test_of_a_pair_only_the_smaller_id_dials():
    drawn = swarm()
    smaller, larger = NodeId(b"\x01" * 16), NodeId(b"\x20" * 16)
    offered = ev.PeersOffered(((smaller, ("h:1",)), (larger, ("h:2",))))
    assert drawn.handle(offered, 0.0) == [ev.Connect(larger, ("h:2",))]
    drawn.handle(ev.PeerLost(larger), 1.0)
    commands = []
    while not commands:  # the trees settle meanwhile
        again = drawn.next_deadline()
        commands = drawn.handle(ev.DeadlinePassed(), again)
    assert 1.0 < again <= 1.2
    assert commands == [ev.Connect(larger, ("h:2",))]
    drawn.handle(ev.PeersWithdrawn((larger,)), 2.0)
    assert drawn.handle(ev.PeerLost(larger), 2.0) == []
    assert drawn.handle(ev.DeadlinePassed(), 99.0) == []


def test_without_a_tracker_each_chunk_is_fetched_by_exactly_one_of_the_live_nodes():
    grace_s = Limits().lease_grace_s
    names = [ME, node("a"), node("b")]
    owners: dict[int, list[NodeId]] = {chunk: [] for chunk in range(CHUNKS)}
    for me in names:
        drawn = Swarm(
            MANIFEST, me, Bitfield(CHUNKS), {}, {}, Random(1), Limits(origin_fetches=CHUNKS)
        )
        for other in names:
            if other != me:
                drawn.handle(ev.PeerReady(other, bits("")), 0.0)
        assert of(ev.Fetch, drawn.handle(ev.TrackerLost(), 10.0)) == []
        assert of(ev.Fetch, drawn.handle(ev.DeadlinePassed(), 10.0 + grace_s - 0.01)) == []
        for fetch in of(ev.Fetch, drawn.handle(ev.DeadlinePassed(), 10.0 + grace_s)):
            owners[fetch.chunk].append(me)
    assert all(len(nodes) == 1 for nodes in owners.values()), owners


def test_without_a_tracker_what_a_peer_holds_or_is_fetching_is_left_to_it():
    limits = Limits(origin_fetches=CHUNKS)

    def fetched(row: str, fetching: tuple[int, ...]) -> set[int]:
        drawn = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(1), limits)
        drawn.handle(ev.PeerReady(node("c"), bits(row)), 0.0)
        drawn.handle(ev.TrackerLost(), 0.0)
        drawn.handle(ev.PeerFetches(node("c"), fetching), 0.0)
        commands = drawn.handle(ev.DeadlinePassed(), limits.lease_grace_s)
        return {fetch.chunk for fetch in of(ev.Fetch, commands)}

    mine = sorted(fetched("", ()))
    held, under_way, *rest = mine
    row = "".join("#" if chunk == held else "." for chunk in range(CHUNKS))
    assert fetched(row, (under_way,)) == set(rest)


class AnyOrder(RuleBasedStateMachine):
    """Random peers, answers and losses; a model keeps its own books of every request."""

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed):
        self.now = 0.0
        self.swarm = Swarm(MANIFEST, ME, Bitfield(CHUNKS), {}, {}, Random(seed), Limits())
        self.peers: dict[NodeId, set[int]] = {}
        self.open: dict[int, ev.Ask] = {}
        self.fetching: set[int] = set()
        self.held: set[int] = set()

    def feed(self, event):
        commands = self.swarm.handle(event, self.now)
        for command in commands:
            if isinstance(command, ev.Ask):
                assert command.peer in self.peers
                assert command.chunk in self.peers[command.peer], "it never asks who lacks it"
                assert command.pin == pin(command.chunk)
                assert command.chunk not in self.held
                assert command.chunk not in self.fetching
                assert all(ask.chunk != command.chunk for ask in self.open.values()), (
                    "one at a time"
                )
                self.open[command.request] = command
            elif isinstance(command, ev.Fetch):
                assert command.chunk not in self.held
                self.fetching.add(command.chunk)
        return commands

    @rule(name=st.sampled_from("abc"), held=st.sets(st.integers(0, CHUNKS - 1)))
    def peer_comes(self, name, held):
        peer = node(name)
        if peer in self.peers:
            return
        self.peers[peer] = set(held)
        self.feed(ev.PinsLearned(tuple((c, pin(c)) for c in sorted(held))))
        self.feed(ev.PeerReady(peer, bytes(Bitfield(CHUNKS, held))))

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def peer_goes(self, data):
        peer = data.draw(st.sampled_from(sorted(self.peers)))
        del self.peers[peer]
        self.open = {r: ask for r, ask in self.open.items() if ask.peer != peer}
        self.feed(ev.PeerLost(peer))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), good=st.sampled_from(["good", "corrupt", "busy", "not_have", "failed"]))
    def answer(self, data, good):
        ask = self.open.pop(data.draw(st.sampled_from(sorted(self.open))))
        if good == "good":
            self.held.add(ask.chunk)
            self.feed(ev.ChunkVerified(ask.chunk, Source.PEER, ask.pin, ask.request))
        elif good == "corrupt":
            self.peers[ask.peer].discard(ask.chunk)
            self.feed(ev.ChunkCorrupt(ask.request))
        elif good == "busy":
            self.feed(ev.AskRefused(ask.request, 0.1))
        elif good == "not_have":
            self.peers[ask.peer].discard(ask.chunk)
            self.feed(ev.AskRefused(ask.request, None))
        else:
            self.feed(ev.AskFailed(ask.request, "closed"))

    @rule(request=st.integers(10_000, 10_010))
    def a_stale_answer_changes_nothing(self, request):
        before = self.swarm.statistics()
        self.feed(ev.AskFailed(request, "late"))
        after = self.swarm.statistics()
        assert (before.held, before.fetches) == (after.held, after.fetches)

    @rule(chunk=st.integers(0, CHUNKS - 1))
    def leased(self, chunk):
        self.feed(ev.LeasesGranted((chunk,)))

    @precondition(lambda self: self.fetching)
    @rule(data=st.data(), good=st.booleans())
    def fetched(self, data, good):
        chunk = data.draw(st.sampled_from(sorted(self.fetching)))
        self.fetching.discard(chunk)
        if good:
            self.held.add(chunk)
            self.feed(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)))
        else:
            self.feed(ev.FetchFailed(chunk, "403", fatal=True))

    @rule(seconds=st.floats(0.01, 70))
    def time_passes(self, seconds):
        self.now += seconds
        for request in [r for r in self.open if self.swarm._asks[r][1] + 30 <= self.now]:
            del self.open[request]  # the net under the workers' own time-outs
        self.feed(ev.DeadlinePassed())

    @invariant()
    def agrees(self):
        if hasattr(self, "swarm"):
            assert set(self.swarm.held) == self.held
            assert self.swarm.statistics().complete == (len(self.held) == CHUNKS)

    def teardown(self):
        """Liveness: once a seeder stays and nothing else fails, the download completes."""
        if not hasattr(self, "swarm"):
            return
        for chunk in sorted(self.fetching):
            self.held.add(chunk)
            self.feed(ev.ChunkVerified(chunk, Source.ORIGIN, pin(chunk)))
        self.fetching.clear()
        seeder = node("seeder")
        self.peers[seeder] = set(range(CHUNKS))
        self.feed(ev.PinsLearned(tuple(PINS.items())))
        self.feed(ev.PeerReady(seeder, bits("#" * CHUNKS)))
        for _ in range(20 * CHUNKS):
            if self.open:
                request, ask = self.open.popitem()
                self.held.add(ask.chunk)
                self.feed(ev.ChunkVerified(ask.chunk, Source.PEER, ask.pin, request))
            else:
                self.now += 1.0
                self.feed(ev.DeadlinePassed())
        assert self.swarm.statistics().complete, self.swarm.statistics()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_bitfield_of_another_model_ends_the_session():
    drawn = swarm()
    (command,) = drawn.handle(ev.PeerReady(node("a"), b"\xff\xff\xff"), 0.0)
    assert isinstance(command, ev.Disconnect)


@pytest.mark.parametrize("gone", ["PeerLost", "PeerLeaves"])
def test_what_was_asked_of_a_peer_that_went_is_asked_of_another(gone):
    drawn = swarm(a="#.......")
    drawn.handle(ev.PeerReady(node("b"), bits("#.......")), 0.0)
    (ask,) = of(ev.Ask, drawn.handle(getattr(ev, gone)(node("a")), 0.0))
    assert ask.peer == node("b")
