"""One model moves from revision to revision: the seal decides, or the origin's objects change.

Goal: a file that was read wrong is begun anew once and then told to everybody; changed objects are
listed by a node that follows; and nothing that is said of an old revision counts for the new one.
Nodes are played by hand, as in test_model.
"""

from dataclasses import replace
from random import Random

import pytest
from fastcrc import crc64

from p2p import messages as m
from p2p.bitfield import Bitfield
from p2p.errors import ManifestError, RemoteProtocolError
from p2p.ids import NodeId
from p2p.manifest import File, Manifest
from tracker.model import EXPIRY_S, LISTING_S, LOST_GRACE_S, Model
from tracker.sealing import ASK_DELAY_S
from tracker.view import model_status

A, B, C, D = (NodeId(letter * 16) for letter in (b"a", b"b", b"c", b"d"))
CHUNK = 4096
COUNTS = {"x": 3, "y": 1}  # chunks of each file
X, Y = 0, 1


def data(chunk: int) -> bytes:
    return bytes([chunk + 1]) * CHUNK


def told(*chunks: int) -> str:
    """The manifest's word for the checksum of these chunks, one after the other."""
    return f"crc64xz:{crc64.xz(b''.join(map(data, chunks))):016x}"


MANIFEST = Manifest(
    "m",
    "http://o/",
    (
        File("x", 3 * CHUNK, "e", checksum=told(0, 1, 2)),
        File("y", CHUNK, "e", checksum=told(3)),
    ),
    CHUNK,
    CHUNK,
)
OTHER = replace(MANIFEST, files=(MANIFEST.files[0], replace(MANIFEST.files[1], etag="e2")))
X_ANEW = replace(MANIFEST, files=(replace(MANIFEST.files[0], attempt=1), MANIFEST.files[1]))


CHANGED = m.LeaseFailed(0, "the object has changed", True, changed=True)


def join(
    *,
    follow: bool = False,
    manifest: Manifest | None = None,
    confirmed: bool = False,
    origin: str = "http://o/",
):
    known = manifest.encode() if manifest else b""
    return m.Join("m", origin, ["h:1"], known, confirmed, CHUNK, CHUNK, follow)


def announce(*held: int, wanted: int = 0):
    return m.Announce(bytes(Bitfield(4, held)), [], [], wanted, 0, 0, 0, 0)


def pin(chunk: int) -> bytes:
    return bytes([chunk + 1]) * 16


def crcs(*chunks: int, wrong: bool = False) -> bytes:
    return b"".join((crc64.xz(data(chunk)) ^ wrong).to_bytes(8, "big") for chunk in chunks)


def fetched(*chunks: int, wrong: bool = False) -> m.Fetched:
    """Chunks read from the origin; `wrong`: other bytes than the store's."""
    return m.Fetched(list(chunks), b"".join(map(pin, chunks)), crcs(*chunks, wrong=wrong))


def sent(sends, kind: type, to: NodeId | None = None) -> list:
    """Messages of one type, to one node or to all."""
    return [x for node, x in sends if isinstance(x, kind) and to in (None, node)]


def hearing(sends, message: m.Message) -> list[NodeId]:
    """Who is sent exactly this, in order of their ids."""
    return sorted(node for node, x in sends if x == message)


def leased(sends, to: NodeId) -> list[int]:
    return [chunk for message in sent(sends, m.Leases, to) for chunk in message.chunks]


def running(manifest: Manifest = MANIFEST, /, **follow: bool) -> Model:
    """A model with nodes (by letter: does it follow?) that have announced and hold nothing."""
    follow = follow or {"a": False, "b": False}
    tracked = Model("m", "", 1, 1_000_000.0, Random(1))
    names = [NodeId(letter.encode() * 16) for letter in follow]
    for node, follows in zip(names, follow.values(), strict=True):
        tracked.joined(node, join(follow=follows), 0.0)
    tracked.handle(names[0], m.Listing(manifest.encode()), 0.0)
    for node in names:
        tracked.handle(node, announce(), 0.0)
    return tracked


# -- a file is sealed -----------------------------------------------------------------------------


