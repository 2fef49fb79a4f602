"""The OSS server of the tests, judged by the SDK's client and by requests written by hand."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import alibabacloud_oss_v2 as oss
import fastcrc
import pytest
from alibabacloud_oss_v2.credentials import AnonymousCredentialsProvider, StaticCredentialsProvider
from alibabacloud_oss_v2.transport import RequestsHttpClient
from defusedxml import ElementTree
from requests.adapters import HTTPAdapter
from support.oss import OssServer
from support.oss_client import send, sign

ID, SECRET = "test-id", "test-secret"
KEYS = {
    "a/b/deep.bin": bytes(range(256)) * 16,
    "a/b.txt": b"one",
    "a b+c%41&=?#.json": b"odd",
    "täxt/模型.safetensors": b"unicode",
    "empty": b"",
    "z": b"123456789",
}
ORDER = sorted(KEYS, key=str.encode)
BOTH = pytest.mark.parametrize("kind", ["v1", "v4"])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., OssServer]]:
    """Serve `KEYS`; a server that had errors fails the test at its end."""
    started: list[OssServer] = []

    def start(**options: object) -> OssServer:
        for key, data in KEYS.items():
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(data)
        started.append(OssServer(tmp_path, credentials={ID: SECRET}, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


class ToLoopback(HTTPAdapter):
    """Sends a request for any host to one address, which is what DNS does for the real thing."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def send(self, request, **options):
        """Keep the name in Host, replace it in the URL."""
        host = urlsplit(request.url).netloc
        request.headers["Host"] = host
        request.url = request.url.replace(host, self.address, 1)
        return super().send(request, **options)


@pytest.fixture
def connect() -> Iterator[Callable[..., oss.Client]]:
    """Make SDK clients that do not retry; the same options as `Config`, and `provider`."""
    transports = []

    def start(server: OssServer, kind: str = "v4", provider=None, **options) -> oss.Client:
        transport = RequestsHttpClient()
        transport.open()
        transport.session.trust_env = False  # a proxy of this machine is not for loopback
        transports.append(transport)
        config = oss.config.Config(
            **{"endpoint": server.endpoint, "region": server.region, **options},
            credentials_provider=provider or StaticCredentialsProvider(ID, SECRET),
            signature_version=kind,
            http_client=transport,
            retry_max_attempts=1,
        )
        if "use_cname" not in options and "endpoint" in options:
            address = urlsplit(server.endpoint).netloc
            transport.session.mount("http://", ToLoopback(address))
        return oss.Client(config)

    yield start
    for transport in transports:
        transport.close()


def get(client: oss.Client, key: str = "z", **options) -> bytes:
    """The body of an object, by the SDK."""
    with client.get_object(oss.GetObjectRequest("models", key, **options)).body as body:
        return body.read()


def refusal(ask: Callable[[], object]) -> str:
    """Status and code of the error that an SDK call meets."""
    with pytest.raises(oss.exceptions.OperationError) as caught:
        ask()
    error = caught.value.unwrap()
    assert isinstance(error, oss.exceptions.ServiceError), error
    return f"{error.status_code} {error.code}"


@BOTH
def test_the_sdk_lists_and_reads_every_key(serve, connect, kind):
    server = serve(page_size=2, signatures=(kind,))
    client = connect(server, kind)
    pages = list(client.list_objects_v2_paginator().iter_page(oss.ListObjectsV2Request("models")))
    entries = [entry for page in pages for entry in page.contents]
    assert [entry.key for entry in entries] == ORDER
    assert [page.key_count for page in pages] == [2, 2, 2]
    assert [page.is_truncated for page in pages] == [True, True, False]
    for entry in entries:
        data = KEYS[entry.key]
        head = client.head_object(oss.HeadObjectRequest("models", entry.key))
        assert (entry.size, head.content_length) == (len(data), len(data))
        assert head.etag == entry.etag
        assert head.hash_crc64 == str(fastcrc.crc64.xz(data))
        assert get(client, entry.key) == data
    assert {request.signature for request in server.requests} == {kind}
    assert {request.status for request in server.requests} == {200}


