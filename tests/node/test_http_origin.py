"""`http(s)://` and redirects: where later chunks are asked for, and what is told to whom.

Goal: an origin that redirects (a hub to its store) costs one redirect for each object, a place that
has expired is left again, nothing goes round in circles, and our password stays with our server.
Method: two real servers for the listing; for workers' reports a walk through what they may say.
"""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from node.jobs import FetchEnded, FetchJob
from node.origins.base import Origin, OriginOptions, open_origin
from node.origins.file import FileOrigin
from node.origins.http import FORGET_S, MAX_REDIRECTS
from p2p.errors import ManifestError, OriginError
from p2p.manifest import File, Manifest

KIB = 1024
CHUNK, BLOCK = 64 * KIB, 16 * KIB
MODEL = Manifest("m", "", (File("a b", CHUNK + 1, '"1"'), File("c", 1, '"2"')), CHUNK, BLOCK)
URL = "http://user:s3cr3t@hub.example/m/?token=s3cr3t"
AT_HUB = "http://hub.example/m/a%20b?token=s3cr3t"
AT_STORE = "https://store.example/x?Signature=s3cr3t"


def ended(status: int, location: str = "") -> FetchEnded:
    return FetchEnded(0, f"HTTP {status}", True, 0.0, False, status, location=location)


def has_password(job: FetchJob) -> bool:
    return "authorization" in {name.lower() for name, _ in job.headers}


async def redirected(origin: Origin, to: str = AT_STORE) -> FetchJob:
    """Tell of a redirect of the first chunk; the next job for it."""
    assert await origin.refused(await origin.fetch_job(MODEL, 0), ended(302, to))
    return await origin.fetch_job(MODEL, 0)


async def test_later_chunks_of_a_redirected_object_are_asked_for_there():
    origin = open_origin(URL)
    first = await origin.fetch_job(MODEL, 0)
    assert first.url == AT_HUB
    assert first.object == "http://hub.example/m/a%20b"
    assert has_password(first)
    job = await redirected(origin)
    assert job.url == AT_STORE
    assert job.object == first.object
    assert job.etag == first.etag
    assert not has_password(job), "our password is for our server"
    assert (await origin.fetch_job(MODEL, 1)).url == AT_STORE, "the same object"
    assert (await origin.fetch_job(MODEL, 2)).url == "http://hub.example/m/c?token=s3cr3t"
    for secret in ("s3cr3t", "Signature"):
        assert secret not in repr(origin) + origin.url + job.object


@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("/other/x", "http://hub.example/other/x"),
        ("y?z=1#fragment", "http://hub.example/m/y?z=1"),
        ("//store.example/x", "http://store.example/x"),
        ("/a b/\u00c3\u00a9%20?x=1 2", "http://hub.example/a%20b/%C3%A9%20?x=1%202"),
    ],
)
async def test_a_redirect_may_be_relative(location, wanted):
    job = await redirected(open_origin(URL), location)
    assert job.url == wanted
    assert has_password(job) == (job.url.startswith("http://hub.example/"))


@pytest.mark.parametrize(
    "location", ["", "ftp://x/y", "file:///etc/passwd", "https://", "http://[::1"]
)
async def test_a_redirect_to_nowhere_is_not_followed(location):
    origin = open_origin(URL)
    job = await origin.fetch_job(MODEL, 0)
    assert not await origin.refused(job, ended(302, location))
    assert (await origin.fetch_job(MODEL, 0)).url == AT_HUB


async def test_a_password_does_not_go_from_https_to_http():
    origin = open_origin("https://user:s3cr3t@hub.example/m/")
    assert not has_password(await redirected(origin, "http://hub.example/m/x"))


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_place_that_has_expired_is_forgotten_once(status, autojump_clock):
    origin = open_origin(URL)
    job = await redirected(origin)
    assert await origin.refused(job, ended(status))
    assert await origin.refused(job, ended(status)), "another one that was under way"
    assert (await origin.fetch_job(MODEL, 0)).url == AT_HUB
    again = await redirected(origin, AT_STORE + "2")
    assert not await origin.refused(again, ended(status)), "a circle: the new place too"
    assert (await origin.fetch_job(MODEL, 0)).url == AT_HUB

    autojump_clock.jump(FORGET_S)
    much_later = await redirected(origin, AT_STORE + "3")
    assert await origin.refused(much_later, ended(status)), "places expire again and again"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_what_the_origin_itself_refuses_is_refused(status):
    origin = open_origin(URL)
    job = await origin.fetch_job(MODEL, 0)
    assert not await origin.refused(job, ended(status))
    await redirected(origin)
    assert not await origin.refused(job, ended(status)), "nor is a place of later its way out"


async def test_other_refusals_change_nothing():
    origin = open_origin(URL)
    job = await redirected(origin)
    for status in (0, 200, 400, 412, 416, 500, 503):
        assert not await origin.refused(job, ended(status))
    assert (await origin.fetch_job(MODEL, 0)).url == AT_STORE


