"""The objects of the OSS server of the tests: a folder's files, their versions, ranges, listings.

An object is opened when it is first asked for and stays open, so a replacement never reaches an
answer that has begun, and older versions can be served. Change objects with `replace`: a file
written over in place is noticed, but takes its older versions with it.
"""

import base64
import binascii
import hashlib
import itertools
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from xml.sax.saxutils import escape

import fastcrc

from support.oss_auth import OssError, invalid

DEFAULT_KEYS, MAX_KEYS = 100, 1000
LIST_QUERY = {
    "list-type", "prefix", "delimiter", "continuation-token", "start-after", "max-keys",
    "encoding-type", "fetch-owner",
}  # fmt: skip


@dataclass(frozen=True)
class Version:
    """The bytes of an object as they were at one time, and what OSS says about them."""

    id: str
    stream: BinaryIO = field(repr=False)
    identity: tuple[int, int, int]
    size: int
    modified: float
    etag: str
    crc: int

    def describe(self, crc_header: bool, versioning: bool) -> dict[str, str]:
        """The headers of a GET or HEAD; the CRC is that of the whole object, ranged or not."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": self.etag,
            "Last-Modified": formatdate(self.modified, usegmt=True),
            "x-oss-object-type": "Normal",
            "x-oss-storage-class": "Standard",
        }
        if crc_header:
            headers["x-oss-hash-crc64ecma"] = str(self.crc)
        if versioning:
            headers["x-oss-version-id"] = self.id
        return headers


class Bucket:
    """The objects under a folder, and `extra` ones whose keys no file can have."""

    def __init__(self, root: Path, extra: Mapping[str, bytes], versioning: bool) -> None:
        self.root, self.extra, self.versioning = root, dict(extra), versioning
        self._lock = threading.RLock()
        self._history: dict[str, list[Version]] = {}
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Let go of all files."""
        for version in itertools.chain.from_iterable(self._history.values()):
            version.stream.close()

    def list_keys(self) -> list[str]:
        """All keys, in the order of their UTF-8, which is that of their code points."""
        with self._lock:
            files = [path for path in self.root.rglob("*") if path.is_file()]
        return sorted({path.relative_to(self.root).as_posix() for path in files} | set(self.extra))

    def find(self, key: str, version_id: str | None = None) -> Version:
        """The current version of an object, or an older one that was kept."""
        with self._lock:
            current = self._current(key)
            if version_id is None:
                return current
            kept = self._history[key] if self.versioning else []
        for version in kept:
            if version.id == version_id:
                return version
        message = "The specified version does not exist."
        raise OssError(404, "NoSuchVersion", message, details={"Key": key})

    def replace(self, key: str, data: bytes) -> Version:
        """Write a new object under `key`; answers that have begun go on with the old one."""
        path = self.root / key
        with self._lock:
            if key in self.extra:
                self.extra[key] = data
                self._add_extra(key)
                return self.find(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
                stream.write(data)
            os.replace(stream.name, path)
            return self.find(key)

    def _current(self, key: str) -> Version:
        if key in self.extra:
            if key not in self._history:
                self._add_extra(key)
            return self._history[key][-1]
        path = self.root / key
        # "a//b" and "a/../b" are other keys than "a/b" and "b", though not other files
        if any(part in ("", ".", "..") for part in key.split("/")) or not path.is_file():
            message = "The specified key does not exist."
            raise OssError(404, "NoSuchKey", message, "0026-00000001", details={"Key": key})
        known = self._history.get(key)
        if not known or known[-1].identity != _identity(path.stat()):
            self._add(key, path.open("rb"))
        return self._history[key][-1]

    def _add_extra(self, key: str) -> None:
        stream = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        stream.write(self.extra[key])
        stream.flush()
        self._add(key, stream)

    def _add(self, key: str, stream: BinaryIO) -> None:
        md5, crc = hashlib.md5(), None
        stream.seek(0)
        while piece := stream.read(1 << 20):
            md5.update(piece)
            crc = fastcrc.crc64.xz(piece, crc)
        status = os.fstat(stream.fileno())
        etag = f'"{md5.hexdigest().upper()}"'
        # an object that is equal to the one before it is a new version nevertheless
        number = f"CAEQ{next(self._numbers):028x}"
        version = Version(
            number, stream, _identity(status), status.st_size, status.st_mtime, etag, crc or 0
        )
        self._history.setdefault(key, []).append(version)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def parse_range(text: str, size: int, standard: bool) -> tuple[int, int] | None:
    """First byte and end of a range, or None if OSS ignores it and sends the whole object.

    `standard` is about ranges outside of the object. One that cannot be understood (another unit,
    the last byte before the first) is ignored in any case; of several ranges the first counts.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)(,.*)?", text)
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
        if match[2] and end <= start:
            return None
    else:
        start, end = size - int(match[2]), size
    if 0 <= start < end <= size:
        return start, end
    if not standard:
        return None
    if start >= size:
        raise OssError(416, "InvalidRange", "The requested range cannot be satisfied")
    return max(start, 0), min(end, size)


def list_objects(
    bucket: Bucket, name: str, query: Mapping[str, str], page_size: int | None
) -> bytes:
    """The answer to ListObjectsV2; `page_size` makes pages shorter than was asked for."""
    if query.get("list-type") != "2" or not query.keys() <= LIST_QUERY:
        raise OssError(501, "NotImplemented", f"not served here: {sorted(query)}")
    text = query.get("max-keys", str(DEFAULT_KEYS))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_KEYS:
        raise invalid(f"Argument max-keys must be an integer between 1 and {MAX_KEYS}.")
    if query.get("encoding-type", "url") != "url":
        raise invalid("Invalid Encoding Method specified in Request.")
    after = _read_token(query.get("continuation-token")) or query.get("start-after", "")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    keys = [key for key in bucket.list_keys() if key.startswith(prefix) and key > after]
    limit = min(int(text), page_size or MAX_KEYS)
    contents, groups, last = _page(keys, prefix, delimiter, after, limit)

    def shown(text: str) -> str:
        # "/" too: OSS leaves nothing but letters, digits and "-_.~" as they are
        return quote(text, safe="") if "encoding-type" in query else escape(text)

    truncated = bool(keys) and last != keys[-1]
    fields = {
        "Name": escape(name),
        "Prefix": shown(prefix),
        "MaxKeys": text,
        "Delimiter": shown(delimiter),
        "StartAfter": shown(query.get("start-after", "")),
        "ContinuationToken": shown(query.get("continuation-token", "")),
        "EncodingType": query.get("encoding-type", ""),
        "IsTruncated": "true" if truncated else "false",
        "NextContinuationToken": shown(_make_token(last)) if truncated else "",
    }
    always = {"Name", "Prefix", "MaxKeys", "Delimiter", "IsTruncated"}
    parts = [f"<{tag}>{text}</{tag}>" for tag, text in fields.items() if text or tag in always]
    parts += [_entry(shown(key), bucket.find(key)) for key in contents]
    parts += [f"<CommonPrefixes><Prefix>{shown(g)}</Prefix></CommonPrefixes>" for g in groups]
    parts.append(f"<KeyCount>{len(contents) + len(groups)}</KeyCount>")
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{head}<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode()


def _page(
    keys: list[str], prefix: str, delimiter: str, after: str, limit: int
) -> tuple[list[str], list[str], str]:
    contents: list[str] = []
    groups: list[str] = []
    last = after
    for key in keys:
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        group = key[: cut + len(delimiter)] if cut >= 0 else None
        if group is None or group not in groups[-1:]:
            # a key in the group that is open costs nothing, so a page never ends inside a group
            if len(contents) + len(groups) == limit:
                break
            (contents if group is None else groups).append(key if group is None else group)
        last = key
    return contents, groups, last


def _entry(key: str, version: Version) -> str:
    modified = datetime.fromtimestamp(version.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{key}</Key><LastModified>{modified}</LastModified>"
        f"<ETag>{escape(version.etag)}</ETag><Type>Normal</Type><Size>{version.size}</Size>"
        "<StorageClass>Standard</StorageClass></Contents>"
    )


def _make_token(last: str) -> str:
    # standard base64, and reversed to be useless as a key: opaque, and wrong unless it is encoded
    return base64.b64encode(b"\xff\xef" + last.encode()[::-1]).decode()


def _read_token(token: str | None) -> str | None:
    if token is None:
        return None
    try:
        data = base64.b64decode(token, validate=True)
        if not data.startswith(b"\xff\xef"):
            raise ValueError(token)
        return data[2:][::-1].decode()
    except (binascii.Error, ValueError):
        raise invalid("The continuation token is invalid.") from None