def test_the_last_checksum_of_a_file_seals_it_and_every_node_is_told():
    tracked = running(a=False, b=False)
    tracked.joined(C, join(), 0.0)  # and has not announced yet
    assert sent(tracked.handle(A, fetched(0, 2), 1.0), m.Sealed) == []
    sends = tracked.handle(B, fetched(1), 2.0)
    assert hearing(sends, m.Sealed([X])) == [A, B, C]
    assert model_status(tracked)["seal"] == "pending"
    sends = tracked.handle(A, fetched(3), 3.0)
    assert hearing(sends, m.Sealed([Y])) == [A, B, C]
    assert model_status(tracked)["seal"] == "sealed"
    assert sent(sends, m.Joined) == []


def test_a_late_joiner_hears_what_is_sealed_with_its_first_announce():
    tracked = running()
    assert sent(tracked.handle(A, fetched(3), 1.0), m.Sealed, B) == [m.Sealed([Y])]
    assert sent(tracked.joined(C, join(), 2.0), m.Sealed) == []
    assert sent(tracked.handle(C, announce(), 2.0), m.Sealed, C) == [m.Sealed([Y])]
    assert sent(tracked.handle(C, announce(3), 3.0), m.Sealed) == [], "once"


def test_what_a_node_says_is_sealed_is_trusted_and_passed_on_once():
    tracked = running()
    assert hearing(tracked.handle(A, m.Sealed([Y, X]), 0.0), m.Sealed([Y, X])) == [A, B]
    assert sent(tracked.handle(B, m.Sealed([X, Y]), 0.0), m.Sealed) == []
    sends = tracked.handle(A, fetched(0, 1, 2, wrong=True), 0.0)
    assert sent(sends, m.Joined) == [], "what comes later is not compared again"


def test_chunks_fetched_without_checksums_are_as_good_as_any():
    tracked = running()
    tracked.handle(A, m.Fetched([3], pin(3), b""), 0.0)
    assert tracked.pins == {3: pin(3)}
    assert model_status(tracked)["seal"] == "pending"


def test_checksums_of_chunks_whose_pins_are_not_the_swarms_count_for_nothing():
    tracked = running()
    tracked.handle(A, m.Fetched([3], b"#" * 16, b""), 0.0)
    sends = tracked.handle(B, fetched(3, wrong=True), 0.0)
    assert sent(sends, m.PinsKnown, B) == [m.PinsKnown([3], b"#" * 16)]
    assert sent(sends, m.Joined) == []
    assert model_status(tracked)["seal"] == "pending"


def test_after_a_restart_holders_are_asked_for_checksums_when_their_files_are_whole():
    tracked = Model("m", "", 1, 0.0, Random(1))
    tracked.joined(A, join(manifest=MANIFEST, confirmed=True), 100.0)
    tracked.handle(A, announce(0, 3), 100.0)
    assert tracked.next_deadline() == 100.0 + ASK_DELAY_S
    assert sent(tracked.tick(100.0 + ASK_DELAY_S - 0.001), m.ChecksumsWanted) == []
    sends = tracked.tick(100.0 + ASK_DELAY_S)
    assert sent(sends, m.ChecksumsWanted, A) == [m.ChecksumsWanted([3])]
    sends = tracked.handle(A, m.Checksums([3], crcs(3)), 102.0)
    assert hearing(sends, m.Sealed([Y])) == [A]


@pytest.mark.parametrize(
    "message",
    [
        m.Fetched([0], pin(0), b"short"),
        m.Fetched([0], pin(0), crcs(0, 1)),
        m.Checksums([0, 1], crcs(0)),
        m.Checksums([4], crcs(0)),
        m.Sealed([2]),
        m.LeaseFailed(4, "changed", True, changed=True),
    ],
    ids=lambda message: f"{message.TYPE} {message!r:.40}",
)
def test_a_message_of_the_seal_out_of_bounds_is_the_senders_error(message):
    tracked = running()
    with pytest.raises(RemoteProtocolError):
        tracked.handle(A, message, 0.0)
    assert model_status(tracked)["seal"] == "pending"
    assert tracked.manifest == MANIFEST


