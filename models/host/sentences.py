"""Words for people: names that strangers gave, and files that are not theirs to look at."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import NoPermissionError, UsageError

__all__ = ["LONGEST_NAME", "brief", "is_forbidden", "shown", "state_of_service", "unusable"]

LONGEST_NAME = 120  # letters of a file's name in a sentence
REMEDY = "it belongs to the service: run this with sudo"


def shown(name: str) -> str:
    """Return ``name`` as people can read it and UTF-8 can hold it, whatever is in a file's name."""
    return name if name.isprintable() else "".join(map(_shown, name))


def brief(name: str) -> str:
    """Return ``name`` as `shown`, for a sentence: without its middle if it is long."""
    text = shown(name)
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME // 2]}...{text[-LONGEST_NAME // 2 :]}"


def _shown(letter: str) -> str:
    if letter.isprintable():
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def is_forbidden(error: Exception) -> bool:
    """Whether ``error`` is for want of permission."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)


def unusable(what: Path | str, error: OSError) -> UsageError:
    """Return ``error`` about ``what``, a file of the service, with the remedy for permission."""
    reason = error.strerror or str(error)
    if is_forbidden(error):
        return NoPermissionError(f"{what}: {reason}: {REMEDY}")
    return UsageError(f"{what}: {reason}")


@contextmanager
def state_of_service(directory: Path) -> Iterator[None]:
    """Say of a file that may not be touched that it is the service's, whose state is there.

    Raises:
        NoPermissionError: for a `PermissionError` inside.
    """
    try:
        yield
    except PermissionError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else None
        whom = "it is refused to root, too" if os.geteuid() == 0 else "run this with sudo"
        said = f"no permission for {where or 'a file'}"
        if where is not None and where.is_relative_to(directory):
            said, whom = f"the state in {directory} belongs to the service", f"{whom} ({said})"
        raise NoPermissionError(f"{said}: {whom}") from error
