"""`p2p-node join`: what flags, variables and the connector's file come to, and who wins.

Goal: a user of the connector changes one command and nothing else; no secret is ever shown.
Method: the command line is parsed as click does it, in an environment that the test sets alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node import cli, connector
from node import config as configuration
from node.config import JoinConfig
from node.origins.base import OriginOptions
from p2p.errors import UsageError

KEYS = {
    "OSS_ACCESS_KEY_ID": "id-s3cr3t",
    "OSS_ACCESS_KEY_SECRET": "key-s3cr3t",
    "OSS_SESSION_TOKEN": "session-s3cr3t",
    "AWS_ACCESS_KEY_ID": "aws-id-s3cr3t",
    "AWS_SECRET_ACCESS_KEY": "aws-key-s3cr3t",
    "AWS_SESSION_TOKEN": "aws-session-s3cr3t",
    "P2P_TOKEN": "cluster-s3cr3t",
}
OSS = {
    "OSS_ENDPOINT": "oss-cn-beijing-internal.aliyuncs.com",
    "OSS_REGION": "cn-beijing",
    "OSS_PATH": "oss://bucket/deepseek/R1/",
    "MODEL_DIR": "/tmp/model/R1/",
    "HTTP_SOURCE_IP": "172.16.6.121,172.16.6.122",
}
PREFIXES = ("OSS_", "AWS_", "P2P_", "HTTP_SOURCE_IP", "MODEL_DIR")


@pytest.fixture(autouse=True)
def connector_file(tmp_path, monkeypatch):
    """Where the connector's own file would be; nothing of this machine's environment counts."""
    for name in os.environ:
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    path = tmp_path / "etc" / "config.json"
    path.parent.mkdir()
    monkeypatch.setattr(connector, "DEFAULT_PATH", path)
    monkeypatch.setattr(configuration, "core_count", lambda: 6)
    return path


@pytest.fixture
def setenv(monkeypatch):
    """Set the variables of a dict."""

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def joined(*arguments: str) -> tuple[JoinConfig, list[str]]:
    """What `p2p-node join --tracker h:1 ARGUMENTS` is to do, and its warnings."""
    context = cli.join.make_context("join", ["--tracker", "h:1", *arguments])
    return cli._join_config(context.params)


def config_of(*arguments: str) -> JoinConfig:
    """The same of a command that gives no warning."""
    config, warnings = joined(*arguments)
    assert warnings == []
    return config


HTTP = ("--origin", "http://h/m/", "--model-dir", "/m")


# -- the drop-in --------------------------------------------------------------------------------


def test_with_the_connectors_variables_nothing_but_the_tracker_is_needed(setenv):
    setenv({**OSS, **KEYS})
    config = config_of()
    assert config.origin == "oss://bucket/deepseek/R1/"
    assert config.origin_options == OriginOptions(
        endpoint="oss-cn-beijing-internal.aliyuncs.com", region="cn-beijing"
    )
    assert config.model_dir == Path("/tmp/model/R1")
    assert config.cache_dir == Path("/tmp/model/.R1.shoal")
    assert config.source_ips == ("172.16.6.121", "172.16.6.122")
    assert (config.workers, config.connections) == (1, 4)


def test_the_connectors_own_file_is_taken_over_for_an_oss_origin(setenv, connector_file, tmp_path):
    setenv(OSS)
    settings = {
        "logLevel": 0,
        "logPath": str(tmp_path / "log" / "connector.log"),
        "auditPath": str(tmp_path / "log" / "audit.log"),
        "expireTimeSec": 120,
        "prefetch": {"vcpus": 4, "workers": 32},
    }
    connector_file.write_text(json.dumps(settings))
    config = config_of()
    assert (config.workers, config.connections, config.expire_s) == (4, 32, 120.0)
    assert (config.log_path, config.log_level) == (tmp_path / "log" / "connector.log", "debug")
    assert config.audit == tmp_path / "log" / "audit.log"


@pytest.mark.parametrize("origin", ["http://h/m/", "s3://bucket/m/", "file:///m", None])
def test_the_connectors_own_file_means_nothing_to_another_origin(origin, connector_file):
    connector_file.write_text('{"prefetch": {"vcpus": 4}}')
    given = ["--origin", origin] if origin else []
    assert config_of(*given, "--model-dir", "/m").workers == 1


def test_a_named_file_counts_whatever_the_origin_is(tmp_path):
    named = tmp_path / "mine.json"
    named.write_text('{"prefetch": {"vcpus": 4}}')
    assert config_of(*HTTP, "--connector-config", str(named)).workers == 4
    with pytest.raises(UsageError, match=r"none\.json"):
        joined(*HTTP, "--connector-config", str(tmp_path / "none.json"))


def test_unknown_keys_are_warnings(setenv, connector_file):
    setenv(OSS)
    connector_file.write_text('{"prefech": {}, "prefetch": {"vcpus": 2, "cpus": 1}}')
    config, warnings = joined()
    assert config.workers == 2
    assert [word for w in warnings for word in ("'prefech'", "'prefetch.cpus'") if word in w] == [
        "'prefech'", "'prefetch.cpus'",
    ]  # fmt: skip


# -- workers and connections ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vcpus", "cores", "flags", "workers"),
    [
        (4, 6, [], 4),
        (32, 6, [], 6),
        (32, 192, [], 32),
        (500, 192, [], 64),
        (None, 6, [], 1),
        (32, 6, ["--workers", "8"], 8),
        (32, 6, ["--workers", "0"], 0),
    ],
)
def test_workers_are_the_flags_else_the_connectors_at_most_the_cores_else_one(
    vcpus, cores, flags, workers, setenv, connector_file, monkeypatch
):
    setenv(OSS)
    monkeypatch.setattr(configuration, "core_count", lambda: cores)
    connector_file.write_text(json.dumps({"prefetch": {"vcpus": vcpus} if vcpus else {}}))
    assert config_of(*flags).workers == workers


@pytest.mark.parametrize(
    ("workers", "flags", "connections"),
    [
        (None, [], 4), (32, [], 32), (100_000, [], 256), (32, ["--connections", "1"], 1),
    ],
)  # fmt: skip
def test_connections_are_the_flags_else_the_connectors_else_four(
    workers, flags, connections, setenv, connector_file
):
    setenv(OSS)
    connector_file.write_text(json.dumps({"prefetch": {"workers": workers} if workers else {}}))
    assert config_of(*flags).connections == connections


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.undo()
    assert configuration.core_count() == len(os.sched_getaffinity(0))


# -- the origin's options -------------------------------------------------------------------------


def test_flags_win_over_variables(setenv, tmp_path):
    setenv({**OSS, "OSS_CREDENTIALS_FILE": "/var/keys.json"})
    config = config_of(
        "--origin", "oss://other/x/", "--model-dir", "/m", "--endpoint", "http://e",
        "--region", "r", "--addressing", "path", "--credentials", "/my/keys.json",
    )  # fmt: skip
    assert config.origin == "oss://other/x/"
    assert config.model_dir == Path("/m")
    assert config.origin_options == OriginOptions(
        endpoint="http://e", region="r", addressing="path", credentials_file=Path("/my/keys.json")
    )


def test_the_credentials_file_may_come_from_its_variable(setenv):
    setenv({**OSS, "OSS_CREDENTIALS_FILE": "/var/keys.json"})
    assert config_of().origin_options.credentials_file == Path("/var/keys.json")
    anonymous = config_of("--anonymous").origin_options
    assert (anonymous.anonymous, anonymous.credentials_file) == (True, None)


def test_the_connectors_variables_mean_nothing_to_s3(setenv):
    setenv({**OSS, **KEYS, "OSS_CREDENTIALS_FILE": "/k", "AWS_ENDPOINT_URL_S3": "http://aws"})
    options = config_of("--origin", "s3://bucket/m/", "--profile", "p").origin_options
    assert options == OriginOptions(profile="p"), "botocore reads its own"


def test_the_options_of_an_origin_that_the_tracker_names_are_found_later(setenv):
    setenv({**OSS, "OSS_PATH": ""})
    config = config_of("--region", "r")
    assert config.origin is None
    assert config.origin_options == OriginOptions(region="r")
    assert config.options_for("oss://b/m/") == OriginOptions(
        endpoint=OSS["OSS_ENDPOINT"], region="r"
    )
    assert config.options_for("OSS://b/m/") == config.options_for("oss://b/m/")
    assert config.options_for("s3://b/m/") == config.origin_options


def test_empty_variables_and_empty_flags_are_unset(setenv):
    setenv(dict.fromkeys([*OSS, *KEYS, "OSS_CREDENTIALS_FILE", "P2P_CACHE_DIR"], ""))
    config = config_of("--origin", "oss://b/m/", "--model-dir", "/m", "--endpoint", "")
    assert config.origin_options == OriginOptions()
    assert config.source_ips == ()
    assert config.token == b""
    assert config.cache_dir == Path("/.m.shoal")
    with pytest.raises(UsageError, match="MODEL_DIR"):
        joined()


def test_files_may_be_repeated_and_separated_by_commas():
    config = config_of(*HTTP, "--files", "a.gguf, d/b", "--files", "c,,a.gguf", "--files", "")
    assert config.origin_options.files == ("a.gguf", "d/b", "c")


@pytest.mark.parametrize("other", ["--credentials", "--profile"])
def test_to_be_anonymous_with_keys_is_a_contradiction(other):
    with pytest.raises(UsageError, match=f"--anonymous and {other}"):
        joined(*HTTP, "--anonymous", other, "x")


def test_follow_is_off_unless_asked_for():
    assert not config_of(*HTTP).follow
    assert config_of(*HTTP, "--follow").follow


# -- source addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1", ("10.0.0.1",)),
        (" 10.0.0.2 , 10.0.0.1,", ("10.0.0.2", "10.0.0.1")),
        ("10.0.0.1,10.0.0.1", ("10.0.0.1",)),
        ("fd00:0::1,10.0.0.1", ("fd00::1", "10.0.0.1")),
    ],
)
def test_source_addresses_keep_their_order(text, found, setenv):
    setenv({"HTTP_SOURCE_IP": text})
    assert config_of(*HTTP).source_ips == found


def test_source_addresses_may_be_repeated_or_listed_and_come_before_the_environment(setenv):
    setenv({"HTTP_SOURCE_IP": "10.0.0.9"})
    given = ("--source-ip", "10.0.0.1,10.0.0.2", "--source-ip", "10.0.0.3")
    assert config_of(*HTTP, *given).source_ips == ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    with pytest.raises(UsageError, match="--source-ip: 'eth0' is not an IP address"):
        joined(*HTTP, "--source-ip", "eth0")


def test_an_address_that_this_host_has_not_got_is_told_of_and_none_at_all_is_a_mistake():
    assert configuration.check_source_ips(()) == []
    assert configuration.check_source_ips(("127.0.0.1", "127.0.0.2")) == []
    (told,) = configuration.check_source_ips(("127.0.0.1", "192.0.2.1"))
    assert "192.0.2.1" in told
    with pytest.raises(UsageError, match=r"192\.0\.2\.1, 2001:db8::1: this host has no such"):
        configuration.check_source_ips(("192.0.2.1", "2001:db8::1"))


@pytest.mark.parametrize(
    ("mount", "folder"),
    [("m", "m"), ("m", "m/sub"), ("m/sub", "m"), ("link", "m/sub"), ("m/../m", "m")],
)
@pytest.mark.parametrize("name", ["--model-dir", "--cache-dir"])
def test_a_node_works_in_no_folder_that_it_mounts_on(tmp_path, mount, folder, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("m")
    options = ["--origin", "http://h/m/", "--mount", f"{tmp_path}/{mount}"]
    with pytest.raises(UsageError, match=f"{name} .* overlap"):
        joined(*options, name, f"{tmp_path}/{folder}")
    assert config_of(*options, name, f"{tmp_path}/m2").mount == tmp_path / mount


def test_several_addresses_to_listen_on_and_to_advertise():
    config = config_of(*HTTP, "--listen", "10.0.0.1:7", "--listen", "10.0.1.1:7")
    assert config.listen == (("10.0.0.1", 7), ("10.0.1.1", 7))
    assert config_of(*HTTP).listen == (("127.0.0.1", 0),)
    config = config_of(*HTTP, "--advertise", "a:1", "--advertise", "b:2", "--no-bind-device")
    assert config.advertise == (("a", 1), ("b", 2))
    assert not config.bind_device
    assert config_of(*HTTP).bind_device


@pytest.mark.parametrize("text", ["172.xx.x.xxx", "10.0.0.1 10.0.0.2", "eth0", "10.0.0.256"])
def test_what_is_no_address_is_named(text, setenv):
    setenv({"HTTP_SOURCE_IP": f"10.0.0.1,{text}"})
    with pytest.raises(UsageError, match="HTTP_SOURCE_IP") as caught:
        joined(*HTTP)
    assert repr(text) in str(caught.value)


# -- logs -----------------------------------------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path):
    """A path that nobody can write to, not even root."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "x.log"


