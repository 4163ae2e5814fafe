"""What to say where files of a service are looked at by somebody who may not: not that nothing is
there.
"""

import errno

__all__ = ["is_forbidden", "why"]

REMEDY = "it belongs to the service: run this with sudo"


def is_forbidden(error: Exception) -> bool:
    """Whether ``error`` is for want of permission."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)


def why(error: Exception) -> str:
    """Return the reason of ``error`` for people, with the remedy where it is for permission."""
    reason = str(getattr(error, "strerror", None) or error)
    return f"{reason}: {REMEDY}" if is_forbidden(error) else reason
