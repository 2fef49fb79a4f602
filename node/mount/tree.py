"""Inodes of a manifest. The same revision always has the same ones, another one has others."""

from dataclasses import dataclass, field

from p2p.manifest import Manifest

ROOT = 1


@dataclass(slots=True)
class Inode:
    """A file (`file` is its index in the manifest) or a folder with its entries by name."""

    number: int
    file: int | None = None
    size_bytes: int = 0
    entries: dict[bytes, "Inode"] = field(default_factory=dict)


class Tree:
    """All inodes, by number."""

    def __init__(self, manifest: Manifest) -> None:
        # 24 bits count the folders and files of a revision (100,000 files at most)
        self._base = int.from_bytes(manifest.id[:4], "big") << 24
        self.generation = int.from_bytes(manifest.id[4:8], "big")
        self.root = Inode(ROOT)
        self.inodes = {ROOT: self.root}
        self.files: dict[int, Inode] = {}
        """by index in the manifest"""
        for number, file in enumerate(manifest.files):
            *folders, name = file.path.encode().split(b"/")
            folder = self.root
            for part in folders:
                if part not in folder.entries:
                    folder.entries[part] = self._add(Inode(0))
                folder = folder.entries[part]
            folder.entries[name] = self._add(Inode(0, number, file.size_bytes))
            self.files[number] = folder.entries[name]

    def _add(self, inode: Inode) -> Inode:
        inode.number = self._base + len(self.inodes) + ROOT
        self.inodes[inode.number] = inode
        return inode
