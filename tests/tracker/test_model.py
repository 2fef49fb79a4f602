"""The tracker's side of one model: who lists, who fetches, what a restart finds, who hears what.

Nodes are played by hand: every test says what came, when, and asks what goes to whom.
"""

from random import Random

import pytest

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.errors import ManifestError, RemoteProtocolError
from p2p.ids import NodeId
from p2p.manifest import File, Manifest
from tracker.assignment import FEW
from tracker.introductions import EVERY_S
from tracker.model import EXPIRY_S, FATAL_S, LISTING_S, LOST_GRACE_S, SETTLE_S, Model
from tracker.view import model_status

A, B, C = (NodeId(letter * 16) for letter in (b"a", b"b", b"c"))
MANIFEST = Manifest("m", "http://o/", (File("x", 4 * 4096, "e"),), 4096, 4096)
WALL = 1_000_000.0


def pin(chunk: int) -> bytes:
    return bytes([chunk + 1]) * 16


def join(manifest: Manifest | None = None, *, confirmed: bool = False, origin: str = "http://o/"):
    data = manifest.encode() if manifest else b""
    return m.Join("m", origin, ["h:1"], data, confirmed, 4096, 4096)


def bits(*chunks: int) -> bytes:
    held = Bitfield(4)
    for chunk in chunks:
        held.add(chunk)
    return bytes(held)


def announce(*chunks: int, wanted: int = 1, fetching=(), received=(), origin_bytes=0):
    return m.Announce(
        bits(*chunks), list(fetching), list(received or [0] * len(fetching)), wanted,
        origin_bytes, 0, 0, 0,
    )  # fmt: skip


def model(start_with: int = 1) -> Model:
    return Model("m", "", start_with, WALL, Random(1))


def sent(sends, kind: type, to: NodeId | None = None) -> list:
    """Messages of one type, to one node or to all."""
    return [x for node, x in sends if isinstance(x, kind) and to in (None, node)]


def leased(sends, to: NodeId) -> list[int]:
    return [chunk for message in sent(sends, m.Leases, to) for chunk in message.chunks]


def listed(start_with: int = 1, *nodes: NodeId) -> Model:
    """A model whose manifest came from the first of `nodes`."""
    tracked = model(start_with)
    for node in nodes or (A,):
        tracked.joined(node, join(), 0.0)
    tracked.handle((nodes or (A,))[0], m.Listing(MANIFEST.encode()), 0.0)
    return tracked


# -- the manifest ---------------------------------------------------------------------------------


def test_the_first_node_lists_and_all_get_the_manifest():
    tracked = model()
    assert sent(tracked.joined(A, join(), 0.0), m.ListOrigin, A)
    assert not sent(tracked.joined(B, join(), 0.0), m.ListOrigin)
    sends = tracked.handle(A, m.Listing(MANIFEST.encode()), 1.0)
    for node in (A, B):
        (joined,) = sent(sends, m.Joined, node)
        assert joined.manifest_id == MANIFEST.id
        assert joined.manifest == MANIFEST.encode()
    (late,) = sent(tracked.joined(C, join(MANIFEST), 2.0), m.Joined, C)
    assert late.manifest == b"", "who has it needs it not again"


def test_only_the_holder_of_the_listing_lease_may_list():
    tracked = model()
    tracked.joined(A, join(), 0.0)
    tracked.joined(B, join(), 0.0)
    tracked.handle(B, m.Listing(MANIFEST.encode()), 0.0)
    assert tracked.manifest is None


def test_a_manifest_of_another_model_is_refused():
    tracked = model()
    tracked.joined(A, join(), 0.0)
    other = Manifest("other", "", (File("x", 1, "e"),), 4096, 4096)
    with pytest.raises(ManifestError, match="other"):
        tracked.handle(A, m.Listing(other.encode()), 0.0)