def test_flags_win_over_the_connectors_paths_and_level(setenv, connector_file, tmp_path):
    setenv(OSS)
    theirs = tmp_path / "theirs"
    connector_file.write_text(
        json.dumps({"logLevel": 3, "logPath": str(theirs / "l"), "auditPath": str(theirs / "a")})
    )
    mine = tmp_path / "mine"
    config = config_of(
        "--audit", str(mine / "a"), "--log-file", str(mine / "l"), "--log-level", "info"
    )
    assert (config.audit, config.log_path, config.log_level) == (mine / "a", mine / "l", "info")
    assert mine.is_dir()
    assert not theirs.exists()


def test_the_connectors_paths_that_cannot_be_written_are_a_warning_each(
    setenv, connector_file, unwritable, tmp_path
):
    setenv(OSS)
    connector_file.write_text(json.dumps({"logLevel": 0, "logPath": str(unwritable)}))
    config, warnings = joined()
    assert (config.log_path, config.log_level) == (None, "warning"), "a debug log is for a file"
    assert len(warnings) == 1
    assert str(unwritable) in warnings[0]
    connector_file.write_text(json.dumps({"auditPath": str(tmp_path)}))
    config, warnings = joined()
    assert config.audit is None
    assert len(warnings) == 1
    assert "Is a directory" in warnings[0]


