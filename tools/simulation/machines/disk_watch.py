"""Watches the calls by which this process opens, changes and syncs files on virtual disks."""

import builtins
import io
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.simulation.machines.virtual_disk import VirtualDisk, disk_of, forget_disks
from tools.substituted import Substitution, substituted

__all__ = ["mounted"]


class _Writer(io.FileIO):
    """A file of a virtual disk, open for writing."""

    def __init__(self, disk: VirtualDisk, path: str, mode: str) -> None:
        self._disk = disk
        self._path = path
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        self._disk.touch(f"write {self._path}", writes=len(data))
        return super().write(data)


class _Watch:
    """Stands in for the functions of `os` and `open` that change disks, below ``root``.

    Each is the real one for every path that is not on a disk of ours.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root) + "/"
        self.real: dict[str, Any] = {
            name: getattr(os, name)
            for name in ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")
        }
        self.open = io.open
        self.connect_really = sqlite3.connect

    def disk(self, path: Any) -> tuple[VirtualDisk | None, str]:
        if isinstance(path, int | bytes):
            return None, ""
        text = os.fspath(path)
        if not isinstance(text, str):
            return None, ""
        return disk_of(text, self._root), text

    def watched_open(self, file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        disk, path = self.disk(file)
        if disk is None:
            return self.open(file, mode, *rest, **options)
        if not set(mode) & set("wax+"):
            disk.touch(f"read {path}", changes=False)
            return self.open(file, mode, *rest, **options)
        disk.touch(f"open {path}")
        is_new = not os.path.exists(path)
        before = b"" if is_new else Path(path).read_bytes()
        raw = _Writer(disk, path, mode.replace("b", "").replace("t", ""))
        disk.opened(path, os.fstat(raw.fileno()).st_ino, is_new=is_new, before=before)
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        disk, _ = self.disk(path)
        if disk is None:
            self.real["fsync"](descriptor)
            return
        disk.touch(f"sync {path}")
        if os.path.isdir(path):
            disk.synced_folder(path)
        else:
            disk.synced(os.fstat(descriptor).st_ino)

    def replace(self, src: Any, dst: Any, **options: Any) -> None:
        self._rename("replace", src, dst, options)

    def rename(self, src: Any, dst: Any, **options: Any) -> None:
        self._rename("rename", src, dst, options)

    def _rename(self, name: str, src: Any, dst: Any, options: dict[str, Any]) -> None:
        disk, old = self.disk(src)
        if disk is None:
            self.real[name](src, dst, **options)
            return
        disk.touch(f"rename {old} {dst}")
        if os.path.isfile(old):
            disk.renaming(old, os.fspath(dst))
        self.real[name](src, dst, **options)

    def unlink(self, path: Any, **options: Any) -> None:
        disk, text = self.disk(path)
        if disk is not None and os.path.isfile(text):
            disk.touch(f"unlink {text}")
            disk.unlinking(text)
        self.real["unlink"](path, **options)

    def mkdir(self, path: Any, *rest: Any, **options: Any) -> None:
        disk, text = self.disk(path)
        if disk is not None and not os.path.isdir(text):
            disk.touch(f"mkdir {text}")
        self.real["mkdir"](path, *rest, **options)

    def rmdir(self, path: Any, **options: Any) -> None:
        disk, text = self.disk(path)
        if disk is not None:
            disk.touch(f"rmdir {text}")
        self.real["rmdir"](path, **options)

    def changes(self) -> list[Substitution]:
        """Return what is replaced: owner, name, and by what."""
        return [
            (builtins, "open", self.watched_open),
            (io, "open", self.watched_open),
            (sqlite3, "connect", self.connect),
            (os, "remove", self.unlink),
            *((os, name, getattr(self, name)) for name in self.real if name != "remove"),
        ]

    def connect(self, path: Any, *rest: Any, **options: Any) -> Any:
        disk, text = self.disk(path)
        if disk is None:
            return self.connect_really(path, *rest, **options)
        return disk.connect(text)


@contextmanager
def mounted(root: Path, *, is_watched: bool = True) -> Iterator[None]:
    """Watch what this process does to the disks in ``root``; one such directory at a time.

    ``is_watched`` False: only keep their databases in memory, and sync nothing.
    """
    watch = _Watch(root)
    changes: list[Substitution] = [
        (sqlite3, "connect", watch.connect),
        (os, "fsync", lambda descriptor: None),
    ]
    try:
        with substituted(*(watch.changes() if is_watched else changes)):
            yield
    finally:
        forget_disks(f"{root}/")
