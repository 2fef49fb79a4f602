"""The images that deploy/compose.yaml starts, with or without a registry.

With one: the Dockerfiles' public base is pulled, and packages come from PyPI while building.
Without: the base is made of the distribution's packages (`base`), and packages come as wheels
(`wheelhouse`). `build` finds out which.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from simulations.bench.processes import console
from simulations.cluster.engine import EngineError, NoEngine

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
WHEELHOUSE = DEPLOY / "wheelhouse"
IMAGES = {"shoal": (ROOT, "deploy/Dockerfile"), "shoal-origin": (DEPLOY, "origin.Dockerfile")}
PUBLIC_BASE, OWN_BASE = "python:3.11-slim-bookworm", "shoal-base"
PACKAGES = "python3,python3-venv,ca-certificates,fuse3"
LEFT_OUT = ("./dev/*", "./proc/*", "./sys/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")


def check_images(client: "docker.DockerClient") -> None:
    """See that all are there.

    Raises:
      NoEngine: one is not.
    """
    for name in IMAGES:
        if not has(client, name):
            raise NoEngine(f"the image {name} is not there: run `make image` first")


def has(client: "docker.DockerClient", name: str) -> bool:
    """The engine has this image."""
    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def build(client: "docker.DockerClient", base_image: str | None) -> None:
    """Build all images on a base.

    Args:
      base_image: None: the public one if it is there or can be pulled, else our own.

    Raises:
      EngineError: a step fails; with its last words.
    """
    base_image = base_image or _find_base(client)
    arguments = {"BASE_IMAGE": base_image}
    if base_image == OWN_BASE:
        wheelhouse()
        arguments["PIP_NO_INDEX"] = "1"
    for name, (context, dockerfile) in IMAGES.items():
        with console.status(f"building {name} on {base_image}"):
            _build(client, name, context, dockerfile, arguments)
        size = client.images.get(name).attrs["Size"] - client.images.get(base_image).attrs["Size"]
        console.print(f"{name}: {size / 1e6:.0f} MB over {base_image}", highlight=False)


def _find_base(client: "docker.DockerClient") -> str:
    if has(client, PUBLIC_BASE):
        return PUBLIC_BASE
    try:
        with console.status(f"pulling {PUBLIC_BASE}"):
            client.images.pull(PUBLIC_BASE)
    except DockerException as error:
        reason = " ".join((getattr(error, "explanation", None) or str(error)).split())
        console.print(f"{PUBLIC_BASE} cannot be pulled ({reason})", soft_wrap=True, highlight=False)
    else:
        return PUBLIC_BASE
    if not has(client, OWN_BASE):
        base(client)
    return OWN_BASE


def _build(
    client: "docker.DockerClient",
    name: str,
    context: Path,
    dockerfile: str,
    arguments: dict[str, str],
) -> None:
    said: list[str] = []
    lines: Iterator[dict[str, Any]] = client.api.build(
        path=str(context), dockerfile=dockerfile, tag=name, buildargs=arguments, rm=True,
        forcerm=True, decode=True,
    )  # fmt: skip
    try:
        for line in lines:
            said.append(line.get("stream", ""))
            if "error" in line:
                words = "".join(said)[-2000:].strip()
                raise EngineError(f"{words}\n{name} cannot be built: {line['error'].strip()}")
    except APIError as error:
        raise EngineError(f"{name} cannot be built: {' '.join(str(error).split())}") from error


def base(client: "docker.DockerClient") -> None:
    """Make a base of this distribution's packages: Python, authorities, fuse3. About a minute.

    Raises:
      EngineError: not as root, not on Debian, or debootstrap fails.
    """
    if os.geteuid() != 0:
        raise EngineError("a base image is made with debootstrap, which needs root")
    if shutil.which("debootstrap", path=f"{os.defpath}:/usr/sbin:/sbin") is None:
        raise EngineError("debootstrap is not installed (apt-get install debootstrap)")
    suite = _release().get("VERSION_CODENAME", "")
    with tempfile.TemporaryDirectory(prefix="shoal-base-") as folder:
        root = Path(folder) / "root"
        with console.status(f"{OWN_BASE}: a base of {suite}'s packages, about a minute"):
            command = [
                "debootstrap",
                "--variant=minbase",
                f"--include={PACKAGES}",
                suite,
                str(root),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"debootstrap failed: {(done.stdout + done.stderr)[-2000:].strip()}")
        without = [f"--exclude={pattern}" for pattern in LEFT_OUT]
        packing = subprocess.Popen(
            ["tar", "-C", str(root), *without, "-c", "."], stdout=subprocess.PIPE
        )
        assert packing.stdout is not None
        client.api.import_image_from_stream(packing.stdout, repository=OWN_BASE, tag="latest")
        packing.stdout.close()
        if packing.wait():
            raise EngineError("tar failed: the base image is not whole")
    console.print(f"{OWN_BASE}: {client.images.get(OWN_BASE).attrs['Size'] / 1e6:.0f} MB")


def _release() -> dict[str, str]:
    rows = Path("/etc/os-release").read_text().splitlines()
    return {name: value.strip('"') for name, _, value in (row.partition("=") for row in rows)}


def wheelhouse() -> None:
    """Wheels of everything that the image installs, made by this Python for a base with the same
    one. What is there already for these requirements is kept.

    Raises:
      EngineError: pip fails; with its last words.
    """
    lock = ROOT / "requirements" / "lock.txt"
    command = [sys.executable, str(DEPLOY / "wanted.py"), str(ROOT / "pyproject.toml")]
    wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    known = hashlib.sha256((wanted + lock.read_text() + sys.version).encode()).hexdigest()
    stamp = WHEELHOUSE / "made-for"
    if stamp.exists() and stamp.read_text() == known:
        return
    for old in WHEELHOUSE.glob("*.whl"):
        old.unlink()
    with console.status("making wheels"):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(WHEELHOUSE),
             "--constraint", str(lock), "setuptools>=77", *wanted.splitlines()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise EngineError(f"pip wheel failed: {done.stderr[-2000:].strip()}")
    stamp.write_text(known)
