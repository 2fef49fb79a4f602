"""Signatures: equal to what the stores' own SDKs make of the same request at the same time.

Goal: a request that we sign is the one that the SDK would send, but for the headers that a worker
adds later, which no signature covers.
Method: the SDKs' clients sign into a transport that keeps the request; the oracle for V1 with a
token is the older SDK's rule, written out by hand, because the newer one gets it wrong.
"""

import base64
import contextlib
import hashlib
import hmac
import sys
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import alibabacloud_oss_v2 as oss
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

from node.credentials import Credentials
from node.origins.endpoints import oss_endpoint, s3_endpoint
from node.origins.signing import S3V4, OssV1, OssV4, StoreClock, signed_at, signed_with
from p2p.errors import UsageError

NOW = datetime(2024, 8, 2, 15, 4, 5, tzinfo=UTC)
PLAIN = Credentials("id-1", "secret-1")
SESSION = Credentials("STS.id-2", "secret-2", "token+/=")
BOTH = pytest.mark.parametrize("credentials", [PLAIN, SESSION], ids=["key", "session"])
KEYS = ["model.bin", "a b/ä+c%41&?#.json", ""]
LISTING = [("list-type", "2"), ("prefix", "a b/ä+"), ("continuation-token", "CgJ+/w==")]


class Recorder(oss.HttpClient):
    """A transport of the SDK that keeps the request and answers nothing."""

    def send(self, request: oss.types.HttpRequest, **options: Any) -> oss.types.HttpResponse:
        """Keep it."""
        self.request = request
        raise oss.exceptions.RequestError(error=OSError("not sent"))

    def open(self) -> None:
        """Nothing is opened."""

    def close(self) -> None:
        """Nothing is closed."""


def sdk_request(kind: str, credentials: Credentials, key: str) -> oss.types.HttpRequest:
    """What the SDK's client sends: a GET of a range of an object, or for no key a listing."""
    recorder = Recorder()
    client = oss.Client(
        oss.config.Config(
            region="cn-x",
            endpoint="https://oss-cn-x.aliyuncs.com",
            signature_version=kind,
            retry_max_attempts=1,
            http_client=recorder,
            credentials_provider=oss.credentials.StaticCredentialsProvider(
                credentials.access_key_id, credentials.access_key_secret, credentials.token or None
            ),
        )
    )
    with contextlib.suppress(oss.exceptions.OperationError):
        if key:
            client.get_object(
                oss.GetObjectRequest(
                    "bucket", key, version_id="a+b", range_header="bytes=0-9",
                    range_behavior="standard", if_match='"etag"',
                )
            )  # fmt: skip
        else:
            client.list_objects_v2(
                oss.ListObjectsV2Request("bucket", prefix="a b/ä+", continuation_token="CgJ+/w==")
            )
    return recorder.request


def our_request(signer: Any, credentials: Credentials, key: str, at: float) -> dict[str, str]:
    """What we send, by lower-case names."""
    query = [("versionId", "a+b")] if key else [("encoding-type", "url"), *LISTING]
    url = oss_endpoint("https://oss-cn-x.aliyuncs.com", "cn-x", "auto").url("bucket", key, query)
    headers = {"x-oss-range-behavior": "standard"} if key else {}
    if not key:  # the SDK describes a listing's empty body, and signs that too
        headers["content-type"] = "application/octet-stream"
        headers["content-md5"] = base64.b64encode(hashlib.md5(b"").digest()).decode()
    signed = signer.sign("GET", url, "bucket", key, headers, credentials, at)
    return {name.lower(): value for name, value in signed.items()}


def moment(request: oss.types.HttpRequest) -> float:
    headers = {name.lower(): value for name, value in request.headers.items()}
    at = signed_at(headers)
    assert at is not None
    return at


@pytest.mark.parametrize("key", KEYS)
@BOTH
def test_v4_signs_as_the_sdks_client_does_and_leaves_range_and_if_match_out(credentials, key):
    theirs = sdk_request("v4", credentials, key)
    ours = our_request(OssV4("cn-x"), credentials, key, moment(theirs))
    assert ours["authorization"] == theirs.headers["Authorization"]
    for name in ("x-oss-date", "date", "x-oss-content-sha256"):
        assert ours[name] == theirs.headers[name]
    assert ours.get("x-oss-security-token", "") == credentials.token
    assert not {"range", "if-match", "host"} & ours.keys()
    if key:
        assert "range" in theirs.headers, "the SDK sends them, and signs the same"


@pytest.mark.parametrize("key", KEYS)
def test_v1_signs_as_the_sdks_client_does(key):
    theirs = sdk_request("v1", PLAIN, key)
    ours = our_request(OssV1(), PLAIN, key, moment(theirs))
    assert ours["authorization"] == theirs.headers["Authorization"]
    assert ours["date"] == theirs.headers["Date"]


