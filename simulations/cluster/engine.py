"""The Docker engine, and one compose project on it that leaves nothing behind.

The compose command starts a project; everything else goes through the docker SDK. Whatever the
engine made for a project carries the project's label, and `Project.remove` goes by that label until
nothing is left: it does not matter how far the compose command had come.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import docker
import docker.utils
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

COMPOSE_FILE = Path(__file__).resolve().parents[2] / "deploy" / "compose.yaml"
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"
NUMBER = "com.docker.compose.container-number"
Filters = dict[str, str | list[str] | bool]
DEFAULT_HOST = "unix:///var/run/docker.sock"
TIMEOUT_S = 60  # of one request to the engine: a loaded machine starts 16 containers at once
REMOVE_S, COMPOSE_STOP_S = 90.0, 20.0
AT_ONCE = 8  # requests while removing: the engine works on as many
QUIET_S = 0.5  # what the compose command had asked for last appears within that


class EngineError(RuntimeError):
    """What the engine or the compose command did not do; in one line."""


class NoEngine(EngineError):
    """There is no engine, or nothing to speak to it with."""


def connect() -> "docker.DockerClient":
    """The engine that DOCKER_HOST names, or the local one.

    Raises:
      NoEngine: none answers.
    """
    where = docker.utils.kwargs_from_env().get("base_url", DEFAULT_HOST)
    try:
        _reach(where)
        client = docker.from_env(timeout=TIMEOUT_S)
        client.ping()
    except (DockerException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        for word in ("No such file", "Permission denied", "Connection refused"):
            reason = word if word in reason else reason
        raise NoEngine(
            f"no Docker engine answers at {where} ({reason}): start one, or name it in DOCKER_HOST"
        ) from error
    return client


def _reach(where: str) -> None:
    """Connect once, with a socket of our own: the library leaves one open that is refused.

    Raises:
      OSError: nobody listens there.
    """
    if where.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(where.removeprefix("unix://"))


def compose_command() -> list[str]:
    """Compose 2 as the client's plugin, else docker-compose.

    Raises:
      NoEngine: neither is installed.
    """
    if shutil.which("docker"):
        asked = ["docker", "compose", "version"]
        if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return asked[:2]
    if found := shutil.which("docker-compose"):
        return [found]
    raise NoEngine("Docker Compose is not installed (apt-get install docker-compose)")


class Project:
    """One project of deploy/compose.yaml.

    Args:
      settings: the SHOAL_* variables that the file asks for.
      log: where the compose command's words go.
    """

    def __init__(
        self, client: "docker.DockerClient", name: str, settings: dict[str, str], log: Path
    ) -> None:
        self.client, self.name = client, name
        self._settings, self._log = settings, log
        self._compose = [*compose_command(), "-p", name, "-f", str(COMPOSE_FILE)]
        self._up: subprocess.Popen[bytes] | None = None

    @property
    def down_command(self) -> str:
        """What removes a kept project."""
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        return " ".join([*settings, *self._compose, "down", "-v"])

    def start(self, nodes: int) -> None:
        """Let the compose command begin; see `started`."""
        with self._log.open("ab") as log:
            self._up = subprocess.Popen(
                [*self._compose, "up", "-d", "--no-build", "--scale", f"node={nodes}"],
                env={**os.environ, **self._settings}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
            )  # fmt: skip

    def started(self) -> bool:
        """The compose command has ended.

        Raises:
          EngineError: it failed.
        """
        assert self._up is not None
        code = self._up.poll()
        if code:
            raise EngineError(f"docker compose up failed: {self._log.read_text()[-2000:].strip()}")
        return code == 0

    def containers(self, service: str) -> list[Container]:
        """The containers of a service, by number, whether they run or not."""
        labels = [f"{PROJECT}={self.name}", f"{SERVICE}={service}"]
        found = self.client.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        )
        return sorted(found, key=lambda one: int(one.labels[NUMBER]))

    def ended(self) -> list[str]:
        """Ids of the containers that have ended, with one request."""
        label: Filters = {"label": f"{PROJECT}={self.name}", "status": "exited"}
        return [
            one.id or ""
            for one in self.client.containers.list(all=True, sparse=True, filters=label)
        ]

    def remove(self) -> None:
        """Stop the compose command, then remove containers, volumes and networks.

        Raises:
          EngineError: something cannot be removed; named.
        """
        self._end_compose()
        end, last = time.monotonic() + REMOVE_S, time.monotonic()
        problem = ""
        while time.monotonic() - last < QUIET_S:
            left = self._left()
            if not left:
                time.sleep(0.1)
                continue
            with ThreadPoolExecutor(AT_ONCE) as pool:
                problem = next((text for text in pool.map(_attempt, left) if text), "")
            last = time.monotonic()
            if last > end:
                raise EngineError(f"project {self.name} cannot be removed: {problem}")

    def _left(self) -> list[Callable[[], Any]]:
        """How to remove what is there; networks and volumes go after what uses them."""
        label: Filters = {"label": f"{PROJECT}={self.name}"}
        containers = self.client.containers.list(all=True, sparse=True, filters=label)
        if containers:
            return [partial(one.remove, force=True, v=True) for one in containers]
        found: Iterable[Any] = self.client.networks.list(filters=label)
        return [one.remove for one in [*found, *self.client.volumes.list(filters=label)]]

    def _end_compose(self) -> None:
        if self._up is None or self._up.poll() is not None:
            return
        for number in (signal.SIGINT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._up.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._up.wait(COMPOSE_STOP_S)
                return


def _attempt(action: Callable[[], Any]) -> str:
    """Do it; what stands in the way. Something that is gone already does not."""
    try:
        action()
    except NotFound:
        return ""
    except APIError as error:
        return " ".join(str(error).split())
    return ""


# -- what happens to a container ------------------------------------------------------------------


def network_of(container: Container) -> str:
    """The name of its only network."""
    (name,) = container.attrs["NetworkSettings"]["Networks"]
    return str(name)


def ip_of(container: Container) -> str:
    """Its address on its only network; empty while it has none."""
    networks = container.attrs["NetworkSettings"]["Networks"].values()
    return next((str(one["IPAddress"]) for one in networks), "")


def pid_of(container: Container) -> int:
    """Its first process, as this machine numbers it; 0 when it does not run."""
    return int(container.attrs["State"]["Pid"])


def port_of(container: Container, port: int) -> int | None:
    """Where a port of it is published on this machine's loopback."""
    bound = container.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp")
    return int(bound[0]["HostPort"]) if bound else None


def run_in(container: Container, *words: str) -> bytes:
    """What a command printed that ran in it.

    Raises:
      EngineError: it failed.
    """
    code, output = container.exec_run(list(words))
    assert isinstance(output, bytes)  # as nothing else was asked for
    if code:
        said = output.decode(errors="replace").strip()
        raise EngineError(f"{container.name}: {words[0]} failed: {said}")
    return output


def tail(container: Container, lines: int = 20) -> str:
    """The end of its log."""
    return log_of(container, tail=lines).strip()


def log_of(container: Container, **which: Any) -> str:
    """What it has printed."""
    said = container.logs(**which)
    assert isinstance(said, bytes)  # as no stream was asked for
    return said.decode(errors="replace")
