"""A file that a person named on the command line: what is wrong with it is said in its name."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from models.errors import PayloadError, UsageError

__all__ = ["given"]


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
