"""Where an object of a bucket is: endpoints, addressing styles and percent-encoding. Pure.

`oss://BUCKET/KEY` and `s3://BUCKET/KEY` name objects, not hosts. The host comes from an endpoint
(with or without a scheme) or from a region:

    virtual   https://BUCKET.oss-cn-hangzhou.aliyuncs.com/KEY     the rule; OSS refuses the other
    path      http://127.0.0.1:9000/BUCKET/KEY                    IP addresses, localhost, by option

The path of such a URL is percent-decoded once (`%3F` is a `?` of the key) and encoded for requests
from the key alone, so that what is signed and what is sent cannot differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from p2p.errors import UsageError

ADDRESSINGS = ("auto", "virtual", "path")
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?")
_BUCKETS = {
    "oss": re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
    # before 2018 S3 also gave out names with capitals, underscores, and up to 255 characters
    "s3": re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){1,253}[A-Za-z0-9]"),
}
_OSS_REGIONS = (
    re.compile(r"(?:[a-z0-9-]+-)?oss-(?!accelerate)(?P<region>[a-z0-9-]+?)(?:-internal)?"),
    re.compile(r"(?P<region>[a-z0-9-]+?)(?:-internal)?\.oss"),
)
_S3_REGION = re.compile(
    r"s3(?:-fips)?(?:[.-]dualstack)?[.-](?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?"
)


@dataclass(frozen=True, slots=True)
class Location:
    """What an `oss://` or `s3://` URL names: all keys below `key` if it is a folder, else one."""

    scheme: str
    bucket: str
    key: str

    @property
    def is_folder(self) -> bool:
        """The bucket itself, or a prefix that ends with a slash."""
        return not self.key or self.key.endswith("/")

    def key_of(self, path: str) -> str:
        """The key of a file of the model."""
        return self.key + path if self.is_folder else self.key

    def shown(self, key: str) -> str:
        """The public URL of an object, for people."""
        return f"{self.scheme}://{self.bucket}/{quote(key)}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A store's address. `host` carries a port unless it is the scheme's; `region` may be empty."""

    scheme: str
    host: str
    region: str
    path_style: bool

    def url(self, bucket: str, key: str, query: Sequence[tuple[str, str]] = ()) -> str:
        """The URL of an object, or of the bucket for the empty key."""
        tail = "?" + urlencode(query, quote_via=quote) if query else ""
        if self.path_style:
            return f"{self.scheme}://{self.host}/{bucket}/{quote(key)}{tail}"
        return f"{self.scheme}://{bucket}.{self.host}/{quote(key)}{tail}"


def parse_location(url: str) -> Location:
    """Take an `oss://` or `s3://` URL apart.

    Raises:
      UsageError: its bucket's name cannot be one, or it carries credentials, a port or a query.
    """
    parts = urlsplit(url)
    scheme = parts.scheme
    if "@" in parts.netloc:
        raise UsageError(
            f"origin {scheme}://...: credentials do not belong into the URL: "
            "use the environment or a credentials file"
        )
    if not _BUCKETS[scheme].fullmatch(parts.netloc):
        raise UsageError(f"origin {scheme}://{parts.netloc}/: no bucket can have this name")
    if parts.query or parts.fragment:
        raise UsageError(
            f"origin {scheme}://{parts.netloc}{parts.path}: has a query or a fragment; "
            "write ? and # of a key as %3F and %23"
        )
    try:
        key = unquote(parts.path, errors="strict").removeprefix("/")
    except UnicodeDecodeError:
        raise UsageError(f"origin {scheme}://{parts.netloc}{parts.path}: not UTF-8") from None
    # HTTP clients resolve dots away, and what is asked for would not be what was signed
    if any(part in (".", "..") for part in key.split("/")):
        raise UsageError(f"origin {scheme}://{parts.netloc}{parts.path}: no . or .. in a key")
    return Location(scheme, parts.netloc, key)