def test_chunks_fetched_with_checksums_that_do_not_fit_change_nothing():
    tracked = running()
    with pytest.raises(RemoteProtocolError):
        tracked.handle(A, m.Fetched([0], pin(0), b"short"), 0.0)
    assert tracked.pins == {}
    assert model_status(tracked)["queued_chunks"] == 4


@pytest.mark.parametrize("message", [m.Checksums([0], crcs(0)), m.Sealed([0]), CHANGED])
def test_before_the_manifest_is_known_there_is_nothing_to_seal_or_to_change(message):
    tracked = Model("m", "", 1, 0.0, Random(1))
    tracked.joined(A, join(), 0.0)
    with pytest.raises(RemoteProtocolError, match="before the manifest"):
        tracked.handle(A, message, 0.0)


def test_what_was_fetched_counts_only_after_the_first_announce():
    tracked = running()
    tracked.joined(C, join(), 0.0)
    with pytest.raises(RemoteProtocolError, match="before the first announce"):
        tracked.handle(C, fetched(3), 0.0)
    assert model_status(tracked)["seal"] == "pending"


# -- a file does not match ------------------------------------------------------------------------


def test_a_file_that_does_not_match_is_begun_anew_alone_and_everybody_is_told():
    tracked = running(a=False, b=True)
    tracked.joined(C, join(), 0.0)
    tracked.handle(A, fetched(3), 1.0)
    sends = tracked.handle(A, fetched(0, 1, 2, wrong=True), 2.0)
    assert X_ANEW.id != MANIFEST.id
    joined = m.Joined("m", X_ANEW.id, X_ANEW.encode(), True)
    assert hearing(sends, joined) == [A, B, C]
    assert len(sent(sends, m.Joined)) == 3
    assert sent(sends, m.SealBroken) == []
    assert tracked.manifest == X_ANEW
    assert model_status(tracked)["seal"] == "pending", "also of the file that was sealed before"


def moved() -> Model:
    """A and B ran and had all chunks, and the swarm has moved on: x did not match."""
    tracked = running()
    tracked.handle(A, announce(wanted=2), 0.0)
    tracked.handle(B, fetched(3), 1.0)
    tracked.handle(B, fetched(0, 1, 2, wrong=True), 1.0)
    assert tracked.manifest == X_ANEW
    return tracked


@pytest.mark.parametrize(
    "message",
    [
        announce(0, 1, 2, 3, wanted=4),
        fetched(0),
        m.Checksums([0], crcs(0, wrong=True)),
        m.Sealed([X]),
        m.LeaseFailed(0, "403", True),
        m.LeaseFailed(0, "changed", True, changed=True),
        m.PinsReport([0], pin(0)),
        m.PinsQuery([0]),
        m.Listing(OTHER.encode()),
        m.Leaving(),
        m.Welcome(1),
    ],
    ids=lambda message: f"{message.TYPE} {message!r:.40}",
)
def test_what_a_node_says_of_the_old_revision_is_ignored(message):
    tracked = moved()
    assert tracked.handle(A, message, 2.0) == []
    assert tracked.manifest == X_ANEW
    assert tracked.pins == {}
    status = model_status(tracked)
    assert (status["queued_chunks"], status["leased_chunks"], status["seal"]) == (4, 0, "pending")
    assert [one["held_chunks"] for one in status["nodes"]] == [0, 0]


def test_a_bye_counts_whatever_revision_it_is_of():
    tracked = moved()
    assert (A, None) in tracked.handle(A, m.Bye(), 2.0)
    assert list(tracked.nodes) == [B]


def test_a_node_that_is_told_of_another_revision_may_take_its_time():
    tracked = moved()
    assert (A, None) not in tracked.tick(10 * EXPIRY_S)


@pytest.mark.parametrize("again", [A, C], ids=["same id", "new id"])
def test_a_node_that_joins_anew_speaks_of_the_new_revision_and_leases_start_over(again):
    tracked = moved()
    sends = tracked.joined(again, join(manifest=MANIFEST), 2.0)
    assert sends[-1] == (again, m.Joined("m", X_ANEW.id, X_ANEW.encode(), True))
    sends = tracked.handle(again, announce(3, wanted=9), 2.0)
    assert leased(sends, again) == [0, 1, 2], "but what it has taken over"
    assert sent(sends, m.PinsKnown, again) == [m.PinsKnown([], b"")], "pins are forgotten"
    assert sent(sends, m.PinsWanted, again) == [m.PinsWanted([3])]
    assert sent(sends, m.Peers) == [], "nobody else speaks of this revision"
    sends = tracked.handle(again, fetched(0, 1, 2), 3.0)
    assert hearing(sends, m.Sealed([X])) == [again], "not the one that stayed behind"
    assert sent(tracked.handle(again, m.Sealed([Y]), 3.0), m.Sealed, again) == [m.Sealed([Y])]


