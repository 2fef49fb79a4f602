"""The audit log: lines that programs can read back, in a file that may be full, moved or gone."""

import logging
import resource
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.audit import KINDS, AppendingHandler, Audit, AuditLine, format_line, parse_line

AT = datetime(2026, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)
LINE = AuditLine(AT, "sub/a b.gguf", 0, 8388608, 206, 8388608, 93, "66F1A2B3", "first")
TEXT = (
    "2026-05-01T12:00:00.123Z object=sub/a%20b.gguf range=0-8388607 status=206 bytes=8388608 "
    "ms=93 request_id=66F1A2B3 kind=first"
)


def audit_of(path) -> Audit:
    """An audit log whose clock stands still."""
    return Audit(path, now=AT.timestamp)


def record(audit: Audit, name: str, **changes) -> None:
    """Any request, of one object."""
    fields = {
        "start": 0, "end": 10, "status": 206, "bytes": 10, "ms": 1.0, "request_id": "r",
        "kind": "first",
    }  # fmt: skip
    audit.record(name, **{**fields, **changes})


def names(path) -> list[str]:
    """The objects in a file, all of whose lines are to be whole."""
    return [parse_line(line).object for line in path.read_text().splitlines()]


def test_a_line_is_as_documented_and_says_the_range_as_http_does():
    assert format_line(LINE) == TEXT
    assert parse_line(TEXT + "\n") == LINE


def test_a_record_is_the_line_of_its_request_at_the_time_of_the_clock(tmp_path):
    audit = audit_of(tmp_path / "audit.log")
    audit.record("sub/a b.gguf", 0, 8388608, 206, 8388608, 93.4, "66F1A2B3", "first")
    audit.record("sub/", None, None, 0, 0, 2.6, "", "list")
    audit.close()
    assert (tmp_path / "audit.log").read_text().splitlines() == [
        TEXT,
        "2026-05-01T12:00:00.123Z object=sub/ range=- status=0 bytes=0 ms=3 request_id=- kind=list",
    ]


@given(
    st.builds(
        AuditLine,
        time=st.datetimes(min_value=datetime(1000, 1, 1)).map(
            lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000, tzinfo=UTC)
        ),
        object=st.text(),
        start=st.integers(0, 2**63),
        end=st.none() | st.integers(1, 2**63),
        status=st.integers(0, 999),
        bytes=st.integers(0, 2**63),
        ms=st.integers(0, 10**9),
        request_id=st.sampled_from(["", "-", "%2D", "a b", "x\ny kind=head"]) | st.text(),
        kind=st.sampled_from(KINDS),
    )
)
def test_any_line_reads_back_and_is_one_line_of_eight_fields(line):
    text = format_line(line)
    assert text.isascii()
    assert text.isprintable()
    assert len(text.split(" ")) == 8
    assert parse_line(text) == line


def test_a_name_that_is_no_unicode_reads_back_too():
    name = b"weights-\xff".decode(errors="surrogateescape")
    line = AuditLine(AT, name, None, None, 200, 0, 0, "", "head")
    assert parse_line(format_line(line)) == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        TEXT[:-3],
        TEXT + "x",
        TEXT + " " + TEXT,
        TEXT[:60] + TEXT,
        TEXT.replace("kind=first", "kind=other"),
        TEXT.replace("range=0-8388607", "range=-5"),
        TEXT.replace("status=206", "status=two"),
        TEXT.replace("sub/a%20b", "sub/a b"),
        TEXT.replace("sub/a%20b", "%ff"),
        TEXT.replace("-05-01", "-13-01"),
        TEXT.replace(".123Z", "Z"),
    ],
)
def test_what_is_not_a_whole_line_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  # each part has its own words
        parse_line(text)


def test_lines_are_appended_to_what_is_there_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "deep" / "er" / "audit.log"
    for name in ("a", "b"):
        audit = audit_of(path)
        record(audit, name)
        audit.close()
    assert names(path) == ["a", "b"]


def test_a_line_is_in_the_file_when_record_returns(tmp_path):
    audit = audit_of(tmp_path / "audit.log")
    record(audit, "a")
    assert names(tmp_path / "audit.log") == ["a"]
    audit.close()


def test_a_rotated_file_gets_no_more_lines_and_a_new_one_begins(tmp_path):
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    audit = audit_of(path)
    record(audit, "a")
    path.rename(old)
    record(audit, "b")
    record(audit, "c")
    audit.close()
    assert names(old) == ["a"]
    assert names(path) == ["b", "c"]


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audit = audit_of(None)
    record(audit, "a")
    audit.close()
    assert list(tmp_path.iterdir()) == []


