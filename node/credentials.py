"""Credentials for object stores: where they come from, and when they are asked for again.

A source gives what is good now. `get` is called for each request that is signed and is cheap while
nothing is due; `refresh` says that the store refused what `get` gave. Nothing here prints, logs or
raises with a text that holds a secret, not even with one that may: parsers' messages quote.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import trio

from node.config import environment
from p2p.errors import OriginError, UsageError

log = logging.getLogger(__name__)

MARGIN_S = 60.0  # what ossfs came to (aliyun/ossfs#195): with less, requests are refused under way
MARGIN_SHARE = 0.2  # of what was left: credentials that live for a minute are not read all the time
PAUSE_S = 10.0  # between two tries of AWS's chain to renew what is still good
MAX_FILE_BYTES = 64 * 1024
_WORD = re.compile(r"[!-~]{1,8192}")  # goes into a header: nothing but printable ASCII

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """An access key, and for a session its token and its end (Unix time, if known)."""

    access_key_id: str
    access_key_secret: str
    token: str = ""
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"<Credentials token={bool(self.token)} expires_at={self.expires_at}>"


class Source(Protocol):
    """Where credentials come from."""

    async def get(self) -> Credentials | None:
        """What to sign with now; None: do not sign.

        Raises:
          OriginError: there should be some, and there are none.
        """

    async def refresh(self) -> None:
        """The store refused what `get` gave: ask again, so that `get` gives what is newest.

        Raises:
          OriginError: they cannot be had.
        """


class Anonymous:
    """Nothing is signed."""

    def __repr__(self) -> str:
        return "<Anonymous>"

    async def get(self) -> None:
        """None."""

    async def refresh(self) -> None:
        """There is nothing to ask for."""


class Fixed:
    """Credentials that do not change while this process lives."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __repr__(self) -> str:
        return f"<Fixed {self._credentials!r}>"

    async def get(self) -> Credentials:
        """Always the same."""
        return self._credentials

    async def refresh(self) -> None:
        """There are no others."""


def from_environment(prefix: str = "OSS") -> Fixed | Anonymous:
    """`OSS_ACCESS_KEY_ID`, `OSS_ACCESS_KEY_SECRET` and `OSS_SESSION_TOKEN`, or anonymous.

    Raises:
      UsageError: one of the first two is set without the other, or holds what no key does.
    """
    names = [f"{prefix}_ACCESS_KEY_ID", f"{prefix}_ACCESS_KEY_SECRET", f"{prefix}_SESSION_TOKEN"]
    values = [(environment(name) or "").strip() for name in names]
    for name, value in zip(names, values, strict=True):
        if value and not _WORD.fullmatch(value):
            raise UsageError(f"{name} holds characters that no key has")
    if not values[0] and not values[1]:
        return Anonymous()
    for name, value in zip(names[:2], values[:2], strict=True):
        if not value:
            raise UsageError(f"{name} is not set, and its other half is")
    return Fixed(Credentials(values[0], values[1], values[2]))


class CredentialsFile:
    """The JSON file that something else keeps fresh (`AccessKeyId`, `AccessKeySecret`, ...).

    Read again shortly before its `Expiration`. A file that cannot be read then (it may be half
    written) does not end what still works: the former credentials stay until they have expired.
    """

    def __init__(self, path: Path, clock: Clock = time.time) -> None:
        self._path = path
        self._clock = clock
        self._current: Credentials | None = None
        self._due_at: float | None = None

    def __repr__(self) -> str:
        return f"<CredentialsFile {self._path} {self._current!r}>"

    async def get(self) -> Credentials:
        """See `Source`; the file is read when that is due."""
        if self._current is None:
            self._read()
        elif self._due_at is not None and self._clock() >= self._due_at:
            expires_at = self._current.expires_at or 0.0
            try:
                self._read()
            except OriginError as error:
                if self._clock() >= expires_at:
                    raise
                log.warning("%s: going on with the former ones", error)
                self._due_at = self._next_read(expires_at)
        assert self._current is not None
        return self._current

    async def refresh(self) -> None:
        """Read the file now."""
        self._read()

    def _read(self) -> None:
        # what never worked is a mistake to be told at once; what has worked may come back
        fatal = self._current is None
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise OriginError(
                f"credentials file {self._path}: {error.strerror}", fatal=fatal
            ) from None
        try:
            self._current = parse_credentials(data)
        except ValueError as error:
            raise OriginError(f"credentials file {self._path}: {error}", fatal=fatal) from None
        expires_at = self._current.expires_at
        self._due_at = None if expires_at is None else self._next_read(expires_at)

    def _next_read(self, expires_at: float) -> float:
        left_s = max(0.0, expires_at - self._clock())
        return expires_at - min(MARGIN_S, left_s * MARGIN_SHARE)


