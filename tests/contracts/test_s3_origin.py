"""`s3://` against moto, which knows the protocol, and against a server that knows signatures.

Goal: a manifest names exactly the bucket's objects with S3's own checksums, each of its jobs is
accepted as it stands, and what can be mended (a token, a clock, a region) is mended.
Method: moto checks no signature, so those are checked by a small server with botocore's own code.
Jobs are carried out by a client that adds what a worker adds and nothing else.
"""

import json
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import awscrt.checksums
import httpx
import pytest
import trio
import trustme
from moto.server import ThreadedMotoServer
from support.readers import LoopbackNames, read_all, refusal_of
from support.s3 import Strict, StrictServer

from node.credentials import Credentials
from node.origins.base import OriginOptions, open_origin
from node.origins.s3 import S3Origin
from node.origins.signing import S3V4
from node.tls import tls_context
from p2p.errors import OriginError, UsageError

KIB = 1024
CHUNK, BLOCK = 64 * KIB, 16 * KIB
ID, SECRET = "test-id", "test-s3cr3t"
FILES = {
    "model.safetensors": bytes(range(256)) * 700,
    "a b/täxt %41+&=?#;.json": b"odd",
    "模型/~config'(1)!*.json": b"unicode",
    "empty": b"",
    "sub/one": b"1",
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """No variable and no file of whoever runs the tests, and no metadata service."""
    for name in ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
                 "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


# -- moto ------------------------------------------------------------------------------------------


@dataclass
class Bucket:
    """A bucket of moto's, which answers only who is signed or where all may read."""

    endpoint: str
    name: str

    def put(self, key: str, data: bytes, **headers: str) -> None:
        """Write an object."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.endpoint}/{self.name}/{quote(key)}"
        signer, keys = S3V4("us-east-1"), Credentials(ID, SECRET)  # moto only wants to see one
        named |= signer.sign("PUT", url, self.name, key, {}, keys, time.time())
        httpx.put(url, content=data, headers=named, trust_env=False).raise_for_status()

    def options(self, **more: object) -> OriginOptions:
        """Where it is."""
        return OriginOptions(endpoint=self.endpoint, **more)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """moto's server; the URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto, request) -> Bucket:
    """An empty bucket of this test's own."""
    name = "b-" + format(hash(request.node.nodeid) % 2**40, "x")
    httpx.put(f"{moto}/{name}", trust_env=False).raise_for_status()
    return Bucket(moto, name)


async def test_every_object_below_the_prefix_is_listed_and_readable(bucket, monkeypatch):
    monkeypatch.setattr(S3Origin, "page_keys", 2)
    for path, data in FILES.items():
        bucket.put("model/" + path, data, x_amz_sdk_checksum_algorithm="CRC64NVME")
    bucket.put("model/", b"")
    bucket.put("model/sub/", b"")
    bucket.put("model-2/other", b"of another model")
    origin = open_origin(f"s3://{bucket.name}/model/", bucket.options())
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert {file.path: file.size_bytes for file in manifest.files} == {
        path: len(data) for path, data in FILES.items()
    }
    for file in manifest.files:
        crc = awscrt.checksums.crc64nvme(FILES[file.path])
        assert file.checksum == f"crc64nvme:{crc:016x}"
        assert file.version == ""
    assert manifest.origin == origin.url == f"s3://{bucket.name}/model/"
    assert await read_all(origin, manifest) == FILES
    assert manifest == await origin.list("m", CHUNK, BLOCK), "the same objects, the same revision"
    job = await origin.fetch_job(manifest, 0)
    assert (job.checksum, job.modified) == ("crc64nvme", "")
    assert job.object.startswith(f"s3://{bucket.name}/model/")


async def test_an_object_without_a_checksum_of_the_whole_has_none(bucket):
    bucket.put("none", b"1")
    bucket.put("other", b"1", x_amz_sdk_checksum_algorithm="CRC32")
    origin = open_origin(f"s3://{bucket.name}/", bucket.options())
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert [file.checksum for file in manifest.files] == ["", ""]
    assert (await origin.fetch_job(manifest, 0)).checksum == ""


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"x-amz-checksum-crc64nvme": "rosUhgp5mIg="}, "crc64nvme:ae8b14860a799888"),
        (
            {"x-amz-checksum-crc64nvme": "rosUhgp5mIg=", "x-amz-checksum-type": "FULL_OBJECT"},
            "crc64nvme:ae8b14860a799888",
        ),
        ({"x-amz-checksum-crc64nvme": "rosUhgp5mIg=-3", "x-amz-checksum-type": "COMPOSITE"}, ""),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, ""),
        ({"x-amz-checksum-crc64nvme": "rosUhg=="}, None),
        ({"x-amz-checksum-crc64nvme": "rosUhgp5mIg=x"}, None),
        ({"x-amz-checksum-crc64nvme": "12602179884226390152"}, None),
    ],
)
async def test_a_checksum_as_s3_writes_it(strict, headers, wanted):
    server = strict({"x": b"123456789"})
    server.described = headers
    origin = asks(server, "s3://bucket/x")
    if wanted is None:
        with pytest.raises(OriginError, match=r"s3://bucket/x: the store's checksum is not one"):
            await origin.list("m", CHUNK, BLOCK)
        return
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert manifest.files[0].checksum == wanted