@pytest.mark.parametrize("limit", range(1, 8))
def test_groups_and_prefixes_are_the_same_on_pages_of_any_length(serve, connect, limit):
    client = connect(serve(extra={"a/b/": b"", "../up": b"!"}))

    def entries(**options) -> list[str]:
        pages = client.list_objects_v2_paginator(limit=limit)
        found = []
        for page in pages.iter_page(oss.ListObjectsV2Request("models", **options)):
            page_of = [e.key for e in page.contents or []]
            page_of += [e.prefix for e in page.common_prefixes or []]
            assert page.key_count == len(page_of) <= limit
            found += page_of
        return sorted(found)

    odd = "a b+c%41&=?#.json"
    assert entries(delimiter="/") == ["../", odd, "a/", "empty", "täxt/", "z"]
    assert entries(prefix="a/", delimiter="/") == ["a/b.txt", "a/b/"]
    assert entries(prefix="a/b/") == ["a/b/", "a/b/deep.bin"]
    assert entries(prefix="täxt/模") == ["täxt/模型.safetensors"]
    assert entries(start_after="a/b/deep.bin") == ["empty", "täxt/模型.safetensors", "z"]


def test_a_page_holds_100_keys_unless_asked_and_never_more_than_1000(serve, connect):
    client = connect(serve(extra={f"n{i:04}": b"" for i in range(1001)}))

    def count(**options) -> int:
        return client.list_objects_v2(oss.ListObjectsV2Request("models", **options)).key_count

    assert count() == 100
    assert count(max_keys=1000, prefix="n") == 1000
    assert refusal(lambda: count(max_keys=1001)) == "400 InvalidArgument"
    for token in ("n0003", "bjAwMDM="):
        assert refusal(lambda t=token: count(continuation_token=t)) == "400 InvalidArgument"


def test_keys_are_plain_xml_unless_url_encoding_is_asked_for(serve):
    server = serve(extra={"d/<&>": b""})

    def listing(query: str) -> bytes:
        return send(server, f"/models/?{query}", **sign(server, None, query=query)).body

    plain = listing("list-type=2&prefix=d%2F")
    assert b"<Key>d/&lt;&amp;&gt;</Key>" in plain
    encoded = listing("encoding-type=url&list-type=2&prefix=d%2F")
    assert b"<Key>d%2F%3C%26%3E</Key>" in encoded
    assert b"<Prefix>d%2F</Prefix>" in encoded
    # what the SDK decodes and a client by hand may forget: the token too
    token = ElementTree.fromstring(listing("encoding-type=url&list-type=2&max-keys=1")).findtext(
        "NextContinuationToken"
    )
    assert "%" in token


def test_what_this_server_cannot_answer_it_refuses(serve):
    server = serve()
    for key, query, code in (
        (None, "list-type=2&encoding-type=xml", "400 InvalidArgument"),
        (None, "list-type=2&max-keys=0", "400 InvalidArgument"),
        (None, "prefix=a", "501 NotImplemented"),
        (None, "list-type=2&versions", "501 NotImplemented"),
        ("z", "acl", "501 NotImplemented"),
    ):
        signed = sign(server, key, query=query)
        assert send(server, f"/models/{key or ''}?{query}", **signed).code() == code, query
    signed = sign(server, "z")
    signed["Authorization"] = signed["Authorization"].replace("/oss/", "/oss-cloudbox/")
    assert send(server, "/models/z", **signed).code() == "400 InvalidArgument"
    signed["Authorization"] = "AWS4-HMAC-SHA256 Credential=test-id"
    assert send(server, "/models/z", **signed).code() == "400 InvalidArgument"


@BOTH
def test_a_wrong_secret_and_an_unknown_id_are_told_apart(serve, connect, kind):
    server = serve()
    wrong = connect(server, kind, StaticCredentialsProvider(ID, "other"))
    assert refusal(lambda: get(wrong)) == "403 SignatureDoesNotMatch"
    unknown = connect(server, kind, StaticCredentialsProvider("other", SECRET))
    assert refusal(lambda: get(unknown)) == "403 InvalidAccessKeyId"
    assert [request.status for request in server.requests] == [403, 403]
    assert server.body_bytes == 0


