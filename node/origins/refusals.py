"""What stores refuse with, and how a refusal is put to people.

Errors name the object's public URL, the status, and the store's code. Stores' own messages are left
out: they quote what was sent.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx

from node.origins.control import delay_hint_s, is_fatal
from node.origins.listing import MAX_ERROR_BYTES, ErrorBody, parse_error
from p2p.errors import OriginError

CREDENTIAL_CODES = frozenset({
    "InvalidAccessKeyId", "SecurityTokenExpired", "InvalidSecurityToken", "ExpiredToken",
    "InvalidToken", "SignatureDoesNotMatch",
})  # fmt: skip
TIME_CODES = frozenset({"RequestTimeTooSkewed", ""})  # a HEAD is refused without a word
PASSING_CODES = frozenset({"RequestTimeout"})  # S3 says it with status 400
WORDS = {
    "InvalidAccessKeyId": "the access key is unknown",
    "SignatureDoesNotMatch": "the access key's secret is wrong",
    "SecurityTokenExpired": "the session token has expired",
    "ExpiredToken": "the session token has expired",
    "InvalidSecurityToken": "the session token is not valid",
    "InvalidToken": "the session token is not valid",
    "RequestTimeTooSkewed": "this host's clock is wrong",
    "NoSuchKey": "there is no such object",
    "NoSuchBucket": "there is no such bucket",
    "SecondLevelDomainForbidden": "this store wants addressing virtual",
}
STATUS_WORDS = {401: "not authorized", 404: "not found", 429: "too many requests", 503: "busy"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the control plane; `body` is cut for errors and empty for HEAD."""

    status: int
    headers: httpx.Headers
    body: bytes

    def error(self) -> ErrorBody:
        """What it complains of; OSS puts that into a header where there is no body."""
        body = self.body
        if not body:
            try:
                body = base64.b64decode(self.headers.get("x-oss-err", "")[: 2 * MAX_ERROR_BYTES])
            except (binascii.Error, ValueError):
                return ErrorBody()
        return parse_error(body)


@dataclass(frozen=True, slots=True, repr=False)
class Refusal:
    """A request that was refused; `headers` are those it was sent with, in lower case."""

    url: str
    headers: Mapping[str, str]
    status: int
    code: str
    date: str
    region: str = ""


def refusal_words(error: ErrorBody, status: int, host: str) -> str:
    """What a code means; nothing where it says no more than the status."""
    if error.endpoint and not host.endswith(error.endpoint):
        return f"the bucket is at endpoint {error.endpoint}"
    return WORDS.get(error.code) or STATUS_WORDS.get(status) or ""


def refusal_error(shown: str, answer: Answer, error: ErrorBody, words: str) -> OriginError:
    """The error to raise for an answer."""
    text = f"{shown}: HTTP {answer.status}" + (f" {error.code}" if error.code else "")
    return OriginError(
        text + (f" ({words})" if words else ""),
        fatal=is_fatal(answer.status) and error.code not in PASSING_CODES,
        retry_after_s=delay_hint_s(answer.headers),
        status=answer.status,
        code=error.code,
        date=answer.headers.get("date", ""),
    )


def lower_names(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their names in lower case."""
    return {name.lower(): value for name, value in headers}
