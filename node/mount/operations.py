"""What the kernel asks of the mount, answered from the node's cache. Read-only.

Each request is a task; one that waits for bytes waits in a thread, so that no other one waits for
it. What is here is answered from a mapping of the cache file, without a copy of ours; the kernel
keeps it in its page cache. Not a zero is ever made up: what cannot be had is EIO, with a log line.

The trap: a program that maps a file with MAP_POPULATE asks for a page whose read has failed again
and again, in the kernel, until it is killed. Such a storm is logged and slowed down.
"""

import contextlib
import errno
import logging
import os
import stat
from dataclasses import dataclass

import pyfuse3
import trio

from node.mount.tree import Inode, Tree
from node.reader.aio import wait_here
from node.reader.attachment import Attachment
from node.reader.source import Source

log = logging.getLogger(__name__)

FOR_EVER_S = 30 * 24 * 3600.0  # nothing changes: the mount ends before its files do
BLOCK_BYTES = 4096  # of stat: what O_DIRECT is aligned to, and stdio reads at least
STORM_S, STORM, SLOWEST_S = 5.0, 8, 1.0


@dataclass(slots=True)
class _Failing:
    """Reads of one place that have failed, one soon after the other."""

    at: float = 0.0
    count: int = 0


class ModelOperations(pyfuse3.Operations):
    """The file system. It waits for `attached` or `failed`."""

    def __init__(self) -> None:
        super().__init__()
        self._ready = trio.Event()
        self._failed = self._said = ""
        self._attachment: Attachment
        self._tree: Tree
        self._open: dict[int, Source] = {}
        self._next_handle = 1
        self._failing: dict[tuple[int, int], _Failing] = {}

    def attached(self, attachment: Attachment) -> None:
        """The manifest is known."""
        self._attachment, self._tree = attachment, Tree(attachment.manifest)
        self._ready.set()

    def drop_pages(self, file: int) -> None:
        """The file is refused: what the page cache has of it goes. For a thread: the kernel waits
        for reads that are under way."""
        if self._ready.is_set() and not self._failed:
            inode = self._tree.files[file].number
            with contextlib.suppress(OSError):  # the kernel knows it no more
                pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))

    def failed(self, text: str) -> None:
        """It never will be."""
        self._failed = self._failed or text
        self._ready.set()

    async def _known(self) -> Tree:
        await self._ready.wait()
        if self._failed:
            raise pyfuse3.FUSEError(errno.EIO)
        return self._tree

    async def _inode(self, number: int) -> Inode:
        inode = (await self._known()).inodes.get(number)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return inode

    # -- names and attributes ---------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode.number)
        entry.generation = self._tree.generation
        entry.entry_timeout = entry.attr_timeout = FOR_EVER_S
        entry.st_mode = pyfuse3.ModeT(
            stat.S_IFDIR | 0o555 if inode.file is None else stat.S_IFREG | 0o444
        )
        entry.st_nlink = 2 if inode.file is None else 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = inode.size_bytes
        entry.st_blksize = BLOCK_BYTES
        entry.st_blocks = -(-inode.size_bytes // 512)
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A name in a folder."""
        inode = (await self._inode(parent_inode)).entries.get(name)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(inode)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Sizes are known before the first byte is here. So is the root, before anything is."""
        if inode == pyfuse3.ROOT_INODE and not self._ready.is_set():
            entry = pyfuse3.EntryAttributes()
            entry.st_ino, entry.st_nlink = pyfuse3.ROOT_INODE, 2
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
            entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
            return entry
        return self._attributes(await self._inode(inode))

    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Folders need no handle of their own."""
        await self._inode(inode)
        return pyfuse3.FileHandleT(inode)

    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """Entries from number `start_id` on."""
        folder = await self._inode(fh)
        for number, name in enumerate(sorted(folder.entries)[start_id:], start_id + 1):
            attributes = self._attributes(folder.entries[name])
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, number):
                return

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """The size of the model; nothing is free. Answered at once: it tells that we live."""
        answer = pyfuse3.StatvfsData()
        if not self._ready.is_set():
            return answer
        tree = await self._known()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = -(-self._attachment.manifest.total_bytes // BLOCK_BYTES)
        answer.f_files = len(tree.inodes)
        answer.f_namemax = 255
        return answer

    # -- bytes ------------------------------------------------------------------------------------

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """A handle; what the page cache holds stays good."""
        found = await self._inode(inode)
        if found.file is None:
            raise pyfuse3.FUSEError(errno.EISDIR)
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise pyfuse3.FUSEError(errno.EROFS)
        try:
            source = Source(self._attachment, found.file)
        except OSError as error:
            raise self._error(error) from error
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._open[handle] = source
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """The last descriptor of a handle is closed."""
        self._open.pop(fh).close()

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Bytes, when they are verified."""
        source = self._open[fh]
        end = min(off + size, source.size_bytes)
        if off >= end:
            return b""
        place = (source.file, off)
        try:
            source.note(off, end)
            while (data := source.try_read(off, end)) is None:
                await wait_here(source, off, end)
        except OSError as error:
            await self._slow_down(place)
            raise self._error(error) from error
        if place in self._failing:
            del self._failing[place]
        return data  # type: ignore[return-value]  # any buffer will do

    def _error(self, error: OSError) -> pyfuse3.FUSEError:
        text = error.strerror or str(error)
        if text != self._said:  # once, however many reads fail for it
            self._said = text
            log.error("mount: EIO: %s", text)
        return pyfuse3.FUSEError(errno.EIO)

    async def _slow_down(self, place: tuple[int, int]) -> None:
        now = trio.current_time()
        failing = self._failing.setdefault(place, _Failing())
        failing.count = min(60, failing.count + 1) if now - failing.at < STORM_S else 1
        if failing.count == STORM:
            path = self._attachment.manifest.files[place[0]].path
            log.error(
                "mount: %s: offset %d is asked for again and again after EIO: a program has mapped "
                "it with MAP_POPULATE, and hangs until it is killed", path, place[1],
            )  # fmt: skip
        if failing.count >= STORM:
            await trio.sleep(min(SLOWEST_S, 0.01 * 2 ** (failing.count - STORM)))
        failing.at = trio.current_time()
