"""The configuration file of the OSS Connector for AI/ML, as far as it means something here.

    {
      "logLevel": 1,                                      0 debug, 1 info, 2 warning, 3 error
      "logPath": "/var/log/oss-connector/connector.log",
      "auditPath": "/var/log/oss-connector/audit.log",
      "expireTimeSec": 120,                               how long readers' memory outlives its use
      "prefetch": {"vcpus": 32, "workers": 32}            data workers, connections of each
    }

Each key may be absent; an empty path is as good as absent. `fastList`, `datasetConfig` and
`checkpointConfig` are the connector's own affairs and are passed over. Any other key is a mistake
or of a later version: one warning, and it is ignored. A value of a wrong type is an error, and no
message shows a value that is not a number: people keep keys in files like this one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p.errors import UsageError

DEFAULT_PATH = Path("/etc/oss-connector/config.json")

LEVELS = ("debug", "info", "warning", "error")
PASSED_OVER = ("fastList", "datasetConfig", "checkpointConfig")
HIGHEST = 2**31 - 1  # the connector's numbers are C integers

_KINDS = {
    dict: "an object", list: "a list", str: "a string", bool: "true or false",
    float: "a fraction", type(None): "null",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """What the file says; `None` where it says nothing."""

    log_level: str | None = None
    log_path: Path | None = None
    audit_path: Path | None = None
    expire_s: float | None = None
    vcpus: int | None = None
    """of `prefetch`: how many data workers were asked for, whatever this machine has"""
    connections: int | None = None
    """`prefetch.workers`: origin requests at once of each of them"""


class _Section:
    """One object of the file: what nobody has taken from it at the end is unknown."""

    def __init__(self, name: str, prefix: str, content: Any) -> None:
        self._name, self._prefix = name, prefix
        if not isinstance(content, dict):
            raise self.wrong("", "an object", content)
        self._rest = dict(content)

    def wrong(self, key: str, wanted: str, value: Any) -> UsageError:
        """The error that says what a key's value should have been."""
        what = (self._prefix + key).rstrip(".") or "the whole"
        found = _KINDS.get(type(value)) or f"{value:d}"
        return UsageError(f"{self._name}: {what} must be {wanted}, not {found}")

    def take_int(self, key: str, lowest: int, highest: int = HIGHEST) -> int | None:
        """A whole number in bounds."""
        if key not in self._rest:
            return None
        value = self._rest.pop(key)
        if type(value) is not int or not lowest <= value <= highest:
            raise self.wrong(key, f"a whole number from {lowest} to {highest}", value)
        return value

    def take_path(self, key: str) -> Path | None:
        """A path; the empty string is none."""
        value = self._rest.pop(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, "a path", value)
        if not value.isprintable():
            raise UsageError(f"{self._name}: {self._prefix}{key} must be a path of printable text")
        return Path(value) if value else None

    def take_section(self, key: str) -> "_Section":
        """An object inside; an absent one is empty."""
        return _Section(self._name, f"{self._prefix}{key}.", self._rest.pop(key, {}))

    def pass_over(self, keys: tuple[str, ...]) -> None:
        """Take what means nothing here."""
        for key in keys:
            self._rest.pop(key, None)

    def warnings(self) -> list[str]:
        """One line for each key that nobody has taken."""
        return [f"{self._name}: unknown key {self._prefix + key!r} ignored" for key in self._rest]


def parse(text: str, name: str) -> tuple[ConnectorConfig, list[str]]:
    """The settings in `text`, and one warning for each unknown key; `name` is the file's, to show.

    Raises:
      UsageError: broken JSON, or a value of a wrong type; one line that names file and key.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{name}: not JSON: {error.msg} ({where})") from error
    except (ValueError, RecursionError) as error:  # a number, or a nesting, beyond all measure
        raise UsageError(f"{name}: not JSON that anyone would write: {error}") from error
    top = _Section(name, "", content)
    level = top.take_int("logLevel", 0, len(LEVELS) - 1)
    expire_s = top.take_int("expireTimeSec", 0)
    prefetch = top.take_section("prefetch")
    config = ConnectorConfig(
        log_level=None if level is None else LEVELS[level],
        log_path=top.take_path("logPath"),
        audit_path=top.take_path("auditPath"),
        expire_s=None if expire_s is None else float(expire_s),
        vcpus=prefetch.take_int("vcpus", 1),
        connections=prefetch.take_int("workers", 1),
    )
    top.pass_over(PASSED_OVER)
    return config, top.warnings() + prefetch.warnings()


def load(named: Path | None, *, use_default: bool) -> tuple[ConnectorConfig, list[str]]:
    """Read the named file, or else the connector's own if that is wanted and there.

    Raises:
      UsageError: the file cannot be read (a named one must exist), or `parse` refuses it.
    """
    if named is None and not use_default:
        return ConnectorConfig(), []
    path = named or DEFAULT_PATH
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        if named is None:
            return ConnectorConfig(), []
        raise UsageError(f"connector config {path}: {error.strerror}") from error
    except OSError as error:
        raise UsageError(f"connector config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"connector config {path}: not UTF-8") from error
    return parse(text, f"connector config {path}")
