"""An S3 that knows signatures: botocore's own code checks them, and little else is checked.

It reads only. What is wrong with a request is answered as AWS does it: a wrong region by redirect
(its endpoints) or complaint, an expired token with 400, a HEAD without a word.
"""

import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import botocore.auth
import botocore.awsrequest
import botocore.credentials


@dataclass
class Strict:
    """What the strict server serves, demands, and has seen."""

    objects: dict[str, bytes]
    url: str = ""
    region: str = "us-east-1"
    keys: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {"test-id": ("test-s3cr3t", "")}
    )
    expired: set[str] = field(default_factory=set)
    clock_offset_s: float = 0.0
    version: str = ""
    versions_denied: bool = False
    redirecting: bool = False
    """whether another region's endpoint redirects, as AWS does it, or complains, as MinIO does"""
    described: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str, int]] = field(default_factory=list)

    def judge(self, method: str, url: str, headers: dict[str, str]) -> tuple[int, str, str]:
        """Status, code and region of the refusal; 0 for a request that is right."""
        word = headers.get("authorization", "")
        host = urlsplit(url).netloc
        if self.redirecting and self.region not in host:
            return 301, "PermanentRedirect", self.region
        scheme, _, rest = word.partition(" ")
        if scheme != "AWS4-HMAC-SHA256":
            return 403, "AccessDenied", ""
        fields = dict(part.split("=", 1) for part in rest.split(", "))
        key_id, date, region, service, tail = fields["Credential"].split("/")
        assert (service, tail) == ("s3", "aws4_request")
        stamp = headers["x-amz-date"]
        assert stamp.startswith(date)
        made_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if region != self.region:
            return 400, "AuthorizationHeaderMalformed", self.region
        if abs(made_at - time.time() - self.clock_offset_s) > 900:
            return 403, "RequestTimeTooSkewed", ""
        if key_id not in self.keys:
            return 403, "InvalidAccessKeyId", ""
        secret, token = self.keys[key_id]
        if headers.get("x-amz-security-token", "") != token:
            return 400, "InvalidToken", ""
        if key_id in self.expired:
            return 400, "ExpiredToken", ""
        names = fields["SignedHeaders"].split(";")
        unsigned = {name for name in headers if name.startswith("x-amz-")} - set(names)
        assert "host" in names, "S3 demands it"
        assert not unsigned, f"S3 demands that they are signed: {unsigned}"
        request = botocore.awsrequest.AWSRequest(
            method=method, url=url, headers={name: headers[name] for name in names}
        )
        request.context["timestamp"] = stamp
        auth = botocore.auth.S3SigV4Auth(
            botocore.credentials.ReadOnlyCredentials(key_id, secret, None), "s3", region
        )
        text = auth.string_to_sign(request, auth.canonical_request(request))
        if auth.signature(text, request) != fields["Signature"]:
            return 403, "SignatureDoesNotMatch", ""
        if self.versions_denied and "versionId=" in url:
            return 403, "AccessDenied", ""
        return 0, "", ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    strict: Strict
    scheme = "http"

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the tests look at `seen`."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header, by the server's own clock."""
        return formatdate(time.time() + self.strict.clock_offset_s, usegmt=True)

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """A listing, an object, or a refusal."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        url = f"{self.scheme}://{headers['host']}{self.path}"
        status, code, region = self.strict.judge(self.command, url, headers)
        if status:
            inner = f"<Code>{code}</Code>" + (f"<Region>{region}</Region>" if region else "")
            named = {"x-amz-bucket-region": region} if region else {}
            return self._answer(status, f"<Error>{inner}</Error>".encode(), named)
        path, query = unquote(urlsplit(url).path), parse_qs(urlsplit(url).query)
        key = path.removeprefix("/bucket").removeprefix("/")
        if "list-type" in query:
            return self._answer(200, self._listing(query["prefix"][0] if "prefix" in query else ""))
        if not key:
            return self._answer(200, b"")  # HEAD of the bucket
        return self._object(self.strict.objects[key], headers)

    def _listing(self, prefix: str) -> bytes:
        parts = [
            f"<Contents><Key>{quote(key)}</Key><Size>{len(data)}</Size></Contents>"
            for key, data in self.strict.objects.items()
            if key.startswith(prefix)
        ]
        head = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{''.join(parts)}</ListBucketResult>".encode()

    def _object(self, data: bytes, headers: dict[str, str]) -> None:
        named = {"ETag": f'"{len(data)}"', **self.strict.described}
        if self.strict.version:
            named["x-amz-version-id"] = self.strict.version
        if self.command == "HEAD":
            assert headers["x-amz-checksum-mode"] == "ENABLED"
            return self._answer(200, data, named)
        first, last = headers["range"].removeprefix("bytes=").split("-")
        named["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[int(first) : int(last) + 1], named)

    def _answer(self, status: int, body: bytes, named: dict[str, str] | None = None) -> None:
        self.strict.seen.append((self.command, self.headers["Host"], status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (named or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class StrictServer(ThreadingHTTPServer):
    """Serves the bucket `bucket` until `close`, which raises what a handler died of."""

    strict: Strict

    def __init__(self, strict: Strict, tls: ssl.SSLContext | None = None) -> None:
        class Handler(_Handler):
            pass

        Handler.strict, Handler.scheme = strict, "https" if tls else "http"
        self.strict = strict
        self.errors: list[BaseException] = []
        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        strict.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep it, unless a client went away."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        if self.errors:
            raise self.errors[0]
