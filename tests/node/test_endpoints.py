"""Endpoints: what a user writes, and the URL that a store is asked at.

Goal: any spelling of an endpoint that other clients of the store take means the same here, and a
key survives the way into a URL whatever is in it.
Method: tables, and for OSS the SDK's own client as the judge of each URL.
"""

from typing import Any
from urllib.parse import unquote, urlsplit

import alibabacloud_oss_v2 as oss
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.origins.endpoints import (
    Endpoint,
    is_region,
    oss_endpoint,
    parse_location,
    s3_endpoint,
)
from p2p.errors import UsageError

OSS = {
    "oss-cn-hangzhou.aliyuncs.com": ("https://b.oss-cn-hangzhou.aliyuncs.com/k", "cn-hangzhou"),
    "https://oss-cn-hangzhou.aliyuncs.com/": (
        "https://b.oss-cn-hangzhou.aliyuncs.com/k", "cn-hangzhou",
    ),
    "http://oss-cn-hangzhou.aliyuncs.com": (
        "http://b.oss-cn-hangzhou.aliyuncs.com/k", "cn-hangzhou",
    ),
    "oss-cn-hangzhou-internal.aliyuncs.com": (
        "http://b.oss-cn-hangzhou-internal.aliyuncs.com/k", "cn-hangzhou",
    ),
    "https://oss-cn-hangzhou-internal.aliyuncs.com": (
        "https://b.oss-cn-hangzhou-internal.aliyuncs.com/k", "cn-hangzhou",
    ),
    "cn-hangzhou.oss.aliyuncs.com": ("https://b.cn-hangzhou.oss.aliyuncs.com/k", "cn-hangzhou"),
    "oss-us-west-1.aliyuncs.com": ("https://b.oss-us-west-1.aliyuncs.com/k", "us-west-1"),
    "vpc100-oss-cn-beijing.aliyuncs.com": (
        "https://b.vpc100-oss-cn-beijing.aliyuncs.com/k", "cn-beijing",
    ),
    "oss-accelerate.aliyuncs.com": ("https://b.oss-accelerate.aliyuncs.com/k", ""),
    "oss-accelerate-overseas.aliyuncs.com": (
        "https://b.oss-accelerate-overseas.aliyuncs.com/k", "",
    ),
    "OSS-CN-Hangzhou.aliyuncs.com:443": ("https://b.oss-cn-hangzhou.aliyuncs.com/k", "cn-hangzhou"),
    "http://oss-cn-x.aliyuncs.com:80": ("http://b.oss-cn-x.aliyuncs.com/k", "cn-x"),
    "http://oss-cn-x.aliyuncs.com:443": ("http://b.oss-cn-x.aliyuncs.com:443/k", "cn-x"),
    "oss.example.com": ("https://b.oss.example.com/k", ""),
    "oss-cn-x.aliyuncs.com.example.com": ("https://b.oss-cn-x.aliyuncs.com.example.com/k", ""),
    "10.0.0.7:8080": ("http://10.0.0.7:8080/b/k", ""),
    "https://10.0.0.7": ("https://10.0.0.7/b/k", ""),
    "[fd00::1]:8080": ("http://[fd00::1]:8080/b/k", ""),
    "localhost:9000": ("http://localhost:9000/b/k", ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), OSS.items(), ids=OSS)
def test_an_endpoint_of_oss(text, wanted):
    endpoint = oss_endpoint(text, None, "auto")
    assert (endpoint.url("b", "k"), endpoint.region) == wanted


def test_a_region_alone_is_enough_for_oss_and_wins_over_the_endpoints_own():
    for region in ("cn-beijing", "oss-cn-beijing"):
        endpoint = oss_endpoint(None, region, "auto")
        assert endpoint.url("b", "k") == "https://b.oss-cn-beijing.aliyuncs.com/k"
        assert endpoint.region == "cn-beijing"
    assert oss_endpoint("oss-accelerate.aliyuncs.com", "cn-x", "auto").region == "cn-x"
    assert oss_endpoint("oss-cn-a.aliyuncs.com", "cn-b", "auto").region == "cn-b"


def test_neither_endpoint_nor_region_is_a_mistake_that_names_both():
    with pytest.raises(UsageError, match="OSS_ENDPOINT or OSS_REGION"):
        oss_endpoint(None, None, "auto")
    with pytest.raises(UsageError, match="OSS_ENDPOINT or OSS_REGION"):
        oss_endpoint("", "", "auto")


