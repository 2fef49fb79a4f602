"""What a mount needs, checked before anything is downloaded; and what a crashed one left behind."""

import errno
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

from p2p.errors import UsageError

log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
TYPE = "fuse.shoal"
ENDING_S = 5.0  # the mount of a node that was killed a moment ago unmounts by itself
LOOK_S = 0.05


def prepare(directory: Path) -> None:
    """Make sure that `directory` can be mounted on: an empty folder, made if it is not there.

    Raises:
      UsageError: it cannot, in one line that says what is missing.
    """
    try:
        import pyfuse3  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--mount needs pyfuse3 ({error}): pip install 'shoal[fuse]', with Debian's "
            "libfuse3-dev, pkg-config and gcc; or use --model-dir"
        ) from error
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise UsageError(
            f"--mount needs {DEVICE}: {error.strerror} (in a container: --device /dev/fuse "
            "--cap-add SYS_ADMIN); or use --model-dir"
        ) from error
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UsageError("--mount needs fusermount3 (Debian's fuse3), or root; or use --model-dir")
    clean(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = any(directory.iterdir())
    except OSError as error:
        raise UsageError(f"--mount {directory}: {error.strerror}") from error
    if taken:
        raise UsageError(f"--mount {directory}: the folder is not empty")


def clean(directory: Path) -> None:
    """Remove what a mount of ours that has ended left on `directory`.

    Raises:
      UsageError: a mount that lives is there, or it cannot be removed.
    """
    end = time.monotonic() + ENDING_S
    while (device := mounted_at(directory)) is not None:
        if _dead(directory):
            log.warning("removing the mount that a crash left at %s", directory)
            unmount(directory)
            if mounted_at(directory) is not None:
                raise UsageError(
                    f"--mount {directory}: a crashed mount is there: as root, umount -l {directory}"
                )
        elif time.monotonic() > end:
            raise UsageError(f"--mount {directory}: another node is mounted there ({device})")
        else:
            time.sleep(LOOK_S)


def mounted_at(directory: Path) -> str | None:
    """The device (MAJOR:MINOR) of our file system on `directory`; None: none is there.

    The folder itself is not touched: a dead mount is no folder.
    """
    wanted = os.path.abspath(os.path.realpath(directory.parent) + "/" + directory.name)
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        point = words[4].encode().decode("unicode_escape").encode("latin-1").decode()
        if point == wanted:
            found = words[2] if after.split()[0] == TYPE else None
    return found


def _dead(directory: Path) -> bool:
    try:
        os.statvfs(directory)  # never answered from the kernel's caches
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(directory: Path) -> None:
    """Detach, even where a file is open."""
    commands = [["fusermount3", "-u", "-q", "-z", str(directory)]]
    if os.geteuid() == 0:
        commands.insert(0, ["umount", "-l", str(directory)])
    for command in commands:
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode == 0:
                return


def raise_read_ahead(directory: Path, kib: int) -> bool:
    """Let the kernel ask for more at once; False: that is not allowed here."""
    device = mounted_at(directory)
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(f"{kib}\n")
    except OSError:
        return False
    return True
