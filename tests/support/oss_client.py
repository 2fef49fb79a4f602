"""Requests to the OSS server of the tests, written by hand and signed by the SDK's signers."""

import http.client
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from alibabacloud_oss_v2.signer import SignerV1, SignerV4
from alibabacloud_oss_v2.types import Credentials, HttpRequest, SigningContext
from defusedxml import ElementTree

from support.oss import OssServer


@dataclass
class Answer:
    """What came back to a request written by hand."""

    status: int
    headers: dict[str, str]
    body: bytes

    def code(self) -> str:
        """Status and code of an error."""
        return f"{self.status} {ElementTree.fromstring(self.body).findtext('Code')}"


def send(server: OssServer, target: str, method: str = "GET", **headers: str) -> Answer:
    """One request as given; underscores in the names of headers stand for dashes."""
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=10)
    try:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, target, headers=named)
        answer = connection.getresponse()
        fields = {name.lower(): text for name, text in answer.getheaders()}
        return Answer(answer.status, fields, answer.read())
    finally:
        connection.close()


def sign(
    server: OssServer,
    key: str | None,
    kind: str = "v4",
    query: str = "",
    keys: tuple[str, str] | None = None,
    at: datetime | None = None,
    also: tuple[str, ...] = (),
    **headers: str,
) -> dict[str, str]:
    """Headers for `send`: a GET signed by the SDK, now or `at` a time.

    Args:
      key: None for the bucket itself.
      keys: id and secret; by default those that the server was given.
      also: headers to sign that would not be signed without being named.
    """
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    id_and_secret = keys or next(iter(server.authority.keys.items()))
    request = HttpRequest("GET", f"http://host/?{query}", named)
    context = SigningContext(
        "oss", server.region, "models", key, request, Credentials(*id_and_secret), at,
        additional_headers=set(also),
    )  # fmt: skip
    (SignerV4() if kind == "v4" else SignerV1()).sign(context)
    return {name.replace("-", "_"): text for name, text in request.headers.items()}
