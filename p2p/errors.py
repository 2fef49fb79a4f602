"""The exception tree.

P2PError
├── UsageError              the user's mistake: one line, no traceback, exit code 2
├── ProtocolError
│   ├── LocalProtocolError  our bug; propagates and stops the process
│   └── RemoteProtocolError theirs; closes that connection, counts against the peer
│       └── Refused         the other side said no, with a code (token, version, manifest, draining)
├── ManifestError           a manifest that no honest node would send
├── StoreError              the chunk store cannot go on (unknown version, in use, damaged)
│   └── StoreFull           no space for a chunk; nothing is lost
├── OriginError             the origin answered wrongly or not at all
└── TrackerUnavailable      no tracker of the list answers
"""


class P2PError(Exception):
    """Base of all errors that this project raises on purpose; `str` is one clear line."""

    exit_code = 1


class UsageError(P2PError):
    """The user's mistake. The command prints it and exits with 2."""

    exit_code = 2


class ProtocolError(P2PError):
    """The rules of the wire were broken."""


class LocalProtocolError(ProtocolError):
    """We tried to break them: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side broke them. Its connection is closed."""


class Refused(RemoteProtocolError):
    """The other side refused us, or we refuse it.

    `code` is one of `token`, `version`, `manifest`, `role`, `itself`, `draining`, `model`, `busy`.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class ManifestError(P2PError):
    """A manifest is malformed, out of bounds, or names a file that would leave the model dir."""


class StoreError(P2PError):
    """The chunk store refuses to open or to go on."""


class StoreFull(StoreError):
    """ENOSPC or EDQUOT at a chunk's allocation, before any of its bytes was transferred.

    At its writing only where a filesystem does not keep what it promised (copy on write).
    """


class OriginError(P2PError):
    """The origin did not give what was asked.

    Args:
      fatal: asking again cannot help (404, 403, no range support, changed ETag).
      retry_after_s: the origin's own hint, or None.
      status, code, date, location: the HTTP status, the store's own error code, the server's Date
        and a redirect's target, as far as they came.
    """

    def __init__(
        self,
        text: str,
        *,
        fatal: bool,
        retry_after_s: float | None = None,
        status: int = 0,
        code: str = "",
        date: str = "",
        location: str = "",
    ) -> None:
        super().__init__(text)
        self.fatal = fatal
        self.retry_after_s = retry_after_s
        self.status, self.code, self.date, self.location = status, code, date, location


class TrackerUnavailable(P2PError):
    """None of the trackers in the list can be reached."""


def single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of our own errors, if a group holds no other; else the group: a bug to be seen."""
    others = group.subgroup(lambda error: not isinstance(error, P2PError | BaseExceptionGroup))
    error: BaseException = group
    while others is None and isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
