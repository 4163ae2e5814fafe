"""Files that only root may read, of which systemd hands a service copies (`LoadCredential=`).

A copy is made when the service starts, and is not renewed. So a file is called by where it really
is, in the settings and in every sentence, and its copy is taken where we may not read it ourselves:
`$CREDENTIALS_DIRECTORY/agent.password` for `/etc/edgefold/agent.password`.
"""

import os
from pathlib import Path

__all__ = ["outdated_copy", "readable"]

Version = tuple[int, int, int, int]  # of a file: changed at, modified at, inode, bytes

_taken: dict[Path, Version | None] = {}  # what the originals were when we first took their copies


def readable(path: Path) -> Path:
    """Return ``path``, or systemd's copy of it where we may not read it ourselves."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory or os.access(path, os.R_OK):
        return path
    copy = Path(directory, path.name)
    if not os.access(copy, os.R_OK) or copy.stat().st_size <= len("\n"):
        return path  # the units hand over an empty line for what is not there
    _taken.setdefault(path, _version(path))
    return copy


def outdated_copy() -> Path | None:
    """Return a file that has changed since systemd made the copy that we use, if there is one.

    Only a start of the service makes another copy. A file that is gone or empty now counts as a
    mistake: the copy is better.
    """
    for path, taken in _taken.items():
        now = None if os.access(path, os.R_OK) else _version(path)  # else we read it ourselves
        if now is not None and now[-1] > 0 and now != taken:
            return path
    return None


def _version(path: Path) -> Version | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ctime_ns, found.st_mtime_ns, found.st_ino, found.st_size
