"""Credentials: where they come from, when they are read again, and that they are never shown.

Goal: a fetch is signed with what is good now, and no repr, error or log holds a secret.
Method: files that change under a clock of the test's; botocore's chain with a session of the test's
that counts how often it is asked.
"""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.credentials
import botocore.session
import pytest
import trio

from node.credentials import (
    Anonymous,
    AwsChain,
    Credentials,
    CredentialsFile,
    Fixed,
    from_environment,
    parse_credentials,
)
from p2p.errors import OriginError, UsageError

START = datetime(2024, 8, 2, 15, 4, 5, tzinfo=UTC)
SECRETS = ("id-s3cr3t", "key-s3cr3t", "token-s3cr3t")


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


def content(number: int = 1, left_s: float | None = 3600, **changes: object) -> str:
    """A credentials file; `left_s` counts from START, and a field of None is left out."""
    fields = {
        "AccessKeyId": f"id-s3cr3t-{number}",
        "AccessKeySecret": f"key-s3cr3t-{number}",
        "SecurityToken": f"token-s3cr3t-{number}",
    }
    if left_s is not None:
        fields["Expiration"] = (START + timedelta(seconds=left_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not None})


def assert_hidden(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text, text


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "credentials.json"


async def test_a_file_gives_its_four_fields(file, clock):
    file.write_text(content(left_s=3600))
    got = await CredentialsFile(file, clock).get()
    assert got == Credentials(
        "id-s3cr3t-1", "key-s3cr3t-1", "token-s3cr3t-1", START.timestamp() + 3600
    )


async def test_token_and_expiration_are_optional(file, clock):
    file.write_text(content(left_s=None, SecurityToken=None))
    source = CredentialsFile(file, clock)
    assert await source.get() == Credentials("id-s3cr3t-1", "key-s3cr3t-1")
    file.write_text(content(2))
    clock.now += 10 * 365 * 86400
    assert (await source.get()).access_key_id == "id-s3cr3t-1", "what does not expire is kept"


@pytest.mark.parametrize(
    ("left_s", "read_again_after_s"),
    [(3600, 3540), (300, 240), (100, 80), (10, 8)],
    ids=["an hour: 60 s before", "300 s: both agree", "100 s: a fifth", "10 s: a fifth"],
)
async def test_a_file_is_read_again_shortly_before_its_end(file, clock, left_s, read_again_after_s):
    file.write_text(content(1, left_s))
    source = CredentialsFile(file, clock)
    await source.get()
    file.write_text(content(2, 7200))
    clock.now += read_again_after_s - 0.001
    assert (await source.get()).access_key_id == "id-s3cr3t-1"
    clock.now += 0.001
    assert (await source.get()).access_key_id == "id-s3cr3t-2"


async def test_a_file_that_is_not_renewed_in_time_is_read_until_it_is(file, clock):
    file.write_text(content(1, 100))
    source = CredentialsFile(file, clock)
    await source.get()
    for after_s in (90, 99, 100, 500):
        clock.now = START.timestamp() + after_s
        assert (await source.get()).access_key_id == "id-s3cr3t-1", "the store's clock decides"
    file.write_text(content(2, 7200))
    assert (await source.get()).access_key_id == "id-s3cr3t-2"


async def test_a_refresh_reads_the_file_at_once(file, clock):
    file.write_text(content(1))
    source = CredentialsFile(file, clock)
    await source.get()
    file.write_text(content(2))
    assert (await source.get()).access_key_id == "id-s3cr3t-1"
    await source.refresh()
    assert (await source.get()).access_key_id == "id-s3cr3t-2"


async def test_a_half_written_file_does_not_end_what_still_works(file, clock, caplog):
    file.write_text(content(1, 100))
    source = CredentialsFile(file, clock)
    await source.get()
    file.write_text(content(2, 7200)[:-20])
    clock.now += 90
    assert (await source.get()).access_key_id == "id-s3cr3t-1"
    assert "going on with the former ones" in caplog.text
    assert_hidden(caplog.text)
    caplog.clear()
    clock.now += 10
    with pytest.raises(OriginError, match="is not JSON") as caught:
        await source.get()
    assert not caught.value.fatal, "it has worked, so it may work again"
    file.write_text(content(2, 7200))
    assert (await source.get()).access_key_id == "id-s3cr3t-2"


WRONG = {
    "empty": ("", "is not JSON"),
    "cut": (content()[:-5], "is not JSON"),
    "deep": ("[" * 60_000, "is not JSON"),
    "bytes": ("\x00\x01 key-s3cr3t", "is not JSON"),
    "list": ('["key-s3cr3t"]', "is not a JSON object"),
    "no id": (content(AccessKeyId=None), "lacks the field AccessKeyId"),
    "empty id": (content(AccessKeyId=""), "lacks the field AccessKeyId"),
    "no secret": (content(AccessKeySecret=None), "lacks the field AccessKeySecret"),
    "number": (content(AccessKeySecret=5), "its field AccessKeySecret is not a word"),
    "newline": (content(SecurityToken="token-s3cr3t\r\nX: y"), "its field SecurityToken is not"),
    "unicode": (content(AccessKeyId="id-s3cr3t-ä"), "its field AccessKeyId is not"),
    "no date": (content(Expiration="key-s3cr3t"), "its field Expiration is not like"),
    "year 0": (content(Expiration="0000-00-00T00:00:00Z"), "its field Expiration is not like"),
    "long": (content() + " " * 70_000, "is longer than"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
async def test_a_file_that_is_wrong_is_named_and_not_quoted(file, text, words):
    file.write_text(text)
    with pytest.raises(OriginError, match=words) as caught:
        await CredentialsFile(file).get()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.fatal, "it never worked: a mistake to be told at once"
    assert_hidden(str(caught.value))
    assert caught.value.__cause__ is None, "a parser's error quotes what it read"


async def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(OriginError, match=r"missing\.json: No such file") as caught:
        await CredentialsFile(tmp_path / "missing.json").get()
    assert caught.value.fatal


def test_an_expiration_without_a_zone_is_utc():
    data = content(Expiration="2024-08-02T15:04:05", left_s=None).encode()
    assert parse_credentials(data).expires_at == START.timestamp()


@pytest.fixture
def variables(monkeypatch):
    """Set the three variables of OSS, and no others."""

    def set_to(key_id: str, secret: str, token: str) -> None:
        monkeypatch.setenv("OSS_ACCESS_KEY_ID", key_id)
        monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", secret)
        monkeypatch.setenv("OSS_SESSION_TOKEN", token)

    return set_to


async def test_the_environment_gives_keys_and_perhaps_a_token(variables):
    variables("id-s3cr3t", "key-s3cr3t\n", "")
    assert await from_environment().get() == Credentials("id-s3cr3t", "key-s3cr3t")
    variables("id-s3cr3t", "key-s3cr3t", "token-s3cr3t")
    assert await from_environment().get() == Credentials("id-s3cr3t", "key-s3cr3t", "token-s3cr3t")


async def test_an_environment_without_keys_means_anonymous(variables):
    variables("", "", "")
    source = from_environment()
    assert isinstance(source, Anonymous)
    assert await source.get() is None


def test_half_of_a_pair_is_a_mistake(variables):
    variables("id-s3cr3t", "", "")
    with pytest.raises(UsageError, match="OSS_ACCESS_KEY_SECRET is not set") as caught:
        from_environment()
    assert_hidden(str(caught.value))
    variables("", "key-s3cr3t", "")
    with pytest.raises(UsageError, match="OSS_ACCESS_KEY_ID is not set") as caught:
        from_environment()
    assert_hidden(str(caught.value))
    variables("id-s3cr3t", "key s3cr3t key-s3cr3t", "")
    with pytest.raises(UsageError, match="OSS_ACCESS_KEY_SECRET holds characters") as caught:
        from_environment()
    assert_hidden(str(caught.value))


async def test_no_repr_shows_a_secret(file):
    file.write_text(content())
    source = CredentialsFile(file)
    credentials = await source.get()
    for thing in (credentials, source, Fixed(credentials), [credentials], Anonymous()):
        assert_hidden(repr(thing))
        assert_hidden(f"{thing}")


class Session:
    """Stands in for botocore.session.Session: counts, and gives what the test has prepared."""

    made = 0
    gives: list[object] = []  # noqa: RUF012 (set anew by each test)

    def __init__(self, profile: str | None = None) -> None:
        type(self).made += 1

    def get_credentials(self) -> object:
        """The next of `gives`; an exception is raised."""
        given = self.gives.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


@pytest.fixture
def session(monkeypatch) -> type[Session]:
    """AwsChain asks this session."""
    Session.made, Session.gives = 0, []
    monkeypatch.setattr(botocore.session, "Session", Session)
    return Session


async def test_the_chain_is_asked_once_for_what_does_not_expire(session):
    session.gives = [botocore.credentials.Credentials("a", "b", "c")]
    chain = AwsChain()
    assert await chain.get() == Credentials("a", "b", "c")
    assert await chain.get() == Credentials("a", "b", "c")
    assert session.made == 1


async def test_a_chain_that_finds_nothing_is_anonymous_and_not_asked_again(session):
    session.gives = [None]
    chain = AwsChain()
    assert await chain.get() is None
    assert await chain.get() is None
    assert session.made == 1


async def test_a_refresh_goes_through_the_chain_anew(session):
    session.gives = [
        botocore.credentials.Credentials("a", "b"),
        botocore.credentials.Credentials("c", "d"),
    ]
    chain = AwsChain()
    await chain.get()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(chain.refresh)
    assert await chain.get() == Credentials("c", "d")
    assert session.made == 2, "of many that were refused at once, one asks"


def refreshable(left_s: float, refreshes: list[str]) -> botocore.credentials.RefreshableCredentials:
    """A role's credentials that end in `left_s`; a refresh gives new ones for an hour, or fails."""

    def refresh() -> dict[str, str]:
        refreshes.append("asked")
        if refreshes.count("fail"):
            raise botocore.exceptions.CredentialRetrievalError(
                provider="x", error_msg="key-s3cr3t token-s3cr3t"
            )
        return {
            "access_key": "new", "secret_key": "new", "token": "new",
            "expiry_time": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }  # fmt: skip

    return botocore.credentials.RefreshableCredentials(
        "old", "old", "old", datetime.now(UTC) + timedelta(seconds=left_s), refresh, "test"
    )


async def test_a_role_near_its_end_is_renewed_by_botocore(session):
    refreshes: list[str] = []
    session.gives = [refreshable(60, refreshes)]
    chain = AwsChain()
    assert await chain.get() == Credentials("new", "new", "new")
    assert await chain.get() == Credentials("new", "new", "new")
    assert refreshes == ["asked"]


async def test_a_metadata_service_that_is_away_is_not_asked_for_each_request(session, caplog):
    """Within botocore's 15 minutes before the end, a failed renewal leaves what is still good."""
    caplog.set_level(logging.CRITICAL, "botocore")
    refreshes, clock = ["fail"], Clock()
    session.gives = [refreshable(800, refreshes)]
    chain = AwsChain(clock=clock)
    for _ in range(5):
        assert await chain.get() == Credentials("old", "old", "old")
    assert refreshes.count("asked") == 1
    clock.now += 10
    assert await chain.get() == Credentials("old", "old", "old")
    assert refreshes.count("asked") == 2


async def test_what_botocore_raises_is_told_without_what_it_quotes(session, caplog):
    caplog.set_level(logging.CRITICAL, "botocore")
    session.gives = [
        botocore.exceptions.ProfileNotFound(profile="prod"),
        botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="key-s3cr3t"),
        refreshable(60, ["fail"]),
        botocore.credentials.Credentials("a", "b"),
        ValueError("key-s3cr3t"),
    ]
    chain = AwsChain("prod")
    with pytest.raises(OriginError, match=r"profile \(prod\) could not be found") as caught:
        await chain.get()
    assert caught.value.fatal
    for _ in range(2):
        with pytest.raises(
            OriginError, match="AWS credentials: CredentialRetrievalError"
        ) as caught:
            await chain.get()
        assert_hidden(str(caught.value))
    assert await chain.get() == Credentials("a", "b")
    with pytest.raises(OriginError, match="AWS credentials: ValueError") as caught:
        await chain.refresh()
    assert not caught.value.fatal
    assert await chain.get() == Credentials("a", "b"), "what has worked stays"


async def test_botocores_own_chain_reads_profile_and_region(tmp_path, monkeypatch):
    """No stand-in: botocore's files and variables, as a user sets them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text(
        "[prod]\naws_access_key_id = id-s3cr3t\naws_secret_access_key = key-s3cr3t\n"
    )
    (tmp_path / "config").write_text("[profile prod]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    chain = AwsChain("prod")
    assert chain.region() == "eu-west-3"
    assert await chain.get() == Credentials("id-s3cr3t", "key-s3cr3t")
    assert_hidden(repr(chain))
    with pytest.raises(UsageError, match=r"profile \(dev\) could not be found"):
        AwsChain("dev").region()


def test_a_missing_botocore_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "botocore.session", None)
    with pytest.raises(UsageError, match=r"pip install 'shoal\[s3\]'"):
        AwsChain()
