"""Files whose names are new each time, as digests are: strings, no `Path`.

pathlib interns each name that it parses, and Python's table of interned strings keeps 16 bytes for
each, also of names that are gone, until it is full and built anew (docs/decisions/0006).
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["content_of", "delete", "patiently"]

Read = TypeVar("Read")

READ_AGAIN_S = (0.1, 1.0)


def content_of(path: str) -> bytes:
    """Return what the file holds.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    with open(path, "rb") as file:
        return file.read()


def patiently(read: Callable[[], Read]) -> Read:
    """Return what ``read`` returns; a disk that fails is given three chances within a second or so.

    Raises:
        OSError: as ``read`` the last time.
    """
    for rest_s in READ_AGAIN_S:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(rest_s)
    return read()


def delete(path: str) -> None:
    """Delete ``path`` if it is there; a power cut may bring it back."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
