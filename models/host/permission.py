"""What to say where files of a service are looked at by somebody who may not: not that nothing is
there.
"""

import errno
import os
from pathlib import Path

from models.errors import NoPermissionError

__all__ = ["is_forbidden", "not_allowed", "why"]

REMEDY = "it belongs to the service: run this with sudo"


def is_forbidden(error: Exception) -> bool:
    """Whether ``error`` is for want of permission."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)


def why(error: Exception) -> str:
    """Return the reason of ``error`` for people, with the remedy where it is for permission."""
    reason = str(getattr(error, "strerror", None) or error)
    return f"{reason}: {REMEDY}" if is_forbidden(error) else reason


def not_allowed(error: PermissionError, directory: Path | None = None) -> NoPermissionError:
    """Return ``error`` as a sentence; ``directory`` holds the state of the service."""
    where = Path(os.fsdecode(error.filename)) if error.filename else None
    as_whom = "it is refused to root, too" if os.geteuid() == 0 else "run this with sudo"
    if directory is not None and where is not None and where.is_relative_to(directory):
        return NoPermissionError(
            f"the state in {directory} belongs to the service: {as_whom} "
            f"(no permission for {where})"
        )
    return NoPermissionError(f"no permission for {where or 'a file'}: {as_whom}")
