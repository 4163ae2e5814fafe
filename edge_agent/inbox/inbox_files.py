"""Files of the inbox as the child meets them: opened with care, removed only if still the same."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from edge_agent.samples.entry_fate import NotHereError, Wait

__all__ = [
    "Identity",
    "identity_of",
    "may_remove",
    "open_for_writing",
    "read_regular",
    "remove_same",
]


class Identity(NamedTuple):
    """Which file it is, and in which state."""

    inode: int
    size: int
    mtime_ns: int


def identity_of(status: os.stat_result) -> Identity:
    return Identity(status.st_ino, status.st_size, status.st_mtime_ns)


def read_regular(path: Path | str, *, max_bytes: int) -> tuple[bytes, Identity]:
    """Return what the file holds; a link is not followed and nothing but a file is opened.

    Raises:
        NotHereError: it is no regular file, or larger than ``max_bytes``.
        OSError: it is gone, or cannot be read.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise NotHereError(Wait.UNKNOWN, "not a file: a link, a folder or a device is not opened")
    with open(path, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if status.st_size > max_bytes:
            size, most = status.st_size / 1e6, max_bytes / 1e6
            raise NotHereError(
                Wait.LIMIT,
                f"{size:.0f} MB, at most {most:.0f} are taken at a time: split it, "
                "or raise storage.max_mb",
            )
        return file.read(max_bytes + 1), identity_of(status)


def _open(path: str, flags: int) -> int:
    """Open, but no link, and no pipe that waits for its writer: either may take a file's place."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def may_remove(path: Path | str) -> bool:
    """Whether the file could be removed, as far as one can tell without doing it."""
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    place = os.stat(folder)
    if not place.st_mode & stat.S_ISVTX:
        return True
    return os.geteuid() in (0, place.st_uid, os.lstat(path).st_uid)


def remove_same(path: Path | str, identity: Identity) -> None:
    """Remove the file if it is still in the state that ``identity`` tells; durable after a sync."""
    try:
        if identity_of(os.lstat(path)) == identity:
            os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return


def open_for_writing() -> frozenset[tuple[int, int]]:
    """Return device and inode of the files that processes have open for writing, if we may know."""
    found = set()
    for process in _listed("/proc"):
        if not process.isdigit():
            continue
        for number in _listed(f"/proc/{process}/fd"):
            try:
                with open(f"/proc/{process}/fdinfo/{number}", "rb") as file:
                    flags = file.read(200).partition(b"flags:")[2].split()
                if int(flags[0], 8) & os.O_ACCMODE != os.O_RDONLY:
                    status = os.stat(f"/proc/{process}/fd/{number}")
                    found.add((status.st_dev, status.st_ino))
            except (OSError, IndexError, ValueError):
                continue
    return frozenset(found)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
