"""Files that a person named on the command line: what is wrong with one is said in its name."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from models.errors import PayloadError, UsageError

__all__ = ["file_to_write", "given"]


@contextlib.contextmanager
def given(path: Path) -> Iterator[None]:
    """Read and understand the file ``path`` in here.

    Raises:
        UsageError: it is not there, or does not hold what was asked for.
    """
    try:
        yield
    except PayloadError as error:
        raise UsageError(f"{path}: {error}") from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def file_to_write(text: str) -> Path:
    """Return the path ``text``, before the long work whose result is to be written there.

    Raises:
        UsageError: there is no place for a file of that name.
    """
    path = Path(text)
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}")
    return path