S3 = {
    (None, None, "b-1"): ("https://b-1.s3.us-east-1.amazonaws.com/k", "us-east-1"),
    (None, "eu-west-3", "b-1"): ("https://b-1.s3.eu-west-3.amazonaws.com/k", "eu-west-3"),
    (None, "cn-north-1", "b-1"): ("https://b-1.s3.cn-north-1.amazonaws.com.cn/k", "cn-north-1"),
    (None, None, "b.1"): ("https://s3.us-east-1.amazonaws.com/b.1/k", "us-east-1"),
    (None, None, "Bucket"): ("https://s3.us-east-1.amazonaws.com/Bucket/k", "us-east-1"),
    (None, None, "b_1"): ("https://s3.us-east-1.amazonaws.com/b_1/k", "us-east-1"),
    ("s3.eu-west-1.amazonaws.com", None, "b-1"): (
        "https://b-1.s3.eu-west-1.amazonaws.com/k", "eu-west-1",
    ),
    ("s3.dualstack.eu-west-1.amazonaws.com", None, "b-1"): (
        "https://b-1.s3.dualstack.eu-west-1.amazonaws.com/k", "eu-west-1",
    ),
    ("s3-fips.us-gov-west-1.amazonaws.com", None, "b-1"): (
        "https://b-1.s3-fips.us-gov-west-1.amazonaws.com/k", "us-gov-west-1",
    ),
    ("s3-eu-west-1.amazonaws.com", None, "b-1"): (
        "https://b-1.s3-eu-west-1.amazonaws.com/k", "eu-west-1",
    ),
    ("s3.cn-north-1.amazonaws.com.cn", None, "b-1"): (
        "https://b-1.s3.cn-north-1.amazonaws.com.cn/k", "cn-north-1",
    ),
    ("s3.amazonaws.com", None, "b-1"): ("https://b-1.s3.amazonaws.com/k", "us-east-1"),
    ("http://127.0.0.1:9000", None, "b-1"): ("http://127.0.0.1:9000/b-1/k", "us-east-1"),
    ("localhost:9000", None, "b-1"): ("http://localhost:9000/b-1/k", "us-east-1"),
    ("https://minio.example.com", "here", "b-1"): ("https://b-1.minio.example.com/k", "here"),
}  # fmt: skip


@pytest.mark.parametrize(("given_", "wanted"), S3.items(), ids=[str(key) for key in S3])
def test_an_endpoint_of_s3(given_, wanted):
    text, region, bucket = given_
    endpoint = s3_endpoint(text, region, "auto", bucket)
    assert (endpoint.url(bucket, "k"), endpoint.region) == wanted


def test_addressing_can_be_chosen():
    assert oss_endpoint("oss.example.com", None, "path").url("b", "k") == (
        "https://oss.example.com/b/k"
    )
    assert s3_endpoint(None, None, "virtual", "b.1").url("b.1", "k") == (
        "https://b.1.s3.us-east-1.amazonaws.com/k"
    )
    assert oss_endpoint("localhost", None, "virtual").url("b", "k") == "http://b.localhost/k"
    with pytest.raises(UsageError, match=r"needs a host name, and the endpoint is 10\.0\.0\.7"):
        oss_endpoint("10.0.0.7", None, "virtual")
    with pytest.raises(UsageError, match="'both' is not one of auto, virtual, path"):
        s3_endpoint(None, None, "both", "b-1")


@pytest.mark.parametrize(
    "text",
    [
        "ftp://oss.example.com",
        "https://",
        "https://host/path",
        "https://host?q=1",
        "https://host#f",
        "https://user:s3cr3t@host",
        "https://s3cr3t@host",
        "host:port",
        "host:99999",
        "[fd00::1",
        "ho st",
        "host\r\nX-Evil: 1",
        "-host-",
    ],
)
def test_what_is_no_endpoint_is_said_without_quoting_a_secret(text):
    with pytest.raises(UsageError, match=r"not \[http://\]HOST\[:PORT\]") as caught:
        oss_endpoint(text, "cn-x", "auto")
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("region", ["cn/x", "cn x", "a.b", "-x", "x" * 64, "CN", "x\n"])
def test_what_is_no_region_is_said(region):
    assert not is_region(region)
    with pytest.raises(UsageError, match="is not one"):
        oss_endpoint(None, region, "auto")
    with pytest.raises(UsageError, match="is not one"):
        s3_endpoint(None, region, "auto", "b-1")


LOCATIONS = {
    "oss://bucket": ("", True),
    "oss://bucket/": ("", True),
    "oss://bucket/a/b/": ("a/b/", True),
    "oss://bucket/a/b": ("a/b", False),
    "oss://bucket//a/": ("/a/", True),
    "oss://bucket/a b/ä+c/": ("a b/ä+c/", True),
    "oss://bucket/a%20b/%C3%A4+c/": ("a b/ä+c/", True),
    "oss://bucket/100%25%3F%23": ("100%?#", False),
    "oss://bucket/100% sure": ("100% sure", False),
}


