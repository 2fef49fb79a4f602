"""Listings and errors of stores: what is accepted, and that nothing else is.

Goal: a manifest is made of exactly the objects that the store named; whatever else comes is one
error that names the origin.
Method: pages as the stores write them, each mutilated in one way, then bytes at random and a model
that writes pages and says itself what they mean.
"""

from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.origins.listing import MAX_ERROR_BYTES, MAX_PAGE_BYTES, Entry, parse_error, parse_listing
from p2p.errors import OriginError

S3 = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>
<Prefix>a/</Prefix><KeyCount>2</KeyCount><MaxKeys>2</MaxKeys><EncodingType>url</EncodingType>
<IsTruncated>true</IsTruncated><NextContinuationToken>1ueG+/%3D=</NextContinuationToken>
<Contents><Key>a/one+two</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>
<ETag>&quot;70ee1738b6b21e2c8a43f3a5ab0eee71&quot;</ETag><Size>14</Size>
<StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>a/%E6%A8%A1%2B%25</Key><ETag>"2"</ETag><Size>0</Size>
<Owner><ID>1</ID></Owner></Contents>
</ListBucketResult>"""
OSS = (
    S3.replace(' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', "")
    .replace("one+two", "one%20two")
    .replace("1ueG+/%3D=", "1ueG%2B%2F%253D%3D")
)
ENTRIES = (
    Entry("a/one two", 14, '"70ee1738b6b21e2c8a43f3a5ab0eee71"'),
    Entry("a/模+%", 0, '"2"'),
)


def parse(text: str, prefix: str = "a/", token_encoded: bool = False):
    return parse_listing(text.encode(), prefix, "s3://bucket/a/", token_encoded=token_encoded)


@pytest.mark.parametrize(("text", "token_encoded"), [(S3, False), (OSS, True)], ids=["s3", "oss"])
def test_a_page_as_each_store_writes_it(text, token_encoded):
    page = parse(text, token_encoded=token_encoded)
    assert page.entries == ENTRIES
    assert page.token == "1ueG+/%3D="


def test_a_page_that_is_not_encoded_is_taken_as_it_stands():
    page = parse(S3.replace("<EncodingType>url</EncodingType>", ""), token_encoded=True)
    assert [entry.key for entry in page.entries] == ["a/one+two", "a/%E6%A8%A1%2B%25"]
    assert page.token == "1ueG+/%3D="


def test_the_last_page_has_no_token():
    last = S3.replace("<IsTruncated>true", "<IsTruncated>false")
    assert parse(last).token is None, "a token beside it means nothing"
    assert parse("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>") == (
        parse_listing(
            b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            "x",
            "s3://bucket/x",
            token_encoded=True,
        )
    )


WRONG = {
    "nothing": ("", "not XML"),
    "text": ("hello", "not XML"),
    "JSON": ('{"a": 1}', "not XML"),
    "cut": (S3[:-3], "not XML"),
    "two roots": (S3.partition("\n")[2] * 2, "not XML"),
    "a portal": ("<html><body>log in</body></html>", "<html>"),
    "an error": ("<Error><Code>AccessDenied</Code></Error>", "<Error>"),
    "entity": (
        '<!DOCTYPE l [<!ENTITY k "a/x">]>' + S3.partition("\n")[2].replace("a/one", "&k;"),
        "not XML (DTDForbidden)",
    ),
    "a bomb": (
        '<!DOCTYPE l [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><ListBucketResult/>',
        "not XML (DTDForbidden)",
    ),
    "a file": (
        '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><l>&x;</l>',
        "not XML (DTDForbidden)",
    ),
    "encoding": (S3.replace("UTF-8", "EBCDIC-X"), "not XML"),
    "truncated unknown": (S3.replace(">true<", ">True<"), "neither true nor false"),
    "no truncated": (S3.replace("<IsTruncated>true</IsTruncated>", ""), "0 IsTruncated"),
    "two truncated": (
        S3.replace("<MaxKeys>2</MaxKeys>", "<IsTruncated>false</IsTruncated>"), "2 IsTruncated",
    ),
    "no token": (
        S3.replace("<NextContinuationToken>1ueG+/%3D=</NextContinuationToken>", ""),
        "IsTruncated without",
    ),
    "empty token": (S3.replace("1ueG+/%3D=", ""), "IsTruncated without"),
    "two tokens": (
        S3.replace("<MaxKeys>2</MaxKeys>", "<NextContinuationToken>x</NextContinuationToken>"),
        "2 NextContinuationToken",
    ),
    "folders": (
        S3.replace("<MaxKeys>2</MaxKeys>", "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>"),
        "folders",
    ),
    "encoding type": (S3.replace(">url<", ">base64<"), "unknown EncodingType"),
    "outside": (S3.replace("a/one", "b/one"), "not below the prefix"),
    "outside, encoded": (S3.replace("a/one", "%62/one"), "not below the prefix"),
    "no key": (S3.replace("<Key>a/one+two</Key>", ""), "0 Key"),
    "empty key": (S3.replace("a/one+two", ""), "not below the prefix"),
    "two keys": (S3.replace("<Size>14</Size>", "<Key>a/x</Key>"), "2 Key"),
    "key with children": (S3.replace("a/one+two", "a/<b>x</b>"), "1 Key in <Contents>"),
    "bad UTF-8": (S3.replace("one+two", "%FF"), "not UTF-8"),
    "half a surrogate": (S3.replace("one+two", "%ED%A0%80"), "not UTF-8"),
    "no size": (S3.replace("<Size>14</Size>", ""), "0 Size"),
    "negative": (S3.replace(">14<", ">-14<"), "not a number of bytes"),
    "plus": (S3.replace(">14<", ">+14<"), "not a number of bytes"),
    "fraction": (S3.replace(">14<", ">14.0<"), "not a number of bytes"),
    "hex": (S3.replace(">14<", ">0x14<"), "not a number of bytes"),
    "underscore": (S3.replace(">14<", ">1_4<"), "not a number of bytes"),
    "space": (S3.replace(">14<", "> 14<"), "not a number of bytes"),
    "other digits": (S3.replace(">14<", ">١٤<"), "not a number of bytes"),
    "empty size": (S3.replace(">14<", "><"), "not a number of bytes"),
    "huge": (S3.replace(">14<", f">{2**63}<"), "not a number of bytes"),
    "endless": (S3.replace(">14<", f">{'9' * 5000}<"), "not a number of bytes"),
    "two ETags": (S3.replace("<Size>0</Size>", "<Size>0</Size><ETag>x</ETag>"), "2 ETag"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_what_is_not_a_page_is_one_error_that_names_the_origin(text, words):
    with pytest.raises(OriginError) as caught:
        parse(text)
    assert str(caught.value).startswith("s3://bucket/a/: not a listing: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.fatal


def test_a_page_beyond_all_measure_is_not_parsed():
    with pytest.raises(OriginError, match="more than"):
        parse_listing(b" " * (MAX_PAGE_BYTES + 1), "", "s3://bucket/", token_encoded=False)


@given(st.one_of(st.binary(), st.text().map(str.encode)), st.text(max_size=2))
def test_garbage_is_an_origin_error_or_nothing(body, prefix):
    with pytest.raises(OriginError):
        parse_listing(body, prefix, "s3://bucket/", token_encoded=True)


NAMES = ["ListBucketResult", "Contents", "Key", "Size", "IsTruncated", "NextContinuationToken",
         "ETag", "EncodingType", "CommonPrefixes", "Other"]  # fmt: skip
TEXTS = ["", "true", "false", "url", "a/x", "a%2Fx", "%FF", "-1", "0", "12", "1e3", "\n "]
TREES = st.recursive(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(TEXTS)),
    lambda inner: st.tuples(st.sampled_from(NAMES), st.lists(inner, max_size=6)),
    max_leaves=30,
)


def write(tree) -> str:
    name, inner = tree
    text = escape(inner) if isinstance(inner, str) else "".join(map(write, inner))
    return f"<{name}>{text}</{name}>"


@given(st.lists(TREES, max_size=8))
def test_a_page_of_known_words_in_any_order_is_right_or_refused(trees):
    text = write(("ListBucketResult", trees))
    try:
        page = parse(text)
    except OriginError:
        return
    truncated = [inner for name, inner in trees if name == "IsTruncated"]
    assert truncated in (["true"], ["false"])
    assert (page.token is not None) == (truncated == ["true"])
    assert page.token != ""
    contents = [inner for name, inner in trees if name == "Contents"]
    assert len(page.entries) == len(contents), "no object is dropped, none invented"
    for entry in page.entries:
        assert entry.key == "a/x"
        assert entry.size in (0, 12)
    assert not any(name == "CommonPrefixes" for name, _ in trees)


KEYS = st.text(st.characters(codec="utf-8"), max_size=20).map("a/".__add__)
SIZES = st.integers(0, 2**63 - 1)


@given(st.lists(st.tuples(KEYS, SIZES), max_size=5), st.sampled_from([quote, quote_plus]))
def test_any_key_comes_out_of_a_page_as_it_went_in(objects, encode):
    parts = [
        f"<Contents><Key>{encode(key)}</Key><Size>{size}</Size><ETag>e</ETag></Contents>"
        for key, size in objects
    ]
    text = (
        "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        f"{''.join(parts)}</ListBucketResult>"
    )
    assert [(entry.key, entry.size) for entry in parse(text).entries] == objects


S3_ERROR = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is
malformed</Message><Region>eu-west-1</Region><RequestId>1</RequestId></Error>"""
OSS_ERROR = b"""<Error><Code>AccessDenied</Code><Message>The bucket you are attempting to access
must be addressed using the specified endpoint.</Message><Endpoint>oss-cn-x.aliyuncs.com</Endpoint>
<HostId>b.oss-cn-y.aliyuncs.com</HostId></Error>"""