def parse_credentials(data: bytes) -> Credentials:
    """The content of a credentials file.

    Raises:
      ValueError: it is not one; the text quotes nothing of it.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"is longer than {MAX_FILE_BYTES} bytes")
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(tree, dict):
        raise ValueError("is not a JSON object")
    key_id, secret = _field(tree, "AccessKeyId"), _field(tree, "AccessKeySecret")
    for name, value in (("AccessKeyId", key_id), ("AccessKeySecret", secret)):
        if not value:
            raise ValueError(f"lacks the field {name}")
    token, expiration = _field(tree, "SecurityToken"), _field(tree, "Expiration")
    return Credentials(key_id, secret, token, _unix_time(expiration) if expiration else None)


def _field(tree: dict[str, Any], name: str) -> str:
    value = tree.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"its field {name} is not a word of printable ASCII")
    return value


def _unix_time(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("its field Expiration is not like 2024-08-02T15:04:05Z") from None


class AwsChain:
    """botocore's chain: environment, profile, web identity, container and instance roles.

    Asking it may read files, start programs and wait for a metadata service, so that is done in a
    thread; credentials that need no refresh are handed out without one.

    Raises:
      UsageError: botocore is not installed.
    """

    def __init__(self, profile: str | None = None, clock: Clock = time.time) -> None:
        try:
            import botocore.session
        except ImportError as error:
            raise UsageError("s3:// needs the package botocore: pip install 'shoal[s3]'") from error
        self._session = botocore.session.Session
        self._profile = profile
        self._clock = clock
        self._pause_until = 0.0
        self._found: Any = None  # botocore's own object, which knows how to refresh itself
        self._current: Credentials | None = None
        self._asked = False
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<AwsChain profile={self._profile!r}>"

    def region(self) -> str | None:
        """The profile's region, from the configuration file.

        Raises:
          UsageError: there is no such profile, or the file cannot be read.
        """
        from botocore.exceptions import BotoCoreError

        try:
            region = self._session(profile=self._profile).get_config_variable("region")
        except BotoCoreError as error:
            raise UsageError(f"AWS configuration: {_aws_words(error)}") from None
        return str(region) if region else None

    async def get(self) -> Credentials | None:
        """See `Source`; None when the chain finds nothing."""
        if not self._asked or self._is_due():
            async with self._lock:
                if not self._asked or self._is_due():
                    await self._ask(anew=not self._asked)
        return self._current

    async def refresh(self) -> None:
        """Go through the chain again: a profile's file may have changed too."""
        before = self._current
        async with self._lock:
            if self._current is before:
                await self._ask(anew=True)

    def _is_due(self) -> bool:
        """botocore begins 15 minutes before the end; a failure is not repeated at each request."""
        needed = getattr(self._found, "refresh_needed", None)
        return needed is not None and self._clock() >= self._pause_until and bool(needed())

    async def _ask(self, *, anew: bool) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        self._pause_until = self._clock() + PAUSE_S
        try:
            self._current = await trio.to_thread.run_sync(self._load, anew, abandon_on_cancel=True)
        except (BotoCoreError, ClientError, OSError, ValueError, KeyError) as error:
            # what never worked is a mistake to be told at once; what has worked may come back
            raise OriginError(
                f"AWS credentials: {_aws_words(error)}", fatal=not self._asked
            ) from None
        self._asked = True

    def _load(self, anew: bool) -> Credentials | None:
        """In a thread."""
        if anew:
            self._found = self._session(profile=self._profile).get_credentials()
        if self._found is None:
            return None
        frozen = self._found.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


def _aws_words(error: Exception) -> str:
    """An error's text where it holds names only; of others (a program's output) the kind."""
    kind = type(error).__name__
    harmless = ("ProfileNotFound", "PartialCredentialsError", "ConfigNotFound", "ConfigParseError")
    return str(error).replace("\n", " ") if kind in harmless else kind