def warnings_in(caplog) -> list[str]:
    """What was logged, all of which is to be warnings."""
    assert all(entry.levelno == logging.WARNING for entry in caplog.records)
    return [entry.getMessage() for entry in caplog.records]


def test_a_full_disk_costs_lines_and_one_warning_and_they_come_back(tmp_path, caplog):
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    audit = audit_of(path)
    for _ in range(3):
        record(audit, "lost")
    assert len(warnings_in(caplog)) == 1
    assert str(path) in caplog.text
    assert "No space left" in caplog.text
    path.unlink()
    for name in ("a", "b"):
        record(audit, name)
    audit.close()
    lines = [line for line in path.read_text().splitlines() if line]
    assert [parse_line(line).object for line in lines] == ["a", "b"]
    assert len(warnings_in(caplog)) == 1


def test_after_half_of_a_line_the_next_one_is_whole(tmp_path, caplog):
    path = tmp_path / "audit.log"
    audit = audit_of(path)
    record(audit, "a")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, hard))
        record(audit, "torn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    record(audit, "b")
    audit.close()
    first, half, last = path.read_text().splitlines()
    assert len(half) == 40, "the disk was full in the middle of a line"
    assert [parse_line(first).object, parse_line(last).object] == ["a", "b"]
    assert len(warnings_in(caplog)) == 1


def test_a_path_that_cannot_be_opened_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    audit = audit_of(tmp_path / "file" / "audit.log")
    for _ in range(3):
        record(audit, "a")
    audit.close()
    assert len(warnings_in(caplog)) == 1
    assert "Not a directory" in caplog.text


def test_a_folder_that_is_removed_fails_nobody(tmp_path, caplog):
    path = tmp_path / "folder" / "audit.log"
    audit = audit_of(path)
    record(audit, "a")
    path.unlink()
    path.parent.rmdir()
    record(audit, "lost")
    path.parent.mkdir()
    record(audit, "b")
    audit.close()
    assert names(path) == ["b"]
    assert len(warnings_in(caplog)) == 1


def test_a_log_file_that_fails_says_so_elsewhere_and_does_not_recurse(tmp_path, capsys):
    logger = logging.getLogger("node")
    full, seen = AppendingHandler(tmp_path / "full"), logging.StreamHandler(sys.stderr)
    (tmp_path / "full").symlink_to("/dev/full")
    logger.addHandler(full)
    logger.addHandler(seen)
    try:
        logging.getLogger("node.x").warning("one")
        logging.getLogger("node.x").warning("two")
    finally:
        logger.removeHandler(full)
        logger.removeHandler(seen)
        full.close()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in said] == ["cannot", "one", "two"]


PROGRAM = """
import logging, pathlib, sys
from node.audit import start_logging
start_logging(sys.argv[1], pathlib.Path(sys.argv[2]) if sys.argv[2:] else None)
for name in ("node.x", "botocore.auth", "httpx"):
    log = logging.getLogger(name)
    log.debug("%s debug", name); log.info("%s info", name)
    log.warning("%s warning", name); log.error("%s error", name)
"""


def run(*arguments: str) -> str:
    """What a program that logs shows on its terminal."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    return done.stderr


def shown(text: str) -> list[str]:
    """The messages of log lines."""
    return [" ".join(line.split(" ")[4:]) for line in text.splitlines()]


LOUD = [f"{name} {level}" for name in ("botocore.auth", "httpx") for level in ("warning", "error")]


def test_with_a_file_the_log_goes_there_and_the_terminal_shows_only_warnings(tmp_path):
    path = tmp_path / "made" / "node.log"
    terminal = run("debug", str(path))
    mine = [f"node.x {level}" for level in ("debug", "info", "warning", "error")]
    assert shown(path.read_text()) == mine + LOUD, "and what others sign is in no debug line"
    assert shown(terminal) == mine[2:] + LOUD


def test_a_quieter_level_than_warnings_is_quieter_on_the_terminal_too(tmp_path):
    errors = [f"{name} error" for name in ("node.x", "botocore.auth", "httpx")]
    assert shown(run("error", str(tmp_path / "log")))[0] == errors[0]
    assert "warning" not in "".join(shown(run("error", str(tmp_path / "log"))))


def test_without_a_file_the_terminal_shows_the_level(tmp_path):
    assert shown(run("info"))[:2] == ["node.x info", "node.x warning"]