def test_region_and_version_of_the_signature_must_be_allowed(serve, connect):
    server = serve(signatures=("v4",))
    assert refusal(lambda: get(connect(server, "v1"))) == "400 InvalidArgument"
    assert refusal(lambda: get(connect(server, region="cn-other"))) == "400 InvalidArgument"
    assert get(connect(server, "v4")) == b"123456789"


@BOTH
@pytest.mark.parametrize("ahead", [-1, 1])
def test_a_clock_may_differ_by_15_minutes(serve, connect, kind, ahead):
    server = serve(clock_offset_s=ahead * 14 * 60)
    client = connect(server, kind)
    assert get(client) == b"123456789"
    server.clock_offset_s = ahead * 16 * 60
    assert refusal(lambda: get(client)) == "403 RequestTimeTooSkewed"
    date = send(server, "/models/z").headers["date"]
    shown = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    assert abs(shown.timestamp() - time.time() - server.clock_offset_s) < 60


@BOTH
def test_what_is_signed_may_not_change_and_what_is_not_may(serve, kind):
    server = serve()
    headers = sign(server, "z", kind, also=("if-match",), if_match="*")
    assert send(server, "/models/z", **headers).status == 200
    assert send(server, "/models/z", **headers, range="bytes=0-0").status == 206
    added = send(server, "/models/z", **headers, x_oss_range_behavior="standard")
    mismatch = "403 SignatureDoesNotMatch"
    assert added.code() == mismatch
    assert send(server, "/models/empty", **headers).code() == mismatch
    assert send(server, "/models/z", "HEAD", **headers).status == 403
    assert send(server, "/models/z?versionId=1", **headers).code() == mismatch
    earlier = sign(server, "z", kind, at=datetime.now(UTC) - timedelta(minutes=5))
    moved = {**headers, "Authorization": earlier["Authorization"]}
    assert send(server, "/models/z", **moved).code() == mismatch
    if kind == "v4":
        assert send(server, "/models/z", **{**headers, "if_match": '"x"'}).code() == mismatch
    # a header that only the signer saw
    undated = "x_oss_date" if kind == "v4" else "Date"
    codes = {undated: "403 AccessDenied", "x_oss_content_sha256": "400 InvalidArgument"}
    for name, code in codes.items():
        if name in headers:
            hidden = {n: text for n, text in headers.items() if n != name}
            assert send(server, "/models/z", **hidden).code() == code


def test_sts_in_v4_by_the_sdk(serve, connect):
    server = serve()
    key_id, secret, token, expiration = server.issue_token(60)
    ends = datetime.fromisoformat(expiration).timestamp()
    assert 55 < ends - time.time() <= 60
    client = connect(server, provider=StaticCredentialsProvider(key_id, secret, token))
    assert get(client) == b"123456789"
    assert server.requests[-1].headers["x-oss-security-token"] == token
    bare = connect(server, provider=StaticCredentialsProvider(key_id, secret))
    assert refusal(lambda: get(bare)) == "403 InvalidAccessKeyId"
    other = connect(server, provider=StaticCredentialsProvider(key_id, secret, token[::-1]))
    assert refusal(lambda: get(other)) == "403 InvalidSecurityToken"
    static = connect(server, provider=StaticCredentialsProvider(ID, SECRET, token))
    assert refusal(lambda: get(static)) == "403 InvalidAccessKeyId"
    server.clock_offset_s = 61
    assert refusal(lambda: get(client)) == "403 SecurityTokenExpired"


def test_sts_in_v1_travels_signed_as_an_oss_header(serve, connect):
    server = serve()
    key_id, secret, token, _ = server.issue_token(60)
    headers = sign(server, "z", "v1", keys=(key_id, secret), x_oss_security_token=token)
    assert send(server, "/models/z", **headers).body == b"123456789"
    assert server.requests[-1].signature == "v1"
    unsigned = sign(server, "z", "v1", keys=(key_id, secret))
    late = send(server, "/models/z", **unsigned, x_oss_security_token=token)
    assert late.code() == "403 SignatureDoesNotMatch"
    # the SDK puts it into a header of another name, which it does not sign
    client = connect(server, "v1", StaticCredentialsProvider(key_id, secret, token))
    assert refusal(lambda: get(client)) == "403 InvalidAccessKeyId"
    server.clock_offset_s = 61
    assert send(server, "/models/z", **headers).code() == "403 SecurityTokenExpired"


