"""What stores answer in XML: a page of a listing (strictly), an error (tolerantly). Pure.

A listing decides what the model is, so anything that is not exactly a page of ListObjectsV2 below
the prefix that was asked for is an error. An error's body only decides what is said about it.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring

from p2p.errors import OriginError

MAX_ERROR_BYTES = 16 * 1024
MAX_PAGE_BYTES = 16 * 1024 * 1024  # 1,000 keys of 1 KiB, each byte percent-encoded, are 4 MiB
_NUMBER = re.compile(r"[0-9]{1,19}")
_HOST = re.compile(r"[a-z0-9.-]{1,255}")


class Entry(NamedTuple):
    """One object."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Page:
    """Objects in the store's order, and what to ask the next page with (None: this is the last)."""

    entries: tuple[Entry, ...]
    token: str | None


def parse_listing(body: bytes, prefix: str, shown: str, *, token_encoded: bool) -> Page:
    """One page of ListObjectsV2.

    Args:
      prefix: what was asked for; an object elsewhere is an error.
      shown: the origin's public URL, for errors.
      token_encoded: EncodingType is meant for the token too (OSS), not for keys alone (S3).

    Raises:
      OriginError: it is not a page, or not of this prefix.
    """
    try:
        return _page(_tree(body), prefix, token_encoded)
    except _Malformed as error:
        raise OriginError(f"{shown}: not a listing: {error}", fatal=True) from None


class _Malformed(Exception):
    """Why a body is not a page."""


def _tree(body: bytes) -> Element:
    if len(body) > MAX_PAGE_BYTES:
        raise _Malformed(f"more than {MAX_PAGE_BYTES} bytes")
    try:
        root: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, ValueError, LookupError) as error:
        raise _Malformed(f"not XML ({type(error).__name__})") from None
    if _name(root) != "ListBucketResult":
        raise _Malformed(f"<{_name(root)[:60]}>")
    return root


def _page(root: Element, prefix: str, token_encoded: bool) -> Page:
    encoding = _one(root, "EncodingType", default="")
    if encoding not in ("", "url"):
        raise _Malformed("an unknown EncodingType")
    if any(_name(child) == "CommonPrefixes" for child in root):
        raise _Malformed("folders, which were not asked for")
    entries = tuple(
        _entry(child, prefix, encoding == "url") for child in root if _name(child) == "Contents"
    )
    truncated = _one(root, "IsTruncated")
    token = _one(root, "NextContinuationToken", default="")
    if truncated not in ("true", "false"):
        raise _Malformed("IsTruncated is neither true nor false")
    if truncated == "true" and not token:
        raise _Malformed("IsTruncated without NextContinuationToken")
    if encoding == "url" and token_encoded:
        token = unquote(token)
    return Page(entries, token if truncated == "true" else None)


def _entry(element: Element, prefix: str, encoded: bool) -> Entry:
    key = _one(element, "Key")
    if encoded:
        try:
            # stores disagree on a space (+ or %20) and agree on a plus (%2B)
            key = unquote_plus(key, errors="strict")
        except UnicodeDecodeError:
            raise _Malformed("a key is not UTF-8") from None
    if not key or not key.startswith(prefix):
        raise _Malformed(f"the key {key[:200]!r} is not below the prefix")
    size = _one(element, "Size")
    if not _NUMBER.fullmatch(size) or int(size) >= 2**63:
        raise _Malformed(f"the size {size[:40]!r} of {key[:200]!r} is not a number of bytes")
    return Entry(key, int(size), _one(element, "ETag", default=""))


def _one(element: Element, name: str, default: str | None = None) -> str:
    """The text of the only child of this name."""
    found = [child for child in element if _name(child) == name]
    if not found and default is not None:
        return default
    if len(found) != 1 or len(found[0]):
        raise _Malformed(f"{len(found)} {name} in <{_name(element)[:60]}>")
    return found[0].text or ""


def _name(element: Element) -> str:
    """The tag without its namespace: S3 has one, OSS has none, others have their own."""
    return str(element.tag).rpartition("}")[2]


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error's body says; fields that it lacks are empty.

    `endpoint` and `region` are where the bucket is, as stores tell who asked in the wrong place.
    """

    code: str = ""
    message: str = ""
    endpoint: str = ""
    region: str = ""


def parse_error(body: bytes) -> ErrorBody:
    """The body of an error, as much of it as can be read; never raises."""
    body = body[:MAX_ERROR_BYTES]
    fields: dict[str, str] = {}
    try:
        root = fromstring(body, forbid_dtd=True)
        for child in root:
            fields.setdefault(_name(child), child.text or "")
    except (ParseError, ValueError, LookupError):
        text = body.decode("utf-8", "replace")
        for name in ("Code", "Message", "Endpoint", "Region"):
            if match := re.search(f"<{name}>([^<]*)</{name}>", text):
                fields[name] = match[1]
    code = re.sub(r"[^A-Za-z0-9._-]", "", fields.get("Code", ""))[:100]
    message = " ".join(fields.get("Message", "").split())[:300]
    endpoint, region = fields.get("Endpoint", ""), fields.get("Region", "")
    return ErrorBody(
        code,
        message,
        endpoint if _HOST.fullmatch(endpoint) else "",
        region if _HOST.fullmatch(region) and "." not in region else "",
    )
