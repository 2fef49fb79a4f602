"""The files that a node appends to: the audit log of its requests to the origin, and its log.

One request, one line, written when the request has ended:

    2026-05-01T12:00:00.123Z object=sub/a%20b.gguf range=0-8388607 status=206 bytes=8388608
    ms=93 request_id=66F1A2B3C4D5E6F708192A3B kind=first               (all of it on one line)

The time is UTC. `object` and `request_id` are percent-quoted, so that a space always separates
fields; `-` stands for an empty one. `range` is as HTTP writes it, its end included; `-` is none.
`status` is 0 where no answer came, `bytes` counts body bytes, `ms` is from the request to its end.
`kind` is first, resume (the rest of a cut body), hedge (a second request beside a slow one), steal
(the end of a range that a slower NIC had begun), retry (again from the start), list or head. No
field holds a URL, a header or a key.

Several processes append to one file: a line is one write, and files are opened for appending. Each
write looks whether the path still means the same file, so that logrotate works without a signal.
"""

import contextlib
import logging
import logging.handlers
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

log = logging.getLogger(__name__)

KINDS = ("first", "resume", "hedge", "steal", "retry", "list", "head")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# what others say below a warning is noise, and botocore's debug lines hold what it signs
NOISY = ("httpx", "httpcore", "hypercorn", "botocore", "urllib3")

_LINE = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) object=([!-~]+) range=(?:-|(\d+)-(\d*))"
    rf" status=(\d+) bytes=(\d+) ms=(\d+) request_id=([!-~]+) kind=({'|'.join(KINDS)})\n?",
    re.ASCII,
)


class AppendingHandler(logging.handlers.WatchedFileHandler):
    """Appends lines to a file that may be rotated, full or gone: it warns once and goes on.

    After a failure each line tries again, so that lines come back when there is space again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self._warned = self._torn = False
        with contextlib.suppress(OSError):  # the first line finds out, and says so
            path.parent.mkdir(parents=True, exist_ok=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or lose it."""
        try:
            super().emit(record)
        except OSError as error:  # the file could not be opened again
            self._failed(error)

    def handleError(self, record: logging.LogRecord) -> None:
        """A write failed. Anything else is a bug in a log call, and logging shows it."""
        try:
            raise
        except OSError as error:
            self._failed(error)
        except Exception:
            super().handleError(record)

    def _failed(self, error: OSError) -> None:
        stream, self.stream = self.stream, None  # the next line opens it again
        if stream is not None:
            with contextlib.suppress(OSError):  # what it still holds is lost, too
                stream.close()
            self._torn = True
        if not self._warned:
            self._warned = True
            log.warning("cannot append to %s: %s", self.baseFilename, error.strerror or error)

    def format(self, record: logging.LogRecord) -> str:
        """A line that begins on its own, even after half of another one."""
        start, self._torn = "\n" if self._torn else "", False
        return start + super().format(record)


def start_logging(level: str, log_path: Path | None) -> None:
    """Log to the terminal; with a file, everything there and only warnings on the terminal."""
    terminal: logging.Handler = logging.StreamHandler()
    handlers = [terminal]
    if log_path is not None:
        terminal.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
        handlers.append(AppendingHandler(log_path))
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, handlers=handlers)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One request to the origin, for bytes `start` to `end` (not included) of an object.

    `start` is None where no range was asked for; `end` is None for a range without an end.
    """

    time: datetime
    object: str
    start: int | None
    end: int | None
    status: int
    bytes: int
    ms: int
    request_id: str
    kind: str


class Audit:
    """The audit log; without a path it keeps none.

    Args:
      now: seconds since 1970; the wall's, for a log is read beside others.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._handler = None if path is None else AppendingHandler(path)

    def __repr__(self) -> str:
        return f"<Audit {self._handler.baseFilename if self._handler else 'off'}>"

    def record(
        self,
        object: str,
        start: int | None,
        end: int | None,
        status: int,
        bytes: int,
        ms: float,
        request_id: str,
        kind: str,
    ) -> None:
        """Append the line of a request that has ended; the fields are those of `AuditLine`.

        A disk that is full or cannot be written to costs lines, never the request.
        """
        if self._handler is None:
            return
        at = datetime.fromtimestamp(self._now(), UTC)
        line = AuditLine(at, object, start, end, status, bytes, round(ms), request_id, kind)
        self._handler.handle(logging.makeLogRecord({"msg": format_line(line)}))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            with contextlib.suppress(OSError):
                self._handler.close()


def format_line(line: AuditLine) -> str:
    """The line as it is in the file, without its end."""
    at = line.time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    asked = "-"
    if line.start is not None:
        asked = f"{line.start}-{'' if line.end is None else line.end - 1}"
    return (
        f"{at}Z object={_quoted(line.object)} range={asked} status={line.status} "
        f"bytes={line.bytes} ms={line.ms} request_id={_quoted(line.request_id)} "
        f"kind={line.kind}"
    )


def parse_line(line: str) -> AuditLine:
    """The inverse of `format_line`; an end of line is allowed.

    Raises:
      ValueError: not a whole line of the audit log.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("not a line of the audit log")
    at, name, start, end, status, count, ms, request_id, kind = match.groups()
    return AuditLine(
        datetime.fromisoformat(at),
        _unquoted(name),
        None if start is None else int(start),
        None if not end else int(end) + 1,
        int(status),
        int(count),
        int(ms),
        _unquoted(request_id),
        kind,
    )


def _quoted(text: str) -> str:
    if text in ("", "-"):
        return "%2D" if text else "-"
    return quote(text, errors="surrogatepass")


def _unquoted(text: str) -> str:
    return "" if text == "-" else unquote(text, errors="surrogatepass")
