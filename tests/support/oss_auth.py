"""What a request to the OSS server of the tests asks for, and whether its sender may ask.

No signature is computed by rules of our own. The request is rebuilt as it was received, the SDK
signs it with the same date, and the two Authorization headers must be equal. What the SDK's signer
puts into a request by itself (the dates, the payload's hash, the token) is demanded first: else a
header that was signed and never sent would pass.

The order is the date, then the key and its token, then the signature. Codes and EC numbers are
those that OSS documents; "0000-00000000" stands where no number is known.
"""

import hmac
import ipaddress
import re
import secrets
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from alibabacloud_oss_v2.signer import SignerV1, SignerV4
from alibabacloud_oss_v2.types import Credentials, HttpRequest, Signer, SigningContext

MAX_SKEW_S = 15 * 60
ISO_BASIC = "%Y%m%dT%H%M%SZ"

V4 = re.compile(
    r"OSS4-HMAC-SHA256 Credential=(?P<id>[^/,]+)/\d{8}/(?P<region>[^/,]*)"
    r"/(?P<product>[^/,]*)/aliyun_v4_request"
    r"(?:,AdditionalHeaders=(?P<names>[^,]+))?,Signature=[0-9a-f]{64}"
)
V1 = re.compile(r"OSS (?P<id>[^:]+):[A-Za-z0-9+/]{27}=")