def test_an_anonymous_client_reads_but_never_lists(serve, connect):
    server = serve(anonymous_read=True)
    client = connect(server, provider=AnonymousCredentialsProvider())
    assert get(client) == b"123456789"
    assert server.requests[-1].signature == "anonymous"
    request = oss.ListObjectsV2Request("models")
    assert refusal(lambda: client.list_objects_v2(request)) == "403 AccessDenied"
    closed = connect(serve(), provider=AnonymousCredentialsProvider())
    assert refusal(lambda: get(closed)) == "403 AccessDenied"


def test_versions_and_preconditions(serve, connect):
    server = serve(versioning=True)
    client = connect(server)
    old = client.head_object(oss.HeadObjectRequest("models", "a/b.txt"))
    new = server.replace("a/b.txt", b"two!")
    head = client.head_object(oss.HeadObjectRequest("models", "a/b.txt"))
    assert (head.version_id, head.etag) == (new.id, new.etag)
    assert old.etag != new.etag
    assert get(client, "a/b.txt") == b"two!"
    assert get(client, "a/b.txt", version_id=old.version_id) == b"one"
    assert get(client, "a/b.txt", if_match=new.etag) == b"two!"
    failed = "412 PreconditionFailed"
    assert refusal(lambda: get(client, "a/b.txt", if_match=old.etag)) == failed
    assert refusal(lambda: get(client, "a/b.txt", version_id="other")) == "404 NoSuchVersion"
    assert refusal(lambda: get(client, "a/no.txt")) == "404 NoSuchKey"


def test_keys_that_no_file_can_have(serve):
    server = serve(extra={"../up": b"old", "a//b.txt": b"other"})

    def read(key: str) -> bytes:
        return send(server, f"/models/{key}", **sign(server, key)).body

    assert read("../up") == b"old"
    assert read("a//b.txt") == b"other"
    server.replace("../up", b"new")
    assert read("../up") == b"new"
    escape = send(server, "/models/a/../z", **sign(server, "a/../z"))
    assert escape.code() == "404 NoSuchKey"


def test_virtual_host_style_and_only_that(serve, connect):
    server = serve(virtual_only=True, extra={"/up": b"slash"})
    client = connect(server, endpoint="http://oss-cn-test.example")
    assert get(client, "/up") == b"slash"
    assert get(client, "täxt/模型.safetensors") == b"unicode"
    page = client.list_objects_v2(oss.ListObjectsV2Request("models"))
    assert [entry.key for entry in page.contents] == ["/up", *ORDER]
    assert {r.headers["host"] for r in server.requests} == {"models.oss-cn-test.example"}
    assert refusal(lambda: get(connect(server))) == "403 SecondLevelDomainForbidden"
    elsewhere = oss.GetObjectRequest("others", "z")
    assert refusal(lambda: connect(serve()).get_object(elsewhere)) == "404 NoSuchBucket"


def test_the_sdk_reads_a_range(serve, connect):
    client = connect(serve())
    assert get(client, "a/b/deep.bin", range_header="bytes=250-260") == bytes(
        [*range(250, 256), *range(5)]
    )


def test_faults_of_listings_and_heads_have_a_hook_of_their_own(serve, connect):
    server = serve(control_fault=lambda method, key: "500" if key is None else "429")
    client = connect(server)
    assert refusal(lambda: client.list_objects_v2(oss.ListObjectsV2Request("models"))) == (
        "500 InternalError"
    )
    assert send(server, "/models/z", **sign(server, "z")).status == 200
    # the SDK finds the code in a body only, and HEAD has none
    request = oss.HeadObjectRequest("models", "z")
    assert refusal(lambda: client.head_object(request)) == "429 BadErrorResponse"