async def test_a_version_is_read_even_when_the_object_was_replaced(bucket):
    on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    url = f"{bucket.endpoint}/{bucket.name}?versioning"
    httpx.put(url, content=on, trust_env=False).raise_for_status()
    for path, data in FILES.items():
        bucket.put(path, data)
    origin = open_origin(f"s3://{bucket.name}", bucket.options())
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert all(file.version for file in manifest.files)
    bucket.put("model.safetensors", b"new")
    assert await read_all(origin, manifest) == FILES


async def test_without_versions_a_replaced_object_is_refused(bucket):
    bucket.put("x", b"old")
    origin = open_origin(f"s3://{bucket.name}/x", bucket.options())
    manifest = await origin.list("m", CHUNK, BLOCK)
    bucket.put("x", b"new")
    job = await origin.fetch_job(manifest, 0)
    ended = await refusal_of(job)
    assert ended.status == 412
    assert not await origin.refused(job, ended)


async def test_an_anonymous_reader_reads_what_all_may_read(bucket):
    bucket.put("open", b"1", x_amz_acl="public-read")
    bucket.put("closed", b"1")
    origin = open_origin(f"s3://{bucket.name}/", bucket.options(anonymous=True, files=("open",)))
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == {"open": b"1"}
    assert (await origin.fetch_job(manifest, 0)).headers == []
    origin = open_origin(f"s3://{bucket.name}/closed", bucket.options(anonymous=True))
    with pytest.raises(OriginError) as caught:
        await origin.list("m", CHUNK, BLOCK)
    words = "HTTP 403 (access denied to anonymous requests)"
    assert str(caught.value) == f"s3://{bucket.name}/closed: {words}"


