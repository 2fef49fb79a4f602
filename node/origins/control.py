"""What the control plane's requests share, whatever the origin: retries, hints, plain words."""

import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import errorcode
from random import Random
from typing import TypeVar
from urllib.parse import unquote

import trio

from node.audit import Audit
from p2p.backoff import full_jitter
from p2p.errors import OriginError

log = logging.getLogger(__name__)

TRIES = 5
AT_ONCE = 16  # HEADs under way: a model has tens of files, some have thousands
TIMEOUT_S = 10.0
MAX_HINT_S = 60.0  # a Retry-After of a day must not look like a hang

Result = TypeVar("Result")


async def patiently(ask: Callable[[], Awaitable[Result]], rng: Random) -> Result:
    """Call `ask` up to `TRIES` times, with full jitter between.

    Raises:
      OriginError: a fatal one at once, else the last one.
    """
    attempt = 0
    while True:
        try:
            return await ask()
        except OriginError as error:
            attempt += 1
            if error.fatal or attempt >= TRIES:
                raise
            log.warning("%s: trying again (%d of %d)", error, attempt, TRIES)
            wait_s = full_jitter(attempt, 0.2, 5.0, rng)
            await trio.sleep(max(wait_s, min(error.retry_after_s or 0.0, MAX_HINT_S)))


async def all_at_once(tasks: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all, `AT_ONCE` at a time; the first OriginError ends the rest and is raised by itself.

    Raises:
      OriginError
    """
    limiter = trio.CapacityLimiter(AT_ONCE)

    async def run(task: Callable[[], Awaitable[None]]) -> None:
        async with limiter:
            await task()

    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(run, task)
    except* OriginError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        first = error
    else:
        return
    raise first


@dataclass(slots=True)
class Exchange:
    """What came of one request, for the audit log: filled in as it comes."""

    status: int = 0
    bytes: int = 0
    request_id: str = ""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """A head came."""
        self.status = status
        self.request_id = request_id(headers)


@contextmanager
def audited(
    audit: Audit, about: str, kind: str, span: tuple[int, int] | None = None
) -> Iterator[Exchange]:
    """One request of the control plane, as a line of the audit log, whatever comes of it."""
    exchange, begin = Exchange(), trio.current_time()
    start, end = span or (None, None)
    try:
        yield exchange
    finally:
        ms = (trio.current_time() - begin) * 1000
        audit.record(
            unquote(about),
            start,
            end,
            exchange.status,
            exchange.bytes,
            ms,
            exchange.request_id,
            kind,
        )


def request_id(headers: Mapping[str, str]) -> str:
    """What the store calls a request, for its support; empty where it calls it nothing."""
    return headers.get("x-oss-request-id") or headers.get("x-amz-request-id", "")


def delay_hint_s(headers: Mapping[str, str]) -> float | None:
    """The server's own hint: `x-oss-qos-delay-time` in ms, or Retry-After in seconds."""
    delay = headers.get("x-oss-qos-delay-time", "")
    if delay.isdecimal():
        return float(delay) / 1000
    after = headers.get("retry-after", "")
    return float(after) if after.isdecimal() else None


def is_fatal(status: int) -> bool:
    """Whether asking the same again is useless."""
    return status < 500 and status not in (408, 429)


def transport_reason(error: BaseException) -> tuple[str, bool]:
    """What lies beneath a transport error, and whether asking again is useless."""
    text, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while cause is not None:
        while isinstance(cause, BaseExceptionGroup):  # trio's: one for each address of a name
            cause = cause.exceptions[0]
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}", True
        if isinstance(cause, OSError):
            text = _system_words(cause) or text
        cause = cause.__cause__ or cause.__context__
    return text, False


def _system_words(error: OSError) -> str:
    """The system's words for an errno: trio adds addresses to them. TLS and DNS count their own."""
    own = isinstance(error, ssl.SSLError | socket.gaierror)
    if error.errno is not None and error.errno in errorcode and not own:
        return os.strerror(error.errno)
    return error.strerror or str(error)
