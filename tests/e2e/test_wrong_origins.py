"""Origins that answer wrongly: named in one line, never believed, and nothing of theirs is kept."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from support.cluster import Process, hashes, make_model, wait_until
from support.faulty import FaultyOrigin

MIB = 1024**2
CHUNKS = ("--chunk-size", "1MiB", "--block-size", "256KiB")


@pytest.fixture
def faulty() -> Iterator[Callable[..., FaultyOrigin]]:
    """Start a `FaultyOrigin`; all are closed at the end."""
    started = []

    def start(*arguments: object, **options: object) -> FaultyOrigin:
        origin = FaultyOrigin(*arguments, **options)
        started.append(origin)
        return origin

    yield start
    for origin in started:
        origin.close()


def fails(process: Process, *words: str) -> None:
    """The command ends with 1 and one last line that holds all `words`."""
    assert process.wait(30) == 1, process.text
    assert "Traceback" not in process.text, process.text
    last = process.text.strip().splitlines()[-1]
    for word in words:
        assert word in last, process.text


def nothing_published(folder: Path) -> bool:
    return not hashes(folder / "model") if (folder / "model").exists() else True


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403", ["403", "x.bin"]),
        ("404", ["404", "x.bin"]),
        ("200", ["no range support", "x.bin"]),
        ("wrong-range", ["Content-Range", "x.bin"]),
        ("wrong-total", ["Content-Range", "x.bin"]),
        ("other-etag", ["changed", "x.bin"]),
        ("nothing", ["short body", "0 of", "x.bin"]),
    ],
)
def test_a_wrong_answer_to_a_range_ends_the_load_and_names_the_object(
    cluster, faulty, fault, words
):
    source = make_model(cluster.folder / "source", 31, {"x.bin": 4 * MIB})
    good = 2

    def lie(ranged):
        return fault if ranged.count >= good else None

    origin = faulty(source, lie)
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    fails(node, *words)
    assert nothing_published(cluster.folder / "a")
    report = cluster.report("a")
    assert not report["complete"]
    # What was good is kept: with a good origin only the rest is fetched.
    origin.fault = lambda _: None
    again = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    assert again.wait() == 0, again.text
    assert hashes(cluster.folder / "a" / "model") == hashes(source)
    resumed = cluster.report("a")
    # The other lease's chunk may have been on its way when the load ended.
    assert resumed["resumed_bytes"] in (good * MIB, (good - 1) * MIB)
    assert resumed["origin_bytes"] == 4 * MIB - resumed["resumed_bytes"]


def test_a_server_without_ranges_is_found_at_the_listing_not_at_the_first_chunk(one, faulty):
    source = make_model(one.folder / "source", 32, {"x.bin": 2 * MIB})
    origin = faulty(source, lambda _: "200", probes=True)
    one.start_tracker()
    fails(one.start_node("a", "--origin", origin.url), "no range support", "x.bin", "200")
    assert not origin.requests, "no chunk was asked for"


def test_bodies_that_are_cut_are_resumed_where_they_ended(cluster, faulty):
    source = make_model(cluster.folder / "source", 33, {"x.bin": 6 * MIB + 3})
    origin = faulty(source, lambda ranged: "short" if ranged.count % 2 == 0 else None)
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    assert node.wait() == 0, node.text
    assert hashes(cluster.folder / "a" / "model") == hashes(source)
    report = cluster.report("a")
    assert report["origin_bytes"] == 6 * MIB + 3, "no byte was asked for twice"
    assert report["duplicate_bytes"] == 0


def test_errors_that_pass_are_waited_out(cluster, faulty):
    source = make_model(cluster.folder / "source", 34, {"x.bin": 4 * MIB})
    origin = faulty(source, lambda ranged: "503" if ranged.count % 3 == 0 else None)
    cluster.start_tracker("--start-with", "2")
    nodes = [
        cluster.start_node(name, "--origin", origin.url, "--until-complete", *CHUNKS)
        for name in ("a", "b")
    ]
    for name, node in zip(("a", "b"), nodes, strict=True):
        assert node.wait() == 0, node.text
        assert hashes(cluster.folder / name / "model") == hashes(source)
    assert origin.body_bytes == 4 * MIB + 1, "each byte once, and the probe's one"


def test_an_object_that_changes_in_mid_load_is_never_mixed(cluster, faulty):
    source = make_model(cluster.folder / "source", 35, {"x.bin": 8 * MIB})
    origin = faulty(source)

    def change(ranged):
        if ranged.count == 3:
            origin.etags["/x.bin"] = '"the new one"'

    origin.fault = change
    cluster.start_tracker()
    node = cluster.start_node("a", "--origin", origin.url, "--until-complete", *CHUNKS)
    fails(node, "changed", "x.bin")
    assert nothing_published(cluster.folder / "a")


@pytest.mark.parametrize(
    "name", ["../escape", "/etc/escape", "a/../../escape", "nul\0escape", "..", "a//escape", ""]
)
def test_a_listed_name_that_would_leave_the_model_dir_is_refused(one, faulty, name):
    source = make_model(one.folder / "source", 36, {"good": 5})
    origin = faulty(source, listing=["good", name])
    one.start_tracker()
    node = one.start_node("a", "--origin", origin.url, "--until-complete")
    fails(node, repr(name))
    assert not list(one.folder.rglob("escape*"))
    assert nothing_published(one.folder / "a")


def test_one_nodes_forbidden_origin_is_another_nodes_work(one, faulty):
    source = make_model(one.folder / "source", 37, {"x.bin": 4 * MIB})
    good, bad = faulty(source), faulty(source, lambda _: "403")
    one.start_tracker("--start-with", "2")
    common = ("--model", "m", "--until-complete", *CHUNKS)
    nodes = [
        one.start_node("a", "--origin", bad.url, *common),
        one.start_node("b", "--origin", good.url, *common),
    ]
    for name, node in zip(("a", "b"), nodes, strict=True):
        assert node.wait() == 0, node.text
        assert hashes(one.folder / name / "model") == hashes(source)
    assert one.report("a")["origin_bytes"] == 0


def test_a_complete_node_goes_on_when_the_origin_of_the_others_fails(one, faulty):
    source = make_model(one.folder / "source", 38, {"x.bin": 2 * MIB})
    origin = faulty(source)
    one.start_tracker()
    keeps = one.start_node("a", "--origin", origin.url, *CHUNKS)
    wait_until(lambda: (s := one.node_status("a")) and s["complete"], "a complete")
    origin.fault = lambda _: "403"
    other = one.start_node("b", "--origin", origin.url, "--until-complete", *CHUNKS)
    assert other.wait() == 0, other.text
    assert one.report("b")["origin_bytes"] == 0
    assert keeps.popen.poll() is None


@pytest.fixture
def authority(folder: Path) -> tuple[trustme.CA, Path]:
    """A certificate authority of our own, and its file."""
    authority = trustme.CA()
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return authority, path


def test_https_is_verified_and_read_in_ranges(cluster, faulty, authority):
    ca, path = authority
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    source = make_model(cluster.folder / "source", 39, {"x.bin": 5 * MIB + 1, "y": 7})
    origin = faulty(source, lambda ranged: "short" if ranged.count == 1 else None, tls=tls)
    cluster.start_tracker()
    options = ("--origin", origin.url, "--until-complete", *CHUNKS)
    node = cluster.start_node("a", *options, env={"SSL_CERT_FILE": str(path)})
    assert node.wait() == 0, node.text
    assert hashes(cluster.folder / "a" / "model") == hashes(source)
    # Without the authority's file, the same origin is not believed.
    stranger = cluster.start_node("b", *options, "--model", "another")
    fails(stranger, "certificate", origin.url)