def test_the_listing_goes_on_when_its_holder_fails_leaves_or_sleeps():
    tracked = model()
    for node in (A, B, C):
        tracked.joined(node, join(), 0.0)
    assert sent(tracked.handle(A, m.ListingFailed("403"), 0.0), m.ListOrigin, B)
    assert sent(tracked.gone(B, 1.0), m.ListOrigin, C)
    assert tracked.next_deadline() == 1.0 + LISTING_S
    assert not tracked.tick(1.0 + LISTING_S - 0.001)
    (failed,) = sent(tracked.tick(1.0 + LISTING_S), m.OriginFailed, C)
    assert "too long" in failed.text


def test_when_nobody_can_list_every_node_hears_its_own_reason():
    tracked = model()
    tracked.joined(A, join(), 0.0)
    tracked.joined(B, join(), 0.0)
    tracked.handle(A, m.ListingFailed("403 at a"), 0.0)
    sends = tracked.handle(B, m.ListingFailed("timeout at b"), 0.0)
    assert sent(sends, m.OriginFailed, A) == [m.OriginFailed("403 at a")]
    assert sent(sends, m.OriginFailed, B) == [m.OriginFailed("timeout at b")]


def test_an_unreachable_origin_is_no_error_when_a_node_has_the_manifest():
    tracked = model()
    tracked.joined(A, join(MANIFEST), 0.0)
    sends = tracked.handle(A, m.ListingFailed("down"), 0.0)
    assert not sent(sends, m.OriginFailed)
    (joined,) = sent(sends, m.Joined, A)
    assert not joined.confirmed


# -- leases ---------------------------------------------------------------------------------------


def test_leases_are_granted_in_turn_to_nodes_that_want_them():
    tracked = listed(1, A, B)
    assert leased(tracked.handle(A, announce(wanted=2), 0.0), A) == [0, 1]
    assert leased(tracked.handle(B, announce(wanted=1), 0.0), B) == [2]
    sends = tracked.handle(A, m.Fetched([0], pin(0), b""), 0.5)
    assert leased(sends, A) == [3]
    assert leased(tracked.handle(B, m.Fetched([2], pin(2), b""), 0.6), B) == []


def test_nothing_is_granted_before_enough_nodes_have_joined():
    tracked = listed(2, A, B)
    assert leased(tracked.handle(A, announce(), 0.0), A) == []
    sends = tracked.handle(B, announce(), 3.0)
    assert leased(sends, A) == [0]
    assert leased(sends, B) == [1]
    assert sent(sends, m.Leases, A)[0].started_at == WALL + 3.0


def test_a_late_joiner_hears_when_the_swarm_started_and_all_pins():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(), 5.0)
    tracked.handle(A, m.Fetched([0], pin(0), b""), 6.0)
    sends = tracked.handle(B, announce(wanted=0), 60.0)
    assert sent(sends, m.Leases, B)[0].started_at == WALL + 5.0
    assert sent(sends, m.PinsKnown, B) == [m.PinsKnown([0], pin(0))]
    assert sent(sends, m.Peers, B) == [m.Peers([A], [["h:1"]])]
    assert sent(sends, m.Peers, A) == [m.Peers([B], [["h:1"]])]


def test_an_expired_lease_goes_to_another_node_and_the_late_result_counts():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(B, announce(wanted=0), 0.0)
    tracked.handle(A, announce(wanted=0, fetching=[0], received=[100]), 1.0)
    assert leased(tracked.tick(2.999), B) == []
    tracked.handle(B, announce(wanted=1), 2.9)
    sends = tracked.tick(3.0)
    assert leased(sends, B) == []  # it holds chunk 1 since 2.9
    assert model_status(tracked)["queued_chunks"] == 3
    tracked.handle(A, m.Fetched([0], pin(0), b""), 3.1)
    assert model_status(tracked)["queued_chunks"] == 2


