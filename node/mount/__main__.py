"""`python -m node.mount SETTINGS-JSON LEVEL`: the mount's process; started by `node.mount.keeper`.

It says `mounted` on standard output, or `failed` and why. It ends, and unmounts, when its node ends
or on SIGTERM; then whoever reads gets EIO.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

import pyfuse3
import trio

from node.audit import start_logging
from node.mount.operations import ModelOperations
from node.mount.prepare import TYPE, raise_read_ahead
from node.reader.attachment import Attachment

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024  # the most that one request of the kernel can carry
TASKS = 1000  # requests at once; each that waits has a thread


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def _options() -> set[str]:
    options = set(pyfuse3.default_options) | {f"subtype={TYPE.partition('.')[2]}", "fsname=shoal"}
    options.add("ro")
    if os.geteuid() == 0:  # as the model dir, which everyone may read
        options.add("allow_other")
    return options


def _mount(operations: ModelOperations, directory: Path) -> str:
    """Mount; why not, or nothing. What libfuse writes to standard error becomes the reason."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            pyfuse3.init(operations, str(directory), _options())
        except RuntimeError as error:
            said.seek(0)
            text = " ".join(said.read().decode(errors="replace").split())
            return text or str(error)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return ""


async def _greet(directory: Path) -> None:
    """The kernel has begun with us when it answers; before that it would forget the read-ahead."""
    await trio.to_thread.run_sync(os.stat, directory, abandon_on_cancel=True)
    if not raise_read_ahead(directory, READ_AHEAD_KIB):
        log.info("mount: the kernel's read-ahead cannot be raised here: reads are smaller")
    _say("mounted")


async def _attach(operations: ModelOperations, socket: Path) -> None:
    token = trio.lowlevel.current_trio_token()

    def attach() -> Attachment:
        return Attachment(socket, None, once=True)

    try:
        attachment = await trio.to_thread.run_sync(attach, abandon_on_cancel=True)
    except OSError as error:
        operations.failed(error.strerror or str(error))
        pyfuse3.terminate()
        return
    ended = trio.Event()
    session = attachment.session

    def tell() -> None:  # the thread may outlive the loop
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(ended.set)

    session.ended = tell
    operations.attached(attachment)
    session.refused = operations.drop_pages
    try:
        if not session.lost:
            await ended.wait()
        log.info("mount: %s", session.lost)
    finally:
        attachment.close()  # who waits for bytes gets an error
        operations.failed("the mount is ending")
        pyfuse3.terminate()


async def _terminate(task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as received:
        task_status.started()
        async for _ in received:
            return


async def _serve(directory: Path, socket: Path) -> None:
    operations = ModelOperations()
    async with trio.open_nursery() as nursery:

        async def until_told(task_status: trio.TaskStatus[None]) -> None:
            await _terminate(task_status)
            attaching.cancel()

        attaching = trio.CancelScope()
        await nursery.start(until_told)
        if text := _mount(operations, directory):
            _say(f"failed {text}")
            nursery.cancel_scope.cancel()
            return
        try:
            nursery.start_soon(_greet, directory)

            async def attach() -> None:
                with attaching:
                    await _attach(operations, socket)
                operations.failed("the mount is ending")
                pyfuse3.terminate()

            nursery.start_soon(attach)
            await pyfuse3.main(max_tasks=TASKS)
        finally:
            pyfuse3.close(unmount=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run until the node ends."""
    settings = json.loads(sys.argv[1])
    log_path = settings["log_path"]
    start_logging(sys.argv[2], Path(log_path) if log_path else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node says when to stop
    trio.run(_serve, Path(settings["directory"]), Path(settings["socket"]))


main()