def oss_endpoint(endpoint: str | None, region: str | None, addressing: str) -> Endpoint:
    """The endpoint of OSS from what is known of it; the region may stay unknown.

    Raises:
      UsageError: neither is given, or one of the three cannot be.
    """
    given = _checked_region(region.removeprefix("oss-")) if region else ""
    if not endpoint:
        if not given:
            raise UsageError("oss:// needs an endpoint or a region: set OSS_ENDPOINT or OSS_REGION")
        endpoint = f"https://oss-{given}.aliyuncs.com"
    scheme, name, host = _parse(endpoint)
    return Endpoint(
        scheme, host, given or _oss_region(name), _is_path_style(name, addressing, can_be_host=True)
    )


def s3_endpoint(endpoint: str | None, region: str | None, addressing: str, bucket: str) -> Endpoint:
    """The endpoint of S3 or of a store that speaks its language.

    The region is us-east-1 when nothing tells: other stores take what they are signed for, and AWS
    names the right one in its refusal.

    Raises:
      UsageError: one of the three cannot be.
    """
    given = _checked_region(region) if region else ""
    if not endpoint:
        given = given or "us-east-1"
        top = "amazonaws.com.cn" if given.startswith("cn-") else "amazonaws.com"
        endpoint = f"https://s3.{given}.{top}"
    scheme, name, host = _parse(endpoint)
    # a dot in the bucket's name does not match the certificate's *.s3..., capitals are no host name
    can_be_host = re.fullmatch(r"[a-z0-9-]{3,63}", bucket) is not None
    return Endpoint(
        scheme,
        host,
        given or _s3_region(name) or "us-east-1",
        _is_path_style(name, addressing, can_be_host=can_be_host),
    )


def is_region(text: str) -> bool:
    """Whether this may be the name of a region: it becomes part of a host's name."""
    return _REGION.fullmatch(text) is not None


def _checked_region(region: str) -> str:
    if not is_region(region):
        raise UsageError(f"region {region!r:.80} is not one: they look like cn-hangzhou, us-east-1")
    return region


def _parse(endpoint: str) -> tuple[str, str, str]:
    """Scheme, host name, and host name with what port it needs."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else "//" + endpoint)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("the endpoint is not [http://]HOST[:PORT]") from None
    scheme = parts.scheme or _default_scheme(name)
    if (
        scheme not in ("http", "https")
        or parts.username is not None
        or not (_is_ip(name) or _HOST.fullmatch(name))
        or _has_more(parts)
    ):
        raise UsageError(f"the endpoint (of host {name!r:.80}) is not [http://]HOST[:PORT]")
    host = f"[{name}]" if ":" in name else name
    if port is not None and port != {"http": 80, "https": 443}[scheme]:
        host += f":{port}"
    return scheme, name, host


def _has_more(parts: SplitResult) -> bool:
    return bool(parts.path.strip("/") or parts.query or parts.fragment)


def _default_scheme(name: str) -> str:
    """Plain inside a region's own network, as its other clients do it: TLS costs 1.3 s per GB."""
    plain = "-internal." in name or name == "localhost" or _is_ip(name)
    return "http" if plain else "https"


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_path_style(name: str, addressing: str, *, can_be_host: bool) -> bool:
    if addressing not in ADDRESSINGS:
        raise UsageError(f"addressing {addressing!r:.80} is not one of {', '.join(ADDRESSINGS)}")
    if addressing == "virtual" and _is_ip(name):
        raise UsageError(f"addressing virtual needs a host name, and the endpoint is {name}")
    if addressing == "auto":
        return _is_ip(name) or name == "localhost" or not can_be_host
    return addressing == "path"


def _oss_region(name: str) -> str:
    head = name.removesuffix(".aliyuncs.com")
    if head == name:
        return ""
    for pattern in _OSS_REGIONS:
        if match := pattern.fullmatch(head):
            return match["region"]
    return ""


def _s3_region(name: str) -> str:
    match = _S3_REGION.fullmatch(name)
    return match["region"] if match else ""