def test_a_node_that_goes_gives_its_leases_back_at_once():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(wanted=4), 0.0)
    tracked.handle(B, announce(wanted=4), 0.0)
    assert leased(tracked.gone(A, 0.1), B) == [0, 1, 2, 3]
    bye = listed(1, A, B)
    bye.handle(A, announce(wanted=4), 0.0)
    bye.handle(B, announce(wanted=4), 0.0)
    sends = bye.handle(A, m.Bye(), 0.1)
    assert leased(sends, B) == [0, 1, 2, 3]
    assert (A, None) in sends, "its session is closed"


def test_a_node_without_an_announce_expires_exactly_in_time():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(B, announce(wanted=0), 5.0)
    assert (A, None) not in tracked.tick(EXPIRY_S - 0.001)
    sends = tracked.tick(EXPIRY_S)
    assert (A, None) in sends
    assert sent(sends, m.PeersGone, B) == [m.PeersGone([A])]


def test_a_fatal_failure_bars_the_node_and_ends_the_load_when_all_are_barred():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(B, announce(wanted=1), 0.0)
    sends = tracked.handle(A, m.LeaseFailed(0, "403", True, 0.0), 0.0)
    assert not sent(sends, m.OriginFailed)
    assert leased(tracked.handle(A, announce(wanted=1), 1.0), A) == []
    assert leased(tracked.handle(B, announce(wanted=2, fetching=[1]), 1.0), B) == [0]
    sends = tracked.handle(B, m.LeaseFailed(1, "403 too", True, 0.0), 1.0)
    assert [x.text for x in sent(sends, m.OriginFailed)] == ["403 too", "403 too"]
    assert leased(tracked.handle(A, announce(wanted=1), FATAL_S), A) == [1], "tried again later"


def test_a_hint_to_wait_is_kept():
    tracked = listed()
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(A, m.LeaseFailed(0, "503", False, 3.0), 0.0)
    assert leased(tracked.handle(A, announce(wanted=1), 2.9), A) == []
    assert leased(tracked.handle(A, announce(wanted=1), 3.0), A) == [0]


def test_a_later_announce_changes_only_the_part_of_the_bitfield_that_it_carries():
    wide = Manifest("m", "http://o/", (File("x", 24 * 4096, "e"),), 4096, 4096)
    tracked = model()
    tracked.joined(A, join(), 0.0)
    tracked.handle(A, m.Listing(wide.encode()), 0.0)
    tracked.handle(A, m.Announce(b"\x80\x80\x80", [], [], 0, 0, 0, 0), 0.0)
    sends = tracked.handle(A, m.Announce(b"\xc0", [], [], 0, 0, 0, 0, offset=1), 0.5)
    assert sent(sends, m.PinsWanted) == [m.PinsWanted([9])], "only of what is new"
    tracked.handle(A, m.Announce(b"", [], [], 0, 0, 0, 0), 1.0)
    assert list(tracked.nodes[A].bits) == [0, 8, 9, 16]
    tracked.handle(A, m.Announce(b"\x00", [], [], 0, 0, 0, 0, offset=1), 1.5)
    assert model_status(tracked)["queued_chunks"] == 24 - 4
    tracked.tick(1.5 + LOST_GRACE_S)
    assert model_status(tracked)["queued_chunks"] == 24 - 2, "8 and 9 are lost"
    for bad in (m.Announce(b"\0\0", [], [], 0, 0, 0, 0, offset=2), m.Announce(
        b"\0", [], [], 0, 0, 0, 0, offset=3
    )):  # fmt: skip
        with pytest.raises(RemoteProtocolError):
            tracked.handle(A, bad, 4.0)


def test_a_first_announce_carries_the_whole_bitfield():
    for bitfield, offset in ((b"", 0), (b"\xf0", 1)):
        tracked = listed()
        with pytest.raises(RemoteProtocolError):
            tracked.handle(A, m.Announce(bitfield, [], [], 0, 0, 0, 0, offset=offset), 0.0)
        assert tracked.nodes[A].bits is None


