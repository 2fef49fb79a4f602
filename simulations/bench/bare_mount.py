"""The least that a mount with pyfuse3 can cost: one file of random bytes, served from memory.

`python -m simulations.bench.bare_mount DIR SIZE` says `mounted`, and unmounts on SIGTERM.
"""

import errno
import mmap
import os
import signal
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

from node.mount.prepare import TYPE, raise_read_ahead
from p2p.units import MIB

NAME = b"x.bin"
INODE = pyfuse3.InodeT(2)
READ_AHEAD_KIB = 1024


class OneFile(pyfuse3.Operations):
    """Answers reads with slices."""

    def __init__(self, size: int) -> None:
        super().__init__()
        space = mmap.mmap(-1, size)
        for at in range(0, size, MIB):
            space[at : min(size, at + MIB)] = os.urandom(min(MIB, size - at))
        self._data = memoryview(space)

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.entry_timeout = entry.attr_timeout = 3600.0
        kind = stat.S_IFREG | 0o444 if inode == INODE else stat.S_IFDIR | 0o555
        entry.st_mode, entry.st_nlink = pyfuse3.ModeT(kind), 1
        entry.st_size = len(self._data) if inode == INODE else 0
        entry.st_blksize = 4096
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """The one name."""
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(INODE)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Root or file."""
        return self._attributes(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """As ours does it."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """A slice: no copy."""
        return self._data[off : off + size]  # type: ignore[return-value]


async def _greet(directory: Path) -> None:
    await trio.to_thread.run_sync(os.stat, directory)
    raise_read_ahead(directory, READ_AHEAD_KIB)
    os.write(1, b"mounted\n")


async def _serve(directory: Path, size: int) -> None:
    options = {*pyfuse3.default_options, "ro", "fsname=bare", f"subtype={TYPE.partition('.')[2]}"}
    pyfuse3.init(OneFile(size), str(directory), options)
    try:
        with trio.open_signal_receiver(signal.SIGTERM) as received:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_greet, directory)
                nursery.start_soon(pyfuse3.main)
                async for _ in received:
                    break
                pyfuse3.terminate()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]), int(sys.argv[2]))