class OssError(Exception):
    """An answer other than the one asked for."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        ec: str = "0000-00000000",
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.ec = status, code, message, ec
        self.headers, self.details = dict(headers or {}), dict(details or {})

    def document(self, request_id: str, host: str) -> bytes:
        """The XML body that OSS sends with an error."""
        fields = {
            "Code": self.code,
            "Message": self.message,
            "RequestId": request_id,
            "HostId": host,
            **self.details,
            "EC": self.ec,
        }
        body = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields.items())
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{body}</Error>\n'.encode()


def invalid(message: str, ec: str = "0000-00000000") -> OssError:
    """A request that OSS cannot make sense of."""
    return OssError(400, "InvalidArgument", message, ec)


@dataclass(frozen=True)
class Received:
    """A request taken apart; `key` is None when it asks for the bucket itself."""

    method: str
    bucket: str
    key: str | None
    query: Mapping[str, str]
    virtual: bool
    headers: Mapping[str, str] = field(repr=False)


def parse_request(method: str, target: str, headers: Mapping[str, str], bucket: str) -> Received:
    """Take apart what came in; the host tells `bucket.something` from `something/bucket`."""
    path, _, query = target.partition("?")
    try:
        path = unquote(path, errors="strict")
        pairs = _parse_query(query)
    except UnicodeError:
        raise invalid("the target is not percent-encoded UTF-8") from None
    host = headers.get("host", "").rsplit(":", 1)[0]
    rest = path.removeprefix("/")
    virtual = not _is_address(host) and host.startswith(bucket + ".")
    name = bucket
    if not virtual:
        name, _, rest = rest.partition("/")
    return Received(method, name, rest or None, pairs, virtual, headers)


def _parse_query(query: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        if "+" in pair:
            # a space for some servers, a plus for others: only %20 and %2B are safe to send
            raise invalid(f"a bare plus in the query: {pair}")
        name, _, value = pair.partition("=")
        name = unquote(name, errors="strict")
        if name in pairs:
            raise invalid(f"twice in the query: {name}")
        pairs[name] = unquote(value, errors="strict")
    return pairs


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def signature_kind(headers: Mapping[str, str]) -> str:
    """How a request says that it is signed: v4, v1, anonymous, or unknown."""
    authorization = headers.get("authorization")
    if authorization is None:
        return "anonymous"
    word = authorization.split(" ", 1)[0]
    return {"OSS4-HMAC-SHA256": "v4", "OSS": "v1"}.get(word, "unknown")


class TemporaryCredentials(NamedTuple):
    """What STS hands out; `expiration` is written as STS and credential files write it."""

    access_key_id: str
    access_key_secret: str
    security_token: str
    expiration: str


class Authority:
    """The keys and tokens that exist, and the check of a request against them."""

    def __init__(
        self,
        region: str,
        keys: Mapping[str, str],
        signatures: Collection[str],
        anonymous_read: bool,
    ) -> None:
        assert set(signatures) <= {"v1", "v4"}, signatures
        self.region, self.keys, self.signatures = region, dict(keys), tuple(signatures)
        self.anonymous_read = anonymous_read
        self._lock = threading.Lock()
        self._issued: dict[str, tuple[Credentials, float]] = {}

    def issue_token(self, lifetime_s: float, now: float) -> TemporaryCredentials:
        """Make temporary credentials that end `lifetime_s` after `now`."""
        # real tokens are base64 of both alphabets' troublemakers, hence the tail
        key_id, token = f"STS.{secrets.token_hex(8)}", f"CAIS{secrets.token_hex(24)}+/="
        secret = secrets.token_hex(16)
        expires_at = now + lifetime_s
        with self._lock:
            self._issued[key_id] = (Credentials(key_id, secret, token), expires_at)
        expiration = datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return TemporaryCredentials(key_id, secret, token, expiration)

    def check(self, request: Received, now: float) -> None:
        """Raise OssError unless the request is rightly signed, or may do without."""
        kind = signature_kind(request.headers)
        if kind == "anonymous":
            if request.key is None or not self.anonymous_read:
                message = "Anonymous access is forbidden for this operation."
                raise OssError(403, "AccessDenied", message, "0003-00000001")
            return
        if kind == "unknown":
            raise invalid("Authorization header is invalid.")
        if kind not in self.signatures:
            # which code OSS uses for an account without V1 is not documented
            raise invalid(f"The signature version {kind} is not allowed for this bucket.")
        (self._check_v4 if kind == "v4" else self._check_v1)(request, now)

    def _check_v4(self, request: Received, now: float) -> None:
        headers = request.headers
        match = V4.fullmatch(headers["authorization"])
        if match is None:
            raise invalid("Authorization header is invalid.")
        if match["region"] != self.region:
            raise invalid("Invalid signing region in Authorization header.", "0002-00000226")
        if match["product"] != "oss":
            raise invalid("Invalid signing product in Authorization header.", "0002-00000227")
        if headers.get("x-oss-content-sha256") != "UNSIGNED-PAYLOAD":
            raise invalid("The x-oss-content-sha256 header must be UNSIGNED-PAYLOAD.")
        moment = _moment(headers.get("x-oss-date", ""))
        _check_clock(moment, now)
        credentials = self._find(match["id"], headers, now)
        # A client that signs Date must send it equal to x-oss-date: the signer writes both.
        names = set((match["names"] or "").split(";"))
        self._compare(SignerV4(), request, credentials, moment, names, "0002-00000201")

    def _check_v1(self, request: Received, now: float) -> None:
        match = V1.fullmatch(request.headers["authorization"])
        if match is None:
            raise invalid("Authorization header is invalid.")
        moment = _moment(request.headers.get("x-oss-date") or request.headers.get("date", ""))
        _check_clock(moment, now)
        found = self._find(match["id"], request.headers, now)
        # Given a token, SignerV1 would put it into a header `security-token` that nothing signs.
        # Here it has come as x-oss-security-token, and is signed like any x-oss header.
        bare = Credentials(found.access_key_id, found.access_key_secret)
        self._compare(SignerV1(), request, bare, moment, set(), "0002-00000040")

    def _find(self, key_id: str, headers: Mapping[str, str], now: float) -> Credentials:
        token = headers.get("x-oss-security-token")
        with self._lock:
            issued = self._issued.get(key_id)
        unknown = OssError(
            403,
            "InvalidAccessKeyId",
            "The OSS Access Key Id you provided does not exist in our records.",
            "0002-00000002",
            details={"OSSAccessKeyId": key_id},
        )
        if issued is None:
            # a token makes it an STS request, and STS has handed out no such key
            if key_id not in self.keys or token is not None:
                raise unknown
            return Credentials(key_id, self.keys[key_id])
        credentials, expires_at = issued
        if token is None:
            raise unknown
        if token != credentials.security_token:
            message = "The security token you provided is invalid."
            raise OssError(403, "InvalidSecurityToken", message, "0002-00000006")
        if now >= expires_at:
            message = "The security token you provided has expired."
            raise OssError(403, "SecurityTokenExpired", message, "0002-00000007")
        return credentials

    def _compare(
        self,
        signer: Signer,
        request: Received,
        credentials: Credentials,
        moment: datetime,
        names: set[str],
        ec: str,
    ) -> None:
        # encoded anew, as OSS does it: how the client spelled its query does not matter, how it
        # spelled the one that it signed does
        query = "&".join(
            quote(name, safe="") + (f"={quote(value, safe='')}" if value else "")
            for name, value in request.query.items()
        )
        headers = {name: text for name, text in request.headers.items() if name != "authorization"}
        context = SigningContext(
            "oss",
            self.region,
            request.bucket,
            request.key,
            HttpRequest(request.method, f"http://host/?{query}", headers),
            credentials,
            moment,
            additional_headers=names,
        )
        signer.sign(context)
        expected = context.request.headers["Authorization"]
        if not hmac.compare_digest(expected.encode(), request.headers["authorization"].encode()):
            raise OssError(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
                ec,
                details={"StringToSign": context.string_to_sign},
            )


def _moment(text: str) -> datetime:
    try:
        return datetime.strptime(text, ISO_BASIC).replace(tzinfo=UTC)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        message = "OSS authentication requires a valid Date."
        raise OssError(403, "AccessDenied", message, "0002-00000505")
    return moment


def _check_clock(moment: datetime, now: float) -> None:
    if abs(moment.timestamp() - now) > MAX_SKEW_S:
        raise OssError(
            403,
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            "0002-00000504",
        )
