"""Signatures for requests without a body: OSS V4 and V1, S3 Signature V4.

What a request carries later is left out on purpose: `Range` and `If-Match` belong to none of the
three signatures unless they are named, and are added by the worker, which holds no secret. All
`x-oss-*` and `x-amz-*` headers are signed, so they have to be there when `sign` is called.

The SDKs do the arithmetic; each is imported when its store is opened.
"""

import hashlib
import time
from calendar import timegm
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from node.credentials import Credentials
from p2p.errors import UsageError

_STAMP = "%Y%m%dT%H%M%SZ"
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

SKEW_S = 1.5  # a Date has whole seconds and is late by the way of the answer


class StoreClock:
    """The store's time: ours, and what it is off by."""

    def __init__(self, read: Callable[[], float] = time.time) -> None:
        self._read = read
        self.offset_s = 0.0

    def now(self) -> float:
        """Unix time at the store."""
        return self._read() + self.offset_s

    def learn(self, date: str) -> None:
        """A Date header that has just come."""
        try:
            there = parsedate_to_datetime(date).timestamp() + 0.5
        except (ValueError, OverflowError):
            return
        if abs(there - self.now()) > SKEW_S:
            offset_s = there - self._read()
            self.offset_s = offset_s if abs(offset_s) > SKEW_S else 0.0


class Signer(Protocol):
    """One way to sign."""

    def sign(
        self,
        method: str,
        url: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        credentials: Credentials,
        now: float,
    ) -> dict[str, str]:
        """`headers` and those that sign them; `now` is the store's time, `url` has the query."""


def _oss_sdk() -> tuple[Any, Any]:
    """The SDK's signers and types.

    Raises:
      UsageError: the SDK is not installed.
    """
    try:
        from alibabacloud_oss_v2 import signer, types
    except ImportError as error:
        text = "oss:// needs the package alibabacloud-oss-v2: pip install 'shoal[oss]'"
        raise UsageError(text) from error
    return signer, types


class OssV4:
    """OSS4-HMAC-SHA256, which needs the bucket's region.

    Raises:
      UsageError: the SDK is not installed.
    """

    def __init__(self, region: str) -> None:
        signer, self._types = _oss_sdk()
        self._signer = signer.SignerV4()
        self._region = region

    def __repr__(self) -> str:
        return f"<OssV4 {self._region}>"

    def sign(
        self,
        method: str,
        url: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        credentials: Credentials,
        now: float,
    ) -> dict[str, str]:
        """See `Signer`."""
        context = _oss_context(self._types, method, url, bucket, key, now)
        context.product, context.region = "oss", self._region
        context.request.headers.update(headers)
        context.credentials = self._types.Credentials(
            credentials.access_key_id, credentials.access_key_secret, credentials.token or None
        )
        self._signer.sign(context)
        return dict(context.request.headers.items())


class OssV1:
    """HMAC-SHA1 in OSS's first form, which needs no region.

    The SDK sends a session's token in a header that it does not sign, and OSS wants it signed: the
    token is set here, as an `x-oss-` header like any other, and kept from the SDK.

    Raises:
      UsageError: the SDK is not installed.
    """

    def __init__(self) -> None:
        signer, self._types = _oss_sdk()
        self._signer = signer.SignerV1()

    def __repr__(self) -> str:
        return "<OssV1>"

    def sign(
        self,
        method: str,
        url: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        credentials: Credentials,
        now: float,
    ) -> dict[str, str]:
        """See `Signer`."""
        context = _oss_context(self._types, method, url, bucket, key, now)
        context.request.headers.update(headers)
        if credentials.token:
            context.request.headers["x-oss-security-token"] = credentials.token
        context.credentials = self._types.Credentials(
            credentials.access_key_id, credentials.access_key_secret
        )
        self._signer.sign(context)
        return dict(context.request.headers.items())


def _oss_context(types: Any, method: str, url: str, bucket: str, key: str, now: float) -> Any:
    context = types.SigningContext(
        bucket=bucket,
        key=key,
        request=types.HttpRequest(method, url),
        signing_time=datetime.fromtimestamp(now, UTC),
    )
    context.sub_resource = []
    return context


class S3V4:
    """AWS4-HMAC-SHA256 as S3 wants it: the path as it stands, the payload's hash as a header.

    Raises:
      UsageError: botocore is not installed.
    """

    def __init__(self, region: str) -> None:
        try:
            from botocore import auth, awsrequest, credentials
        except ImportError as error:
            raise UsageError("s3:// needs the package botocore: pip install 'shoal[s3]'") from error
        self._auth, self._request = auth.S3SigV4Auth, awsrequest.AWSRequest
        self._credentials = credentials.ReadOnlyCredentials
        self._region = region

    def __repr__(self) -> str:
        return f"<S3V4 {self._region}>"

    def sign(
        self,
        method: str,
        url: str,
        bucket: str,
        key: str,
        headers: Mapping[str, str],
        credentials: Credentials,
        now: float,
    ) -> dict[str, str]:
        """See `Signer`. The steps of `add_auth`, which cannot be told the time."""
        signed = dict(headers)
        signed["X-Amz-Date"] = datetime.fromtimestamp(now, UTC).strftime(_STAMP)
        signed["X-Amz-Content-SHA256"] = _EMPTY_SHA256
        if credentials.token:
            signed["X-Amz-Security-Token"] = credentials.token
        request = self._request(method=method, url=url, headers=signed)
        request.context["timestamp"] = signed["X-Amz-Date"]
        keys = self._credentials(
            credentials.access_key_id, credentials.access_key_secret, credentials.token or None
        )
        auth = self._auth(keys, "s3", self._region)
        text = auth.string_to_sign(request, auth.canonical_request(request))
        names = auth.signed_headers(auth.headers_to_sign(request))
        signed["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={names}, "
            f"Signature={auth.signature(text, request)}"
        )
        return signed


def signed_at(headers: Mapping[str, str]) -> float | None:
    """When a request was signed, by the clock that it was signed with; names in lower case."""
    stamp = headers.get("x-oss-date") or headers.get("x-amz-date")
    try:
        if stamp:
            return float(timegm(time.strptime(stamp, _STAMP)))
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None


def signed_with(headers: Mapping[str, str], credentials: Credentials) -> bool:
    """Whether a request carries a signature of these credentials; names in lower case."""
    word = headers.get("authorization", "")
    key_id = credentials.access_key_id
    token = headers.get("x-oss-security-token") or headers.get("x-amz-security-token") or ""
    by_key = word.startswith(f"OSS {key_id}:") or f"Credential={key_id}/" in word
    return by_key and token == credentials.token
