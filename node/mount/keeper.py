"""Starts the mount's process, starts it again when it dies, and ends it with the node."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import trio

from node.mount.prepare import prepare, unmount
from p2p.errors import P2PError, UsageError

log = logging.getLogger(__name__)

START_S, STOP_S = 30.0, 5.0
QUICK_DEATH_S, QUICK_DEATHS = 5.0, 3


def _command(directory: Path, socket: Path, log_path: Path | None) -> list[str]:
    settings = {
        "directory": str(directory.absolute()),
        "socket": str(socket.absolute()),
        "log_path": str(log_path or ""),
    }
    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    return [sys.executable, "-m", "node.mount", json.dumps(settings), level]


async def keep_mounted(
    directory: Path, socket: Path, log_path: Path | None, task_status: trio.TaskStatus[None]
) -> None:
    """Have the model at `directory`, until cancelled; starts when it is mounted.

    Raises:
      UsageError: it cannot be mounted.
      P2PError: the mount dies again and again.
    """
    command = _command(directory, socket, log_path)
    deaths = 0
    while True:
        began = trio.current_time()
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        try:
            await _mounted(process, directory)
            task_status.started()
            await process.wait()
        finally:
            await _end(process, directory)
        deaths = deaths + 1 if trio.current_time() - began < QUICK_DEATH_S else 1
        if deaths >= QUICK_DEATHS:
            raise P2PError(f"the mount at {directory} dies again and again: see the log")
        log.error("the mount at %s died: mounting again", directory)
        await trio.to_thread.run_sync(prepare, directory)
        task_status = trio.TASK_STATUS_IGNORED


async def _mounted(process: trio.Process, directory: Path) -> None:
    assert process.stdout is not None
    said = b""
    with trio.move_on_after(START_S):
        while not said.endswith(b"\n"):
            data = await process.stdout.receive_some(4096)
            if not data:
                break
            said += data
    word, _, text = said.decode(errors="replace").strip().partition(" ")
    if word != "mounted":
        raise UsageError(f"--mount {directory}: {text or 'the mount did not start'}; "
                         "or use --model-dir")  # fmt: skip
    log.info("the model is at %s", directory)


async def _end(process: trio.Process, directory: Path) -> None:
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(STOP_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
                await trio.to_thread.run_sync(unmount, directory)
        if process.stdout is not None:
            await process.stdout.aclose()
