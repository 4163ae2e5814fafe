"""Space that is kept for a start on a full disk.

SQLite needs a few blocks (the index of its log) before it can even read a database that was closed
in good order. Without them a board that is switched on with a full disk would not run at all.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from models.errors import TransientError
from models.host.files import delete

__all__ = ["with_ballast"]

Opened = TypeVar("Opened")

SIZE = 512 * 1024


def with_ballast(directory: Path, opening: Callable[[], Opened]) -> Opened:
    """Return what ``opening`` returns; if it fails, it is called again without the ballast.

    Raises:
        OSError, TransientError: as ``opening`` the second time.
    """
    path = f"{directory}/ballast"
    try:
        opened = opening()
    except (OSError, TransientError):
        if not os.path.exists(path):
            raise
        delete(path)
        return opening()
    _keep(path)
    return opened


def _keep(path: str) -> None:
    """Make the ballast, unless it is there or there is no room for it."""
    try:
        if os.path.exists(path) and os.stat(path).st_blocks * 512 >= SIZE:
            return
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
    except OSError:
        with contextlib.suppress(OSError):
            delete(path)
