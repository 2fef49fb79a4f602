"""`oss://` against a server that is as strict as OSS: listings and jobs.

Goal: a manifest names exactly the bucket's objects, and each of its jobs is accepted as it stands.
Method: the tests' OSS server checks every signature with the SDK's code; jobs are carried out by a
client that adds what a worker adds and nothing else.
"""

from urllib.parse import urlsplit

import fastcrc
import pytest
import trio
from support.oss_model import FILES, options, write_credentials
from support.readers import LoopbackNames, carry_out, read_all, read_chunk

from node.jobs import FetchEnded
from node.origins.base import OriginOptions, open_origin
from p2p.errors import ManifestError, OriginError, UsageError

KIB = 1024
CHUNK, BLOCK = 64 * KIB, 16 * KIB
KINDS = pytest.mark.parametrize("kind", ["v4", "v1"])


@KINDS
async def test_every_object_below_the_prefix_is_listed_and_readable(serve, keys, kind):
    server = serve(extra={"model/": b"", "model/sub/": b""}, page_size=2)
    origin = open_origin("oss://models/model/", options(server, kind))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert {file.path: file.size_bytes for file in manifest.files} == {
        path: len(data) for path, data in FILES.items()
    }
    for file in manifest.files:
        crc = fastcrc.crc64.xz(FILES[file.path])
        assert file.checksum == f"crc64xz:{crc:016x}"
        assert file.etag == server.objects.find("model/" + file.path).etag
        assert file.version == ""
    assert manifest.origin == origin.url == "oss://models/model/"
    assert await read_all(origin, manifest) == FILES
    assert manifest == await origin.list("m", CHUNK, BLOCK), "the same objects, the same revision"
    listings = [request for request in server.requests if request.key is None]
    assert len(listings) == 2 * 4, "seven keys, two in a page"
    assert {request.signature for request in server.requests} == {kind}
    assert {request.status for request in server.requests} == {200, 206}
    await origin.aclose()


async def test_a_job_says_all_that_a_worker_needs(serve, keys):
    server = serve()
    origin = open_origin("oss://models/model/", options(server))
    manifest = await origin.list("m", CHUNK, BLOCK)
    chunk = manifest.chunks_of([file.path for file in manifest.files].index("sub/one"))[0]
    job = await origin.fetch_job(manifest, chunk)
    assert (job.chunk, job.total, job.modified) == (chunk, 1, "")
    assert job.checksum == "crc64xz"
    assert job.object == "oss://models/model/sub/one"
    names = {name.lower() for name, _ in job.headers}
    assert {"x-oss-range-behavior", "authorization"} <= names
    assert not {"range", "if-match", "host"} & names
    beyond = await carry_out(job, 5, 9)
    assert isinstance(beyond, FetchEnded)
    assert beyond.status == 416, "and not 200 with all of the object"


async def test_a_store_without_checksums_gives_none(serve, keys):
    server = serve(crc_header=False)
    origin = open_origin("oss://models/model/", options(server))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert {file.checksum for file in manifest.files} == {""}
    assert (await origin.fetch_job(manifest, 0)).checksum == ""


@pytest.mark.parametrize("prefix", ["", "/"])
async def test_a_whole_bucket_is_a_folder(serve, keys, prefix):
    server = serve({"x": b"x"})
    origin = open_origin("oss://models" + prefix, options(server))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert [file.path for file in manifest.files] == ["model-2/other", "model/x"]
    assert await read_all(origin, manifest) == {
        "model-2/other": b"of another model", "model/x": b"x",
    }  # fmt: skip


async def test_one_object_can_be_named_alone(serve, keys):
    server = serve()
    url = "oss://models/model/a b/t%C3%A4xt %2541+&=%3F%23;.json"
    origin = open_origin(url, options(server))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == {"täxt %41+&=?#;.json": b"odd"}
    assert all(request.key for request in server.requests), "nothing is listed"


@KINDS
async def test_a_sessions_token_is_signed(serve, tmp_path, kind):
    server = serve()
    token = server.issue_token(3600)
    write_credentials(tmp_path / "credentials.json", token)
    origin = open_origin(
        "oss://models/model/",
        options(server, kind, credentials_file=tmp_path / "credentials.json"),
    )
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == FILES
    assert {request.headers["x-oss-security-token"] for request in server.requests} == {
        token.security_token
    }


async def test_an_anonymous_reader_names_the_objects(serve):
    server = serve(anonymous_read=True)
    with pytest.raises(OriginError) as caught:
        await open_origin("oss://models/model/", options(server)).list("m", CHUNK, BLOCK)
    assert str(caught.value) == (
        "oss://models/model/: HTTP 403 AccessDenied (access denied to anonymous requests, "
        "the bucket cannot be listed: name the objects with --files)"
    )
    assert caught.value.fatal
    names = ("sub/one", "model.safetensors", "sub/one")
    origin = open_origin("oss://models/model/", options(server, files=names))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == {name: FILES[name] for name in names}
    assert {request.signature for request in server.requests} == {"anonymous"}
    job = await origin.fetch_job(manifest, 0)
    assert not await origin.refused(job, FetchEnded(0, "", True, 0.0, False, 403, "AccessDenied"))