@pytest.mark.parametrize(("url", "wanted"), LOCATIONS.items(), ids=LOCATIONS)
def test_a_location(url, wanted):
    place = parse_location(url)
    assert (place.bucket, place.key, place.is_folder) == ("bucket", *wanted)


def test_a_location_joins_paths_only_to_folders():
    assert parse_location("oss://bucket/a/").key_of("b/c") == "a/b/c"
    assert parse_location("oss://bucket").key_of("b/c") == "b/c"
    assert parse_location("oss://bucket/a/b.bin").key_of("b.bin") == "a/b.bin"
    assert parse_location("s3://bucket/").shown("a b/ä?") == "s3://bucket/a%20b/%C3%A4%3F"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("oss://key:s3cr3t@bucket/", "credentials do not belong into the URL"),
        ("oss://ab/", "no bucket"),
        ("oss:///x/", "no bucket"),
        ("oss://Bucket/", "no bucket"),
        ("oss://buck.et/", "no bucket"),
        ("oss://bucket:80/", "no bucket"),
        ("s3://buck..et/", "no bucket"),
        ("s3://buck/../et/", "no . or .. in a key"),
        ("oss://bucket/a/./b", "no . or .. in a key"),
        ("oss://bucket/%2E%2E/b", "no . or .. in a key"),
        ("oss://bucket/a?token=s3cr3t", "has a query or a fragment"),
        ("oss://bucket/a#s3cr3t", "has a query or a fragment"),
        ("oss://bucket/%FF", "not UTF-8"),
    ],
)
def test_what_is_no_location_is_said_without_quoting_a_secret(url, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_location(url)
    assert "s3cr3t" not in str(caught.value)


ODD_KEYS = [
    "a b",
    "a+b",
    "100%",
    "a?b",
    "a#b",
    "a&b=c",
    "täxt/模型 1.bin",
    "~-_.!*'()",
    "a//b",
    ";:@,",
]
STYLES = [Endpoint("https", "h.example.com", "", False), Endpoint("http", "[::1]:9", "", True)]


@pytest.mark.parametrize("endpoint", STYLES)
@given(key=st.one_of(st.sampled_from(ODD_KEYS), st.text(st.characters(codec="utf-8"), min_size=1)))
def test_a_key_comes_out_of_its_url_as_it_went_in(endpoint, key):
    url = endpoint.url("bucket", key, [("versionId", key)])
    parts = urlsplit(url)
    assert url.isascii()
    head = "/bucket/" if endpoint.path_style else "/"
    assert parts.path.startswith(head)
    assert unquote(parts.path.removeprefix(head), errors="strict") == key
    assert "+" not in parts.query, "a space for some servers, a plus for others"
    assert unquote(parts.query) == f"versionId={key}"
    assert not parts.fragment


@given(key=st.one_of(st.sampled_from(ODD_KEYS), st.text(st.characters(codec="utf-8"), min_size=1)))
def test_httpx_sends_the_url_that_was_signed(key):
    """The worker sends it as it is; httpx has an encoding of its own, which must not differ."""
    if any(part in (".", "..") for part in key.split("/")):
        return  # refused before: `parse_location`, `check_path`
    url = STYLES[0].url("bucket", key, [("versionId", key)])
    assert httpx.URL(url).raw_path.decode() == url.removeprefix("https://bucket.h.example.com")


class Recorder(oss.HttpClient):
    """A transport of the SDK that keeps the request and answers nothing."""

    url = ""

    def send(self, request: oss.types.HttpRequest, **options: Any) -> oss.types.HttpResponse:
        """Keep it."""
        self.url = request.url
        raise oss.exceptions.RequestError(error=OSError("not sent"))

    def open(self) -> None:
        """Nothing is opened."""

    def close(self) -> None:
        """Nothing is closed."""


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize(
    "endpoint",
    [
        "https://oss-cn-x.aliyuncs.com",
        "http://oss-cn-x-internal.aliyuncs.com",
        "http://10.0.0.7:81",
    ],
)
def test_the_sdks_client_would_ask_at_the_same_url(endpoint, key):
    recorder = Recorder()
    client = oss.Client(
        oss.config.Config(
            region="cn-x",
            endpoint=endpoint,
            retry_max_attempts=1,
            http_client=recorder,
            credentials_provider=oss.credentials.AnonymousCredentialsProvider(),
        )
    )
    with pytest.raises(oss.exceptions.OperationError):
        client.head_object(oss.HeadObjectRequest("bucket", key, version_id="a+b/c="))
    ours = oss_endpoint(endpoint, "cn-x", "auto")
    assert ours.url("bucket", key, [("versionId", "a+b/c=")]) == recorder.url
