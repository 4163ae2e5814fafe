"""Tells "no permission" from "nothing there", and who has it."""

import os
from pathlib import Path

from models.errors import NoPermissionError

__all__ = ["not_allowed"]


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