@pytest.mark.parametrize("flag", ["--audit", "--log-file"])
def test_a_flag_that_cannot_be_written_is_an_error_that_names_it(flag, unwritable):
    with pytest.raises(UsageError) as caught:
        joined(*HTTP, flag, str(unwritable))
    assert flag in str(caught.value)
    assert str(unwritable) in str(caught.value)


def test_a_file_that_is_there_keeps_its_lines(tmp_path):
    (tmp_path / "audit.log").write_text("kept\n")
    config_of(*HTTP, "--audit", str(tmp_path / "audit.log"))
    assert (tmp_path / "audit.log").read_text() == "kept\n"


def test_no_file_is_made_for_a_command_that_is_wrong(tmp_path, setenv):
    setenv({"HTTP_SOURCE_IP": "x"})
    with pytest.raises(UsageError):
        joined(*HTTP, "--audit", str(tmp_path / "audit.log"))
    assert not (tmp_path / "audit.log").exists()


def test_without_any_of_it_only_warnings_are_shown():
    config = config_of(*HTTP)
    assert (config.log_path, config.audit, config.log_level) == (None, None, "warning")
    assert config_of(*HTTP, "--log-level", "debug").log_level == "debug"


# -- the whole command ----------------------------------------------------------------------------

STUB = """
import logging, sys, types
async def run(config):
    logging.getLogger("node.daemon").info("workers=%d", config.workers)
    logging.getLogger("node.daemon").warning("config=%r", config)
    return 7
sys.modules["node.daemon"] = types.SimpleNamespace(run=run)
from node.cli import main
main()
"""