def test_a_file_that_does_not_match_again_is_told_to_all_and_to_who_comes_later():
    tracked = running(X_ANEW)
    read = f"crc64xz:{crc64.xz(b''.join(map(data, range(3)))) ^ 1:016x}"
    tracked.handle(A, fetched(0, 1), 1.0)
    sends = tracked.handle(B, fetched(2, wrong=True), 1.0)
    broken = m.SealBroken(X, told(0, 1, 2), read)
    assert hearing(sends, broken) == [A, B]
    assert sent(sends, m.Joined) == []
    assert tracked.manifest == X_ANEW
    assert tracked.pins, "the swarm goes on with its other files"
    assert sent(tracked.joined(C, join(), 2.0), m.SealBroken) == []
    assert sent(tracked.handle(C, announce(), 2.0), m.SealBroken, C) == [broken]
    status = model_status(tracked)
    assert status["seal"] == "broken"
    assert status["broken_files"] == [{"file": "x", "stored": told(0, 1, 2), "read": read}]
    assert sent(tracked.handle(A, m.Sealed([X]), 3.0), m.Sealed) == [], "it is not to be mended"


def test_a_refused_file_is_not_read_a_third_time_when_its_holder_leaves():
    tracked = running(X_ANEW)
    tracked.handle(A, fetched(0, 1, 3), 1.0)
    tracked.handle(B, fetched(2, wrong=True), 1.0)
    tracked.handle(A, m.Bye(), 2.0)
    tracked.tick(2.0 + LOST_GRACE_S)
    assert leased(tracked.handle(B, announce(2, wanted=9), 2.0 + LOST_GRACE_S), B) == [3]


def test_another_file_that_does_not_match_begins_anew_beside_one_that_did_before():
    tracked = running(X_ANEW)
    sends = tracked.handle(A, fetched(3, wrong=True), 1.0)
    both = replace(MANIFEST, files=tuple(replace(file, attempt=1) for file in MANIFEST.files))
    assert hearing(sends, m.Joined("m", both.id, both.encode(), True)) == [A, B]


# -- the objects changed --------------------------------------------------------------------------


def relisting(**follow: bool) -> Model:
    """A holds a lease, and finds out that the object has changed."""
    tracked = running(**follow)
    assert leased(tracked.handle(A, announce(wanted=1), 0.0), A) == [0]
    tracked.handle(A, CHANGED, 1.0)
    return tracked


def test_a_follower_lists_the_origin_again_whoever_found_out():
    tracked = running(a=False, b=False, c=True)
    tracked.handle(A, announce(wanted=1), 0.0)
    sends = tracked.handle(A, CHANGED, 1.0)
    assert sent(sends, m.ListOrigin) == sent(sends, m.ListOrigin, C) == [m.ListOrigin("m", "")]
    assert sent(sends, m.OriginFailed) == []
    assert tracked.next_deadline() <= 1.0 + LISTING_S


def test_no_lease_is_granted_while_the_origin_is_listed_again():
    tracked = relisting(a=True, b=True)
    assert leased(tracked.handle(A, announce(wanted=4), 2.0), A) == []
    assert leased(tracked.handle(B, announce(wanted=4), 2.0), B) == []
    assert tracked.tick(3.0) == []
    assert model_status(tracked)["queued_chunks"] == 4


def test_a_second_report_of_a_change_begins_no_second_listing():
    tracked = relisting(a=True, b=True)
    assert tracked.handle(B, replace(CHANGED, chunk=1), 2.0) == []
    assert tracked.handle(B, m.LeaseFailed(1, "404", True), 2.0) == []