async def test_who_has_no_credentials_is_told(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket.put("closed", b"1")
    origin = open_origin(f"s3://{bucket.name}/closed", bucket.options())
    with pytest.raises(OriginError, match="anonymous requests, and no AWS credentials were found"):
        await origin.list("m", CHUNK, BLOCK)


async def test_what_is_not_there_and_what_is_empty_is_named(bucket):
    for url, words in {
        f"s3://{bucket.name}/": "there are no files",
        f"s3://{bucket.name}/no such": "no%20such: HTTP 404 (not found; the URL of a folder",
        "s3://missing-bucket/": "HTTP 404 NoSuchBucket (there is no such bucket)",
    }.items():
        with pytest.raises(OriginError) as caught:
            await open_origin(url, bucket.options()).list("m", CHUNK, BLOCK)
        assert words in str(caught.value)
        assert caught.value.fatal


async def test_variables_and_profile_say_where_the_store_is(bucket, monkeypatch, tmp_path):
    bucket.put("x", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[profile prod]\nregion = eu-west-3\n")
    origin = open_origin(f"s3://{bucket.name}/", OriginOptions(profile="prod"))
    host = urlsplit(bucket.endpoint).netloc
    assert repr(origin) == f"<S3Origin s3://{bucket.name}/ at {host} <S3V4 eu-west-3>>"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert "<S3V4 eu-west-1>" in repr(open_origin(f"s3://{bucket.name}/"))
    given = OriginOptions(region="eu-west-2", endpoint="s3.example.com")
    assert "at s3.example.com <S3V4 eu-west-2>" in repr(open_origin("s3://bucket/", given))
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(UsageError, match=r"profile \(dev\) could not be found"):
        open_origin("s3://bucket/", OriginOptions(profile="dev"))


# -- signatures, regions, tokens -------------------------------------------------------------------


@pytest.fixture
def strict() -> Iterator[Callable[..., Strict]]:
    """`strict(objects, tls=context)` serves the bucket `bucket` until the test ends."""
    started = []

    def start(objects: dict[str, bytes], tls: ssl.SSLContext | None = None) -> Strict:
        started.append(StrictServer(Strict(objects), tls))
        return started[-1].strict

    yield start
    for server in started:
        server.close()


def asks(server: Strict, url: str = "s3://bucket/", clock=time.time, **more: object) -> S3Origin:
    """The origin that asks there."""
    return S3Origin(url, OriginOptions(endpoint=server.url, **more), clock)


def write(path: Path, number: int) -> None:
    values = (f"id-{number}", f"s3cr3t-{number}", f"token-{number}")
    names = ("AccessKeyId", "AccessKeySecret", "SecurityToken")
    path.write_text(json.dumps(dict(zip(names, values, strict=True))))


async def test_signatures_are_those_of_botocore(strict):
    server = strict(FILES)
    origin = asks(server)
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == FILES
    assert {status for _, _, status in server.seen} == {200, 206}


async def test_a_wrong_secret_is_told_without_a_secret(strict, monkeypatch, caplog):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-s3cr3t")
    caplog.set_level(logging.DEBUG)
    origin = asks(strict({"x": b"1"}))
    with pytest.raises(OriginError) as caught:
        await origin.list("m", CHUNK, BLOCK)
    assert str(caught.value) == (
        "s3://bucket/: HTTP 403 SignatureDoesNotMatch (the access key's secret is wrong)"
    )
    assert "s3cr3t" not in repr(origin) + caplog.text + str(caught.value)
    assert "Signature=" not in caplog.text


async def test_an_expired_token_is_replaced_from_the_file(strict, tmp_path):
    server, file = strict({"x": b"1", "y": b"2"}), tmp_path / "credentials.json"
    server.keys |= {"id-1": ("s3cr3t-1", "token-1"), "id-2": ("s3cr3t-2", "token-2")}
    write(file, 1)
    origin = asks(server, credentials_file=file)
    manifest = await origin.list("m", CHUNK, BLOCK)
    jobs = [await origin.fetch_job(manifest, chunk) for chunk in (0, 1)]
    server.expired.add("id-1")
    ended = [await refusal_of(job) for job in jobs]
    assert [end.code for end in ended] == ["ExpiredToken", "ExpiredToken"]
    assert [end.status for end in ended] == [400, 400]
    assert not await origin.refused(jobs[0], ended[0]), "the file still holds the same"
    write(file, 2)
    assert await origin.refused(jobs[0], ended[0])
    file.unlink()
    assert await origin.refused(jobs[1], ended[1]), "the file need not be read for each"
    assert await read_all(origin, manifest) == {"x": b"1", "y": b"2"}


async def test_a_head_that_is_refused_without_a_word_may_mean_the_token(strict, tmp_path):
    """HEAD has no body: S3 tells no code, only 400 or 403."""
    server, file = strict({"x": b"1"}), tmp_path / "credentials.json"
    server.keys |= {"id-1": ("s3cr3t-1", "token-1"), "id-2": ("s3cr3t-2", "token-2")}
    write(file, 1)
    origin = asks(server, "s3://bucket/x", credentials_file=file)
    await origin.list("m", CHUNK, BLOCK)
    server.expired.add("id-1")
    write(file, 2)
    await origin.list("m", CHUNK, BLOCK)
    assert [status for _, _, status in server.seen] == [200, 400, 200]


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_off_by_an_hour_is_corrected(strict, hours):
    server = strict({"x": b"1"})
    origin = asks(server, "s3://bucket/x", clock=lambda: time.time() + hours * 3600)
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == {"x": b"1"}
    assert [status for _, _, status in server.seen] == [403, 200, 206]
    server.clock_offset_s = 3600
    job = await origin.fetch_job(manifest, 0)
    ended = await refusal_of(job)
    assert ended.code == "RequestTimeTooSkewed"
    assert await origin.refused(job, ended)
    assert await read_all(origin, manifest) == {"x": b"1"}


async def test_who_may_not_read_by_version_reads_the_object_itself(strict):
    server = strict({"x": b"1"})
    server.version, server.versions_denied = "v1", True
    origin = asks(server, "s3://bucket/x")
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert manifest.files[0].version == "v1"
    job = await origin.fetch_job(manifest, 0)
    ended = await refusal_of(job)
    assert await origin.refused(job, ended)
    assert await read_all(origin, manifest) == {"x": b"1"}
    assert not await origin.refused(await origin.fetch_job(manifest, 0), ended)


async def test_a_version_that_is_null_is_none(strict):
    server = strict({"x": b"1"})
    server.version = "null"
    manifest = await asks(server, "s3://bucket/x").list("m", CHUNK, BLOCK)
    assert manifest.files[0].version == ""


@pytest.mark.parametrize("url", ["s3://bucket/", "s3://bucket/x"])
async def test_a_wrong_region_is_corrected_once(strict, url, caplog):
    server = strict({"x": b"1"})
    server.region = "eu-west-1"
    origin = asks(server, url)
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == {"x": b"1"}
    statuses = [status for _, _, status in server.seen]
    assert statuses.count(400) == 1
    assert caplog.text.count("the bucket is in region eu-west-1") == 1


async def test_a_node_that_listed_nothing_learns_the_region_from_a_workers_report(strict):
    server = strict({"x": b"1"})
    server.region = "eu-west-1"
    manifest = await asks(server, region="eu-west-1").list("m", CHUNK, BLOCK)
    origin = asks(server)
    job = await origin.fetch_job(manifest, 0)
    ended = await refusal_of(job)
    assert ended.code == "AuthorizationHeaderMalformed"
    assert await origin.refused(job, ended)
    assert await read_all(origin, manifest) == {"x": b"1"}
    assert not await origin.refused(await origin.fetch_job(manifest, 0), ended), "it was right"


async def test_a_bucket_in_another_region_is_asked_there(strict, monkeypatch, tmp_path):
    """As on AWS: https, the bucket in the host's name, and a redirect that names the region."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls_context.cache_clear()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    hosts = [f"bucket.s3.{region}.amazonaws.com" for region in ("us-east-1", "eu-west-1")]
    authority.issue_cert(*hosts).configure_cert(tls)
    server = strict({"x": b"1"}, tls)
    server.region, server.redirecting = "eu-west-1", True
    trio.socket.set_custom_hostname_resolver(LoopbackNames(urlsplit(server.url).port))
    origin = S3Origin("s3://bucket/")
    manifest = await origin.list("m", CHUNK, BLOCK)
    assert await read_all(origin, manifest) == {"x": b"1"}
    assert server.seen[0] == ("GET", hosts[0], 301)
    assert {host for _, host, _ in server.seen[1:]} == {hosts[1]}

    other = S3Origin("s3://bucket/")
    job = await other.fetch_job(manifest, 0)
    ended = await refusal_of(job)
    assert await other.refused(job, ended)
    assert await read_all(other, manifest) == {"x": b"1"}
    tls_context.cache_clear()