def run(*arguments: str, code: str = "from node.cli import main; main()", **variables: str):
    """A command in a process of its own, among planted secrets."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **OSS, **KEYS, **variables},
        check=False,
    )
    assert "s3cr3t" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_join_logs_to_the_file_and_shows_warnings_beside(tmp_path):
    named, log = tmp_path / "c.json", tmp_path / "log"
    named.write_text(json.dumps({"logLevel": 1, "logPath": str(log), "odd": 1}))
    done = run(
        "join", "--tracker", "h:1", "--connector-config", str(named), code=STUB,
        HTTP_SOURCE_IP="127.0.0.1,127.0.0.2",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    shown = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    odd = f"WARNING node.cli connector config {named}: unknown key 'odd' ignored"
    config = "WARNING node.daemon config=<JoinConfig cache_dir='/tmp/model/.R1.shoal' workers=1>"
    assert shown == [odd, config]
    logged = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    assert logged == [odd, "INFO node.daemon workers=1", config]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--connector-config", "none.json"], ["none.json", "No such file"]),
        (["--connector-config", "broken.json"], ["broken.json", "not JSON"]),
        (["--connector-config", "wrong.json"], ["wrong.json", "prefetch.vcpus", "a string"]),
        (["--audit", "broken.json/x"], ["--audit", "broken.json/x"]),
        (["--anonymous", "--profile", "x"], ["--anonymous", "--profile"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"key": "s3cr3t", ')
    Path("wrong.json").write_text('{"prefetch": {"vcpus": "s3cr3t"}}')
    done = run("join", "--tracker", "h:1", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["join", "--help"]])
def test_help_is_quick_and_shows_no_secret(arguments):
    heavy = ("trio", "httpx", "botocore", "alibabacloud_oss_v2", "oss2", "node.connector")
    code = (
        "import sys\nfrom node.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        f"assert not set({heavy!r}) & set(sys.modules), 'imported'\n"
    )
    done = run(*arguments, code=code)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    for option in ("--endpoint", "--follow", "--connector-config") if "join" in arguments else ():
        assert option in done.stdout


def test_what_a_config_shows_of_itself_holds_no_secret(setenv):
    setenv({**OSS, **KEYS})
    config = config_of("--origin", "https://user:s3cr3t@h/m?sig=s3cr3t")
    assert config.token == b"cluster-s3cr3t"
    assert "s3cr3t" in (config.origin or "")
    assert "s3cr3t" not in repr(config)
    assert "s3cr3t" not in str(config)