def test_what_is_read_meanwhile_still_counts():
    tracked = relisting(a=True, b=False)
    sends = tracked.handle(B, fetched(3), 2.0)
    assert hearing(sends, m.Sealed([Y])) == [A, B]
    assert model_status(tracked)["queued_chunks"] == 3


def test_another_listing_moves_the_swarm_and_keeps_the_sizes_of_chunks_and_blocks():
    tracked = relisting(a=True, b=False)
    tracked.handle(B, fetched(1), 1.0)
    sends = tracked.handle(A, m.Listing(replace(OTHER, chunk_bytes=4 * CHUNK).encode()), 2.0)
    assert hearing(sends, m.Joined("m", OTHER.id, OTHER.encode(), True)) == [A, B]
    assert sent(sends, m.OriginFailed) == []
    assert tracked.manifest == OTHER
    assert tracked.pins == {}
    tracked.joined(C, join(), 3.0)
    sends = tracked.handle(C, announce(wanted=9), 3.0)
    assert leased(sends, C) == [0, 3, 1, 2], "the barrier is gone; every chunk is queued again"


@pytest.mark.parametrize("manifest", [MANIFEST, X_ANEW], ids=["first", "begun anew"])
def test_the_same_listing_ends_in_the_reason_why_it_was_asked_for(manifest):
    tracked = running(manifest, a=True, b=False)
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(A, CHANGED, 1.0)
    sends = tracked.handle(A, m.Listing(replace(MANIFEST, block_bytes=CHUNK).encode()), 2.0)
    assert hearing(sends, m.OriginFailed(CHANGED.text)) == [A, B]
    assert sent(sends, m.Joined) == []
    assert tracked.manifest == manifest
    assert leased(tracked.handle(B, announce(wanted=1), 3.0), B), "who stays may try again"
    tracked.handle(A, m.Listing(OTHER.encode()), 4.0)
    assert tracked.manifest == manifest, "it was asked once, and has answered"


def test_a_listing_that_fails_is_tried_by_the_next_follower_and_then_ends_in_the_reason():
    tracked = running(a=False, b=True, c=False, d=True)
    tracked.handle(A, announce(wanted=1), 0.0)
    assert sent(tracked.handle(A, CHANGED, 1.0), m.ListOrigin, B)
    sends = tracked.handle(B, m.ListingFailed("down"), 2.0)
    assert sent(sends, m.ListOrigin) == sent(sends, m.ListOrigin, D) == [m.ListOrigin("m", "")]
    assert sent(sends, m.OriginFailed) == []
    sends = tracked.handle(D, m.ListingFailed("down here too"), 3.0)
    assert sent(sends, m.ListOrigin) == []
    assert hearing(sends, m.OriginFailed(CHANGED.text)) == [A, B, C, D]
    tracked.handle(D, m.Listing(OTHER.encode()), 4.0)
    assert tracked.manifest == MANIFEST, "it is too late"


def test_a_follower_that_failed_to_list_once_is_asked_again_the_next_time():
    tracked = relisting(a=True)
    sends = tracked.handle(A, m.ListingFailed("down"), 2.0)
    assert sent(sends, m.OriginFailed)
    (chunk,) = leased(sends + tracked.handle(A, announce(wanted=1), 3.0), A)
    assert sent(tracked.handle(A, replace(CHANGED, chunk=chunk), 4.0), m.ListOrigin, A)


def test_the_listing_goes_on_when_its_holder_leaves_or_sleeps():
    tracked = running(a=False, b=True, c=True, d=True)
    tracked.handle(A, CHANGED, 1.0)
    assert sent(tracked.gone(B, 2.0), m.ListOrigin, C)
    for node in (A, C, D):
        tracked.handle(node, announce(), 60.0)
    assert sent(tracked.tick(2.0 + LISTING_S - 0.001), m.ListOrigin) == []
    assert sent(tracked.tick(2.0 + LISTING_S), m.ListOrigin, D)