async def test_redirects_in_a_row_end(autojump_clock):
    origin = open_origin(URL)
    for hop in range(MAX_REDIRECTS):
        job = await redirected(origin, f"http://hop.example/{hop % 2}")
    assert not await origin.refused(job, ended(302, "http://hop.example/end"))
    assert (await origin.fetch_job(MODEL, 0)).url == AT_HUB


async def test_a_place_that_moves_now_and_then_is_followed_for_ever(autojump_clock):
    origin = open_origin(URL)
    for hop in range(3 * MAX_REDIRECTS):
        job = await redirected(origin, f"http://hop.example/{hop}")
        assert job.url == f"http://hop.example/{hop}"
        autojump_clock.jump(FORGET_S)


async def test_many_redirected_at_once_are_one_redirect():
    origin = open_origin(URL)
    jobs = [await origin.fetch_job(MODEL, 0) for _ in range(3 * MAX_REDIRECTS)]
    for number, job in enumerate(jobs):
        assert await origin.refused(job, ended(307, f"{AT_STORE}{number}"))
    assert (await origin.fetch_job(MODEL, 0)).url == AT_STORE + "0", "the first one counts"


async def test_a_folder_on_disk_refuses_for_good(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    origin = FileOrigin(tmp_path.as_uri() + "/")
    manifest = await origin.list("m", CHUNK, BLOCK)
    job = await origin.fetch_job(manifest, 0)
    assert job.object == job.url == (tmp_path / "x").as_uri()
    assert not await origin.refused(job, ended(403))


# -- the listing -----------------------------------------------------------------------------------


class Site:
    """A server whose answers are a function: (method, path, headers) to (status, headers, body)."""

    def __init__(self, answer: Callable) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Silent: the tests look at `seen`."""

            def do_GET(self) -> None:
                """What `answer` says."""
                site.seen.append((self.command, self.path, self.headers["Authorization"]))
                status, headers, body = answer(self.command, self.path, self.headers)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site() -> Iterator[Callable[[Callable], Site]]:
    """`site(answer)` starts a server for the test."""
    started: list[Site] = []

    def start(answer: Callable) -> Site:
        started.append(Site(answer))
        return started[-1]

    yield start
    for one in started:
        one.close()


def store(method, path, headers):
    """Holds "123456789" under any name, and reads ranges."""
    if "Range" in headers:
        return 206, {"ETag": '"e"', "Content-Range": "bytes 0-0/9"}, b"1"
    return 200, {"ETag": '"e"'}, b"123456789"


async def test_listing_and_probe_follow_redirects_and_keep_the_password_at_home(site):
    far = site(store)
    near = site(lambda method, path, headers: (302, {"Location": f"http://{far.host}{path}"}, b""))
    origin = open_origin(f"http://user:s3cr3t@{near.host}/x?q=s3cr3t")
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert manifest.files == (File("x", 9, '"e"'),)
    assert [method for method, _, _ in far.seen] == ["HEAD", "GET"]
    assert {word for _, _, word in far.seen} == {None}
    assert all(word and word.startswith("Basic ") for _, _, word in near.seen)
    assert {path for _, path, _ in near.seen} == {"/x?q=s3cr3t"}


async def test_a_listing_that_goes_round_in_circles_ends(site):
    near = site(lambda method, path, headers: (301, {"Location": "/x"}, b""))
    with pytest.raises(OriginError, match="/x: too many redirects") as caught:
        await open_origin(f"http://{near.host}/x").list("m", CHUNK, BLOCK)
    assert caught.value.fatal
    assert len(near.seen) == MAX_REDIRECTS + 1


async def test_a_listing_is_not_redirected_to_another_scheme(site):
    near = site(lambda method, path, headers: (301, {"Location": "file:///etc/passwd"}, b""))
    with pytest.raises(OriginError, match="redirects to what is no http URL") as caught:
        await open_origin(f"http://{near.host}/x").list("m", CHUNK, BLOCK)
    assert caught.value.fatal


async def test_a_server_that_lists_nothing_is_told_the_names(site):
    near = site(store)
    with pytest.raises(OriginError, match="--files"):
        await open_origin(f"http://{near.host}/m/").list("m", CHUNK, BLOCK)
    options = OriginOptions(files=("b/c d", "a", "b/c d"))
    manifest = await open_origin(f"http://{near.host}/m/", options).list("m", CHUNK, BLOCK)
    assert [file.path for file in manifest.files] == ["a", "b/c d"]
    assert ("HEAD", "/m/b/c%20d", None) in near.seen
    with pytest.raises(ManifestError, match="would leave the model dir"):
        await open_origin(f"http://{near.host}/m/", OriginOptions(files=("../x",))).list(
            "m", CHUNK, BLOCK
        )