def test_v1_signs_a_sessions_token_as_a_header_of_oss():
    ours = our_request(OssV1(), SESSION, "a b/ä+c%41&?#.json", NOW.timestamp())
    text = (
        f"GET\n\n\n{format_datetime(NOW, usegmt=True)}\n"
        "x-oss-range-behavior:standard\n"
        "x-oss-security-token:token+/=\n"
        "/bucket/a b/ä+c%41&?#.json?versionId=a+b"
    )
    mac = hmac.new(b"secret-2", text.encode(), hashlib.sha1).digest()
    assert ours["authorization"] == f"OSS STS.id-2:{base64.b64encode(mac).decode()}"
    assert ours["x-oss-security-token"] == "token+/="
    assert "security-token" not in ours, "where the SDK puts it, unsigned"


@pytest.mark.parametrize("signer", [OssV4("cn-x"), OssV1()], ids=repr)
def test_the_range_behaviour_is_part_of_an_oss_signature(signer):
    url = "https://bucket.oss-cn-x.aliyuncs.com/k"

    def sign(headers: dict[str, str]) -> str:
        now = NOW.timestamp()
        return signer.sign("GET", url, "bucket", "k", headers, PLAIN, now)["Authorization"]

    assert sign({"x-oss-range-behavior": "standard"}) != sign({})
    assert sign({"Range": "bytes=0-1", "If-Match": '"e"'}) == sign({})


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000", "https://s3.us-east-1.amazonaws.com"]
)
@pytest.mark.parametrize("key", KEYS)
@BOTH
def test_s3_signs_as_botocore_does(monkeypatch, credentials, key, endpoint):
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)
    query = [("versionId", "a+b")] if key else LISTING
    url = s3_endpoint(endpoint, None, "auto", "bucket").url("bucket", key, query)
    headers = {"x-amz-checksum-mode": "ENABLED"}
    request = botocore.awsrequest.AWSRequest(method="HEAD", url=url, headers=headers)
    botocore.auth.S3SigV4Auth(
        botocore.credentials.Credentials(
            credentials.access_key_id, credentials.access_key_secret, credentials.token or None
        ),
        "s3",
        "us-east-1",
    ).add_auth(request)
    ours = S3V4("us-east-1").sign("HEAD", url, "bucket", key, headers, credentials, NOW.timestamp())
    assert {name.lower(): value for name, value in ours.items()} == {
        name.lower(): value for name, value in request.headers.items()
    }
    assert "range" not in ours["Authorization"]
    assert "if-match" not in ours["Authorization"]


def test_s3_signs_the_example_of_its_documentation():
    """A known answer, so that botocore's own mistakes would show: the listing of API docs."""
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = S3V4("us-east-1").sign(
        "GET",
        "https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J",
        "examplebucket",
        "",
        {},
        credentials,
        datetime(2013, 5, 24, tzinfo=UTC).timestamp(),
    )
    assert headers["Authorization"].endswith(
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )


@pytest.mark.parametrize("signer", [OssV4("cn-x"), OssV1(), S3V4("us-east-1")], ids=repr)
@BOTH
def test_a_request_tells_when_and_with_what_it_was_signed(signer, credentials):
    signed = signer.sign("GET", "https://h/k", "b", "k", {}, credentials, NOW.timestamp() + 0.7)
    headers = {name.lower(): value for name, value in signed.items()}
    assert signed_at(headers) == NOW.timestamp()
    assert signed_with(headers, credentials)
    for key_id, token in (("id", credentials.token), ("1", credentials.token), ("id-1", "other")):
        assert not signed_with(headers, Credentials(key_id, "secret-1", token))
    for secret in ("secret-1", "secret-2"):
        assert secret not in str(signed)
        assert secret not in repr(signer)


def test_what_is_not_signed_tells_nothing():
    assert signed_at({}) is None
    assert signed_at({"x-oss-date": "soon"}) is None
    assert not signed_with({}, PLAIN)


def test_a_clock_learns_how_far_it_is_off_and_forgets_it_when_it_is_set_right():
    ours = [NOW.timestamp()]
    clock = StoreClock(lambda: ours[0])
    date = format_datetime(NOW, usegmt=True)
    clock.learn(date)
    assert clock.offset_s == 0, "half a second, which a Date cannot tell"
    ours[0] += 3600
    clock.learn(date)
    assert clock.now() == pytest.approx(NOW.timestamp(), abs=1)
    for garbage in ("", "yesterday", "99 Foo 20 99"):
        clock.learn(garbage)
    assert clock.now() == pytest.approx(NOW.timestamp(), abs=1)
    ours[0] -= 3600
    clock.learn(date)
    assert clock.offset_s == 0


@pytest.mark.parametrize("make", [lambda: OssV4("cn-x"), OssV1], ids=["v4", "v1"])
def test_a_missing_oss_sdk_is_named_with_the_way_out(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "alibabacloud_oss_v2", None)
    with pytest.raises(UsageError, match=r"alibabacloud-oss-v2: pip install 'shoal\[oss\]'"):
        make()


def test_a_missing_botocore_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(UsageError, match=r"botocore: pip install 'shoal\[s3\]'"):
        S3V4("us-east-1")