def test_only_the_holder_may_list_again_or_fail_to():
    tracked = relisting(a=True, b=True)
    assert tracked.handle(B, m.Listing(OTHER.encode()), 2.0) == []
    assert tracked.manifest == MANIFEST
    assert tracked.handle(B, m.ListingFailed("down"), 2.0) == []
    sends = tracked.handle(A, m.ListingFailed("down"), 3.0)
    assert sent(sends, m.ListOrigin) == [], "b has said already that it cannot"
    assert hearing(sends, m.OriginFailed(CHANGED.text)) == [A, B]


def test_a_listing_that_nobody_asked_for_moves_nothing():
    tracked = running(a=True, b=True)  # a listed at the start
    assert tracked.handle(A, m.Listing(OTHER.encode()), 1.0) == []
    assert tracked.manifest == MANIFEST


def test_a_follower_that_names_no_origin_is_told_the_swarms():
    tracked = running(a=False)
    tracked.joined(B, join(follow=True, origin=""), 0.0)
    assert sent(tracked.handle(A, CHANGED, 1.0), m.ListOrigin, B) == [
        m.ListOrigin("m", MANIFEST.origin)
    ]


def test_a_node_that_joins_meanwhile_gets_the_revision_in_force_and_no_lease():
    tracked = relisting(a=True)
    sends = tracked.joined(B, join(), 2.0)
    assert sends == [(B, m.Joined("m", MANIFEST.id, MANIFEST.encode(), True))]
    assert leased(tracked.handle(B, announce(wanted=4), 2.0), B) == []


def test_without_a_follower_a_change_is_an_error_like_any_other():
    tracked = running(a=False, b=False)
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(B, announce(wanted=1), 0.0)
    sends = tracked.handle(A, CHANGED, 1.0)
    assert sent(sends, m.ListOrigin) == sent(sends, m.OriginFailed) == []
    assert leased(tracked.handle(A, announce(wanted=1), 1.0), A) == [], "it is barred"
    sends = tracked.handle(B, m.LeaseFailed(3, "changed for b too", True, changed=True), 1.0)
    assert hearing(sends, m.OriginFailed("changed for b too")) == [A, B]


def test_without_a_follower_a_node_that_can_fetch_nothing_is_no_help():
    tracked = running(a=False, b=False)
    tracked.handle(A, announce(wanted=1), 0.0)
    assert hearing(tracked.handle(A, CHANGED, 1.0), m.OriginFailed(CHANGED.text)) == [A, B]


def test_a_change_of_what_the_swarm_holds_already_is_nobodys_failure():
    tracked = running(a=False, b=False)
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(B, announce(0, 1, 2, 3), 1.0)
    assert sent(tracked.handle(A, CHANGED, 2.0), m.OriginFailed) == []


def test_an_error_that_is_no_change_makes_nobody_list():
    tracked = running(a=True)
    tracked.handle(A, announce(wanted=1), 0.0)
    assert sent(tracked.handle(A, m.LeaseFailed(0, "403", True), 1.0), m.ListOrigin) == []


# -- known traps ----------------------------------------------------------------------------------


def test_who_was_told_of_another_revision_is_not_asked_to_list():
    tracked = relisting(a=True, b=True)
    tracked.handle(A, m.Listing(OTHER.encode()), 2.0)
    tracked.joined(C, join(follow=True), 3.0)
    tracked.handle(C, announce(wanted=1), 3.0)
    sends = tracked.handle(C, CHANGED, 4.0)
    assert sent(sends, m.ListOrigin, C)
    assert sent(sends, m.ListOrigin, A) == [], "its listing would be ignored"


def test_a_listing_of_another_model_leaves_the_swarm_as_it_was():
    tracked = relisting(a=True, b=True)
    with pytest.raises(ManifestError):
        tracked.handle(A, m.Listing(replace(OTHER, model="other").encode()), 2.0)
    assert tracked.manifest == MANIFEST
    assert sent(tracked.gone(A, 2.0), m.ListOrigin, B), "its session is closed; the next one lists"


def test_a_swarm_that_moves_back_sends_the_whole_manifest_to_who_runs_with_another():
    tracked = Model("m", "", 1, 0.0, Random(1))
    tracked.joined(A, join(follow=True, manifest=OTHER), 0.0)
    tracked.handle(A, m.Listing(MANIFEST.encode()), 0.0)  # it has another one than on A's disk
    tracked.handle(A, announce(wanted=1), 0.0)
    tracked.handle(A, CHANGED, 1.0)
    (joined,) = sent(tracked.handle(A, m.Listing(OTHER.encode()), 2.0), m.Joined, A)
    assert joined.manifest == OTHER.encode(), "node.daemon decides by it whether to follow"


