"""The version of edgefold that is installed."""

import functools
from importlib import metadata

__all__ = ["version"]


@functools.cache
def version() -> str:
    """Return it, or "unknown" where this runs from a checkout that was never installed."""
    try:
        return metadata.version("edgefold")
    except metadata.PackageNotFoundError:
        return "unknown"
