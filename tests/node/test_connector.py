"""The connector's configuration file: what it means here, and what each mistake in it says."""

import json
from pathlib import Path

import pytest

from node import connector
from node.connector import ConnectorConfig, load, parse
from p2p.errors import UsageError

GUIDE = """
        {
            "logLevel": 1,
            "logPath": "/var/log/oss-connector/connector.log",
            "auditPath": "/var/log/oss-connector/audit.log",
            "expireTimeSec": 120,
            "prefetch": {
                "vcpus": 32,
                "workers": 16
            }
        }
"""


def test_the_file_of_the_guide_is_understood_whole():
    config, warnings = parse(GUIDE, "config.json")
    assert config == ConnectorConfig(
        log_level="info",
        log_path=Path("/var/log/oss-connector/connector.log"),
        audit_path=Path("/var/log/oss-connector/audit.log"),
        expire_s=120.0,
        vcpus=32,
        connections=16,
    )
    assert warnings == []


@pytest.mark.parametrize("text", ["{}", '{"prefetch": {}}', '{"logPath": "", "auditPath": ""}'])
def test_what_is_absent_or_an_empty_path_is_unset(text):
    assert parse(text, "f") == (ConnectorConfig(), [])


@pytest.mark.parametrize(
    ("number", "level"), [(0, "debug"), (1, "info"), (2, "warning"), (3, "error")]
)
def test_log_levels_are_the_connectors_numbers(number, level):
    assert parse(json.dumps({"logLevel": number}), "f")[0].log_level == level


def test_zero_seconds_are_zero_and_not_unset():
    assert parse('{"expireTimeSec": 0}', "f")[0].expire_s == 0.0


def test_the_connectors_own_affairs_are_passed_over_in_silence():
    text = json.dumps(
        {
            "fastList": {"vcpus": 1, "workers": 16},
            "datasetConfig": {"prefetchConcurrency": 24, "enableFastList": False},
            "checkpointConfig": {"uploadConcurrency": 64},
            "prefetch": {"vcpus": 2},
        }
    )
    assert parse(text, "f") == (ConnectorConfig(vcpus=2), [])


def test_each_unknown_key_gives_one_warning_that_names_it_and_never_its_value():
    text = '{"loglevel": 0, "prefetch": {"vcpu": 4, "workers": 3}, "key\\n2": {"secret": "s3cr3t"}}'
    config, warnings = parse(text, "/etc/c.json")
    assert config == ConnectorConfig(connections=3)
    assert len(warnings) == 3
    for warning, key in zip(
        sorted(warnings), ("'key\\n2'", "'loglevel'", "prefetch.vcpu"), strict=True
    ):
        assert "/etc/c.json" in warning
        assert key in warning
        assert "\n" not in warning
        assert "s3cr3t" not in warning


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"logLevel": "1"}', ["logLevel", "0 to 3", "a string"]),
        ('{"logLevel": 4}', ["logLevel", "0 to 3", "not 4"]),
        ('{"logLevel": -1}', ["logLevel", "not -1"]),
        ('{"logLevel": true}', ["logLevel", "true or false"]),
        ('{"logPath": 1}', ["logPath", "a path", "not 1"]),
        ('{"logPath": null}', ["logPath", "null"]),
        ('{"auditPath": ["/a"]}', ["auditPath", "a list"]),
        ('{"auditPath": "/a\\u0000b"}', ["auditPath", "printable"]),
        ('{"expireTimeSec": -1}', ["expireTimeSec", "not -1"]),
        ('{"expireTimeSec": 1.5}', ["expireTimeSec", "a fraction"]),
        ('{"expireTimeSec": 1e999}', ["expireTimeSec", "a fraction"]),
        ('{"expireTimeSec": 2147483648}', ["expireTimeSec", "2147483647"]),
        ('{"prefetch": 3}', ["prefetch", "an object", "not 3"]),
        ('{"prefetch": null}', ["prefetch", "an object", "null"]),
        ('{"prefetch": {"vcpus": 0}}', ["prefetch.vcpus", "from 1", "not 0"]),
        ('{"prefetch": {"vcpus": "32"}}', ["prefetch.vcpus", "a string"]),
        ('{"prefetch": {"workers": {}}}', ["prefetch.workers", "an object"]),
        ("[1]", ["the whole", "an object", "a list"]),
        ('{"logLevel": 1', ["not JSON", "line 1, column 15"]),
        ('{\n  "logLevel": 1\n  "logPath": ""\n}', ["not JSON", "line 3, column 3"]),
        ("", ["not JSON", "line 1"]),
        ("[" * 100_000, ["not JSON"]),
        ('{"logLevel": ' + "1" * 5000 + "}", ["not JSON"]),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(text, words):
    with pytest.raises(UsageError) as caught:
        parse(text, "config.json")
    said = str(caught.value)
    assert said.startswith("config.json: ")
    assert len(said.splitlines()) == 1
    assert len(said) < 300
    for word in words:
        assert word in said


def test_no_error_shows_a_text_out_of_the_file():
    for text in (
        '{"logLevel": "LTAI-s3cr3t"}', '{"prefetch": "s3cr3t"}', '{"logPath": {"key": "s3cr3t"}}',
        '{"auditPath": "s3cr3t\\n"}', '{"key": "s3cr3t"',
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            parse(text, "f")
        assert "s3cr3t" not in str(caught.value)


@pytest.fixture
def default(tmp_path, monkeypatch):
    """Where the connector's own file would be."""
    path = tmp_path / "etc" / "config.json"
    monkeypatch.setattr(connector, "DEFAULT_PATH", path)
    return path


def test_the_default_file_counts_only_if_it_is_wanted_and_there(default):
    assert load(None, use_default=True) == (ConnectorConfig(), [])
    default.parent.write_text("a file where the folder would be")
    assert load(None, use_default=True) == (ConnectorConfig(), [])
    default.parent.unlink()
    default.parent.mkdir()
    default.write_text('{"logLevel": 0}')
    assert load(None, use_default=True)[0].log_level == "debug"
    assert load(None, use_default=False) == (ConnectorConfig(), [])


def test_a_broken_default_file_is_not_passed_over(default):
    default.parent.mkdir()
    default.write_text("{")
    with pytest.raises(UsageError, match=r"config\.json: not JSON"):
        load(None, use_default=True)
    default.unlink()
    default.mkdir()
    with pytest.raises(UsageError, match=r"config\.json: Is a directory"):
        load(None, use_default=True)


def test_a_named_file_is_read_instead_of_the_default(default, tmp_path):
    default.parent.mkdir()
    default.write_text('{"logLevel": 0}')
    named = tmp_path / "mine.json"
    named.write_bytes(b"\xef\xbb\xbf" + b'{"expireTimeSec": 5, "x": 1}')
    config, warnings = load(named, use_default=True)
    assert config == ConnectorConfig(expire_s=5.0)
    assert len(warnings) == 1
    assert str(named) in warnings[0]


def test_a_named_file_must_be_there_and_be_text(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json: No such file"):
        load(tmp_path / "none.json", use_default=False)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UsageError, match=r"binary\.json: not UTF-8"):
        load(binary, use_default=False)