def test_who_was_told_of_another_revision_does_not_hear_that_its_origin_failed():
    tracked = moved()
    tracked.joined(C, join(), 2.0)
    tracked.handle(C, announce(wanted=1), 2.0)
    sends = tracked.handle(C, m.LeaseFailed(0, "403", True), 3.0)
    assert hearing(sends, m.OriginFailed("403")) == [C]


def test_a_file_that_does_not_match_while_the_origin_is_listed_does_not_stop_the_swarm():
    tracked = relisting(a=True, b=True)
    tracked.handle(B, fetched(0, 1, 2, wrong=True), 2.0)
    assert tracked.manifest == X_ANEW
    sends = tracked.joined(C, join(follow=True, manifest=X_ANEW), 3.0)
    sends += tracked.handle(C, announce(wanted=4), 3.0)
    for letter in (A, B):
        sends += tracked.handle(letter, m.Bye(), 4.0)
    assert leased(sends, C) or sent(sends, m.ListOrigin, C), "somebody fetches, or somebody lists"


def test_more_sealed_files_than_a_message_may_name_are_told_in_several(monkeypatch):
    monkeypatch.setattr(m, "MAX_BATCH", 1)
    tracked = running()
    tracked.handle(A, fetched(3), 1.0)
    tracked.handle(A, m.Sealed([X]), 1.0)
    tracked.joined(C, join(), 2.0)
    assert sent(tracked.handle(C, announce(), 2.0), m.Sealed, C) == [m.Sealed([Y]), m.Sealed([X])]


def test_a_node_that_keeps_an_older_revision_is_no_holder_of_the_new_after_it_dials_again():
    tracked = moved()
    tracked.gone(A, 2.0)
    sends = tracked.joined(A, join(), 3.0)
    assert sent(sends, m.Joined, A)[0].manifest_id == X_ANEW.id
    old = replace(announce(0, 1, 2, 3, wanted=2), manifest=MANIFEST.id)
    assert sent(tracked.handle(A, old, 3.0), m.PinsWanted, A) == []
    assert model_status(tracked)["queued_chunks"] == 4
    assert model_status(tracked)["complete_nodes"] == 0
    tracked.joined(A, join(), 4.0)  # anew, and of this revision now
    tracked.handle(A, replace(announce(0, wanted=0), manifest=X_ANEW.id), 4.0)
    assert model_status(tracked)["queued_chunks"] == 3


def test_a_file_that_was_read_twice_is_not_begun_anew_because_another_one_changed():
    tracked = moved()
    tracked.joined(A, join(follow=True), 2.0)
    tracked.handle(A, announce(wanted=1), 2.0)
    tracked.handle(A, CHANGED, 3.0)
    changed = replace(MANIFEST, files=(*MANIFEST.files[:-1], replace(MANIFEST.files[-1], etag="n")))
    tracked.handle(A, m.Listing(changed.encode()), 4.0)
    before = {file.path: file.attempt for file in X_ANEW.files}
    assert {f.path: f.attempt for f in tracked.manifest.files if f.etag != "n"} == {
        path: count for path, count in before.items() if path != MANIFEST.files[-1].path
    }


def test_a_manifest_of_another_model_on_a_disk_is_passed_over():
    tracked = Model("m", "", 1, 0.0, Random(1))
    other = replace(MANIFEST, model="other")
    with pytest.raises(ManifestError):
        tracked.joined(C, replace(join(manifest=other), confirmed=True), 0.0)
    assert C not in tracked.nodes, "it is no ghost"
    tracked.joined(A, join(manifest=other), 0.0)
    sends = tracked.handle(A, m.ListingFailed("403"), 1.0)
    assert sent(sends, m.OriginFailed, A) == [m.OriginFailed("403")]
    tracked.joined(B, join(manifest=MANIFEST), 2.0)
    tracked.handle(B, m.ListingFailed("404"), 3.0)
    assert tracked.manifest == MANIFEST