def test_what_is_fetched_and_pinned_is_no_news_until_it_is_lost():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(wanted=0), 0.0)
    tracked.handle(A, m.Fetched([0], pin(0), b""), 0.0)
    sends = tracked.handle(B, announce(0, 1, wanted=0), 0.1)
    assert sent(sends, m.PinsWanted) == [m.PinsWanted([1])]
    tracked.handle(B, m.PinsReport([1], pin(1)), 0.2)
    assert not sent(tracked.handle(A, announce(0, 1, wanted=0), 0.3), m.PinsWanted)
    tracked.gone(A, 1.0)
    tracked.gone(B, 1.0)
    tracked.joined(C, join(), 1.1)
    tracked.handle(C, announce(wanted=2), 1.2)
    assert leased(tracked.tick(1.0 + LOST_GRACE_S), C) == []
    tracked.handle(C, announce(0, fetching=[2, 3], wanted=2), 2.6)
    assert model_status(tracked)["queued_chunks"] == 1, "a lost chunk that comes back is fetched"


# -- pins -----------------------------------------------------------------------------------------


def test_the_first_pin_stands_and_who_differs_is_told():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(), 0.0)
    tracked.handle(B, announce(), 0.0)
    tracked.handle(A, m.Fetched([0], pin(0), b""), 0.0)
    sends = tracked.handle(B, m.Fetched([0], pin(9), b""), 0.0)
    assert sent(sends, m.PinsKnown, B) == [m.PinsKnown([0], pin(0))]
    assert tracked.pins[0] == pin(0)


def test_a_report_of_pins_fills_gaps_and_overrules_nothing():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(), 0.0)
    tracked.handle(B, announce(), 0.0)
    tracked.handle(A, m.Fetched([0], pin(0), b""), 0.0)
    tracked.handle(B, m.PinsReport([0, 1], pin(9) + pin(1)), 0.0)
    assert tracked.pins == {0: pin(0), 1: pin(1)}


def test_a_question_for_pins_is_always_answered():
    tracked = listed()
    tracked.handle(A, announce(), 0.0)
    assert sent(tracked.handle(A, m.PinsQuery([3]), 0.0), m.PinsKnown) == [m.PinsKnown([], b"")]


# -- restart --------------------------------------------------------------------------------------


def test_a_restarted_tracker_takes_the_manifest_of_a_running_node_and_waits_for_the_others():
    tracked = model(start_with=9)
    sends = tracked.joined(A, join(MANIFEST, confirmed=True), 100.0)
    assert not sent(sends, m.ListOrigin), "nobody asks the origin"
    assert sent(sends, m.Joined, A)
    sends = tracked.handle(A, announce(0, fetching=[1], received=[10]), 100.1)
    assert leased(sends, A) == [], "others have not said yet what they hold"
    assert sent(sends, m.PinsWanted, A) == [m.PinsWanted([0])]
    tracked.joined(B, join(MANIFEST, confirmed=True), 100.2)
    tracked.handle(B, announce(2, wanted=4), 100.3)
    tracked.handle(A, m.PinsReport([0], pin(0)), 100.3)
    assert tracked.pins == {0: pin(0)}
    sends = tracked.handle(B, announce(2, wanted=4), 100.0 + SETTLE_S)
    assert leased(sends, B) == [3], "0 and 2 are held, 1 is under way at a"


def test_a_manifest_that_no_running_node_vouches_for_is_listed_again():
    tracked = model()
    assert sent(tracked.joined(A, join(MANIFEST), 0.0), m.ListOrigin, A)


# -- chunks that are lost -------------------------------------------------------------------------


def test_a_chunk_that_no_live_node_holds_is_fetched_again_after_a_grace():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(0, 1, wanted=0), 0.0)
    tracked.handle(B, announce(1, wanted=4), 0.0)
    tracked.handle(B, m.Fetched([2, 3], pin(2) + pin(3), b""), 0.0)
    tracked.gone(A, 1.0)
    assert leased(tracked.tick(1.0 + LOST_GRACE_S - 0.001), B) == []
    assert leased(tracked.tick(1.0 + LOST_GRACE_S), B) == [0]