def test_an_error_as_each_store_writes_it():
    error = parse_error(S3_ERROR)
    assert (error.code, error.region, error.endpoint) == (
        "AuthorizationHeaderMalformed", "eu-west-1", "",
    )  # fmt: skip
    assert error.message == "The authorization header is malformed"
    error = parse_error(OSS_ERROR)
    assert (error.code, error.region, error.endpoint) == (
        "AccessDenied", "", "oss-cn-x.aliyuncs.com",
    )  # fmt: skip


def test_an_error_that_is_cut_or_long_still_tells_its_code():
    assert parse_error(OSS_ERROR[:-20]).code == "AccessDenied"
    assert parse_error(OSS_ERROR + b" " * MAX_ERROR_BYTES * 4).code == "AccessDenied"
    assert parse_error(b" " * MAX_ERROR_BYTES + OSS_ERROR).code == "", "16 KiB are read, no more"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>503</html>",
        b"\xff\xfe\x00",
        b"<Error/>",
        b"<Error><Code/></Error>",
        b"<" * 9999,
    ],
)
def test_an_error_that_tells_nothing_is_empty(body):
    assert parse_error(body).code == ""


def test_what_an_error_tells_is_fit_for_one_line():
    body = (
        b"<Error><Code>A\n\x1b[31mB</Code><Endpoint>h o/../x</Endpoint><Region>a.b</Region></Error>"
    )
    error = parse_error(body.replace(b"\x1b", b""))
    assert (error.code, error.endpoint, error.region) == ("A31mB", "", "")
    assert parse_error(body).code == "A31mB", "not even XML"


@given(
    st.one_of(st.binary(), st.lists(TREES, max_size=4).map(lambda t: write(("Error", t)).encode()))
)
def test_no_error_body_raises(body):
    error = parse_error(body)
    assert len(error.code) <= 100
    assert len(error.message) <= 300
