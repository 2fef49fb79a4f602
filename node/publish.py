"""The model dir: files under their final names, each when complete and verified, never before.

A hard link into the cache where that is possible, else a copy. Nothing that we did not write is
removed; a file that differs is replaced only when that was asked for.
"""

import contextlib
import errno
import filecmp
import os
import shutil
from pathlib import Path

from node.store import ChunkStore
from p2p.errors import P2PError, StoreFull, UsageError
from p2p.manifest import Manifest


class ModelDir:
    """Where the user wants the model.

    Args:
      replace: overwrite existing files that differ.
    """

    def __init__(self, path: Path, manifest: Manifest, replace: bool) -> None:
        self.path = path
        self.manifest = manifest
        self._replace = replace

    def _target(self, file: int) -> Path:
        """The final name. A link on the way that leads out of the model dir is refused."""
        target = self.path / self.manifest.files[file].path
        if not target.parent.resolve().is_relative_to(self.path.resolve()):
            raise UsageError(f"{target.parent} is a link that leads out of the model dir")
        return target

    def check(self, store: ChunkStore) -> dict[int, Path]:
        """Existing files of the model's names and sizes that are not links to the cache.

        Raises:
          UsageError: a file of another size is there, and it is not to be replaced.
        """
        candidates, differing = {}, []
        for file, entry in enumerate(self.manifest.files):
            target = self._target(file)
            if not os.path.lexists(target):
                continue
            cached = store.file_path(file)
            if target.is_file() and cached.exists() and target.samefile(cached):
                continue
            if target.is_file() and target.stat().st_size == entry.size_bytes:
                candidates[file] = target
            elif not self._replace or target.is_dir():
                differing.append(entry.path)
        if differing:
            raise UsageError(_differ(differing))
        return candidates

    def publish(self, file: int, cached: Path) -> None:
        """Put a complete file under its final name. Repeating it changes nothing.

        Raises:
          UsageError: another file is there, and it is not to be replaced.
          StoreFull: there is no space; nothing is left behind, and it can be tried again.
          P2PError: the file cannot be written.
        """
        target = self._target(file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                if target.is_file() and target.samefile(cached):
                    return
                if target.is_file() and filecmp.cmp(target, cached, shallow=False):
                    return
                if not self._replace:
                    raise UsageError(_differ([self.manifest.files[file].path]))
            self._put(cached, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"{target}: {error.strerror}") from error
            raise P2PError(f"{target}: {error.strerror}") from error

    def withdraw(self, file: int) -> None:
        """Take back a file that this process has published, for a revision without it."""
        with contextlib.suppress(OSError):
            self._target(file).unlink()

    def _put(self, cached: Path, target: Path) -> None:
        temporary = target.with_name(f".{target.name[:200]}.shoal-new")
        temporary.unlink(missing_ok=True)
        try:
            os.link(cached, temporary)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # another filesystem, or one without hard links
            size, free = cached.stat().st_size, shutil.disk_usage(target.parent).free
            if size > free:
                raise StoreFull(
                    f"{target}: no space for a copy: {size} bytes, {free} free"
                ) from None
            try:
                shutil.copyfile(cached, temporary)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        temporary.chmod(0o444)
        temporary.replace(target)


def _differ(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"existing files differ from the model: {shown}; move them away, or use --replace"