def test_a_leaving_node_hears_how_many_only_copies_it_holds():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(0, 1, 2, 3, wanted=0), 0.0)
    tracked.handle(B, announce(0, wanted=0), 0.0)
    (copies,) = sent(tracked.handle(A, m.Leaving(), 0.0), m.OnlyCopies)
    assert copies == m.OnlyCopies(3, 1)
    tracked.handle(B, announce(0, 1, 2, 3, wanted=0), 1.0)
    (copies,) = sent(tracked.handle(A, m.Leaving(), 1.0), m.OnlyCopies)
    assert copies == m.OnlyCopies(0, 0)


# -- figures --------------------------------------------------------------------------------------


def test_what_a_node_read_from_the_origin_still_counts_when_it_is_gone():
    tracked = listed(1, A, B)
    tracked.handle(A, announce(wanted=0, origin_bytes=4096), 0.0)
    tracked.handle(B, announce(wanted=0, origin_bytes=8192), 0.0)
    tracked.gone(A, 1.0)
    assert model_status(tracked)["origin_bytes"] == 4096 + 8192
    assert model_status(tracked)["origin_ratio"] == 0.75


def test_who_sent_wrong_bytes_is_counted_by_name():
    tracked = listed(1, A, B)
    tracked.handle(A, m.PeerReported(B, 2), 0.0)
    assert {n["node"]: n["reported"] for n in model_status(tracked)["nodes"]} == {
        A.hex(): 0,
        B.hex(): 1,
    }


# -- introductions --------------------------------------------------------------------------------


def test_who_has_lost_its_peers_meets_others_with_its_next_announce():
    nodes = [NodeId(number.to_bytes(16, "big")) for number in range(200)]
    tracked = listed(1, *nodes)
    met: set[NodeId] = set()
    for number, node in enumerate(nodes):
        sends = tracked.handle(node, announce(wanted=0), number * EVERY_S)
        met = {NodeId(x) for peers in sent(sends, m.Peers, node) for x in peers.nodes}
    last, now = nodes[-1], len(nodes) * EVERY_S
    assert len(met) == FEW
    assert not sent(tracked.handle(last, announce(wanted=0), now), m.Peers)
    gone = sorted(met)[: FEW // 2]
    for node in gone:
        assert (last, m.PeersGone([node])) in tracked.gone(node, now + 0.1)
    sends = tracked.handle(last, announce(wanted=0), now + 0.2)
    (peers,) = sent(sends, m.Peers, last)
    assert len(peers.nodes) == len(peers.addresses) == len(gone)
    assert not met & set(peers.nodes)
    for other in peers.nodes:
        assert sent(sends, m.Peers, NodeId(other)) == [m.Peers([last], [["h:1"]])]


# -- broken nodes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        m.Announce(b"\xff\xff", [], [], 0, 0, 0, 0, 0),
        m.Announce(b"\xff", [], [], 0, 0, 0, 0, 0),
        m.Announce(b"\xf0", [9], [0], 0, 0, 0, 0, 0),
        m.Announce(b"\xf0", [1], [], 0, 0, 0, 0, 0),
        m.Fetched([0], b"short", b""),
        m.Fetched([4], pin(4), b""),
        m.LeaseFailed(99, "x", True, 0.0),
        m.PinsReport([7], pin(7)),
        m.Welcome(1),
    ],
    ids=lambda message: f"{message.TYPE} {message!r:.40}",
)
def test_a_message_out_of_bounds_is_the_senders_error_and_changes_nothing(message):
    tracked = listed(1, A, B)
    tracked.handle(B, announce(wanted=0), 0.0)
    if not isinstance(message, m.Announce):
        tracked.handle(A, announce(wanted=0), 0.0)
    before = model_status(tracked)["queued_chunks"]
    with pytest.raises(RemoteProtocolError):
        tracked.handle(A, message, 0.0)
    assert model_status(tracked)["queued_chunks"] == before
    assert not tracked.pins