async def test_anonymous_wins_over_keys(serve, keys):
    server = serve(anonymous_read=True)
    origin = open_origin("oss://models/model/", options(server, files=("sub/one",), anonymous=True))
    await origin.list("m", CHUNK, BLOCK)
    assert {request.signature for request in server.requests} == {"anonymous"}


async def test_a_folder_without_its_slash_is_told_what_it_lacks(serve, keys):
    server = serve()
    with pytest.raises(OriginError) as caught:
        await open_origin("oss://models/model", options(server)).list("m", CHUNK, BLOCK)
    assert str(caught.value) == (
        "oss://models/model: HTTP 404 (not found; the URL of a folder ends with a slash)"
    )


async def test_a_named_object_that_is_missing_is_named(serve, keys):
    server = serve()
    origin = open_origin("oss://models/model/", options(server, files=("sub/one", "no such")))
    with pytest.raises(OriginError) as caught:
        await origin.list("m", CHUNK, BLOCK)
    assert str(caught.value) == "oss://models/model/no%20such: HTTP 404 (not found)"
    assert caught.value.fatal


@pytest.mark.parametrize("key", ["model/../x", "model//x", "model/./x"])
async def test_a_key_that_would_leave_the_model_dir_is_refused(serve, keys, key):
    server = serve(extra={key: b"evil"})
    with pytest.raises(ManifestError, match="would leave the model dir"):
        await open_origin("oss://models/model/", options(server)).list("m", CHUNK, BLOCK)
    assert all(request.key is None for request in server.requests), "it is not even asked for"


async def test_an_empty_prefix_has_no_files(serve, keys):
    server = serve(extra={"void/": b""})
    with pytest.raises(OriginError, match=r"^oss://models/void/: there are no files$") as caught:
        await open_origin("oss://models/void/", options(server)).list("m", CHUNK, BLOCK)
    assert caught.value.fatal


@KINDS
async def test_a_version_is_read_even_when_the_object_was_replaced(serve, keys, kind):
    server = serve(versioning=True)
    origin = open_origin("oss://models/model/", options(server, kind))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert all(file.version for file in manifest.files)
    server.replace("model/model.safetensors", b"new")
    assert await read_all(origin, manifest) == FILES
    again = await origin.list("m", CHUNK, BLOCK)
    assert again.id != manifest.id


async def test_without_versions_a_replaced_object_is_refused(serve, keys):
    server = serve()
    origin = open_origin("oss://models/model/sub/one", options(server))
    manifest = await origin.list("m", CHUNK, BLOCK)
    server.replace("model/sub/one", b"2")
    ended = await read_chunk(origin, manifest, 0)
    assert isinstance(ended, FetchEnded)
    assert (ended.status, ended.code) == (412, "PreconditionFailed")
    job = await origin.fetch_job(manifest, 0)
    assert not await origin.refused(job, ended)


async def test_who_may_not_read_by_version_reads_the_object_itself(serve, keys):
    """A permission of its own. The ETag still tells a replaced object from ours."""
    server = serve(versioning=True)
    origin = open_origin("oss://models/model/", options(server))
    manifest = await origin.list("m", CHUNK, BLOCK)
    job = await origin.fetch_job(manifest, 0)
    assert "versionId=" in job.url
    denied = FetchEnded(0, "", True, 0.0, False, 403, "AccessDenied")
    assert await origin.refused(job, denied)
    assert await origin.refused(job, denied), "another one that was under way"
    assert await read_all(origin, manifest) == FILES
    job = await origin.fetch_job(manifest, 0)
    assert "versionId=" not in job.url
    assert not await origin.refused(job, denied), "now it is really denied"


# -- the endpoint's name ---------------------------------------------------------------------------


@KINDS
async def test_a_bucket_is_part_of_the_hosts_name(serve, keys, kind):
    server = serve(virtual_only=True)
    names = LoopbackNames(urlsplit(server.endpoint).port)
    trio.socket.set_custom_hostname_resolver(names)
    host = "oss-cn-test-internal.aliyuncs.com" if kind == "v4" else "http://oss.example.com"
    origin = open_origin("oss://models/model/", OriginOptions(endpoint=host))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == FILES
    assert names.asked == {"models." + host.removeprefix("http://")}
    assert {request.signature for request in server.requests} == {kind}


async def test_a_store_that_wants_virtual_addressing_says_so(serve, keys):
    server = serve(virtual_only=True)
    with pytest.raises(OriginError, match=r"SecondLevelDomainForbidden \(.*addressing virtual\)"):
        await open_origin("oss://models/model/", options(server)).list("m", CHUNK, BLOCK)


def test_an_origin_without_endpoint_is_a_mistake_that_names_the_variables():
    with pytest.raises(UsageError, match="OSS_ENDPOINT or OSS_REGION"):
        open_origin("oss://models/model/")


async def test_a_bucket_that_is_not_there_is_named(serve, keys):
    server = serve()
    with pytest.raises(OriginError, match="NoSuchBucket") as caught:
        await open_origin("oss://missing/", options(server)).list("m", CHUNK, BLOCK)
    assert str(caught.value).startswith("oss://missing/: HTTP 404 NoSuchBucket (there is no such")
