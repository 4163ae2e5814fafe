"""The environment of a child process that imports our packages, wherever it is started."""

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["child_environment"]

_ROOT = Path(__file__).resolve().parents[1]  # where our packages lie


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return our own environment with ``more`` in it, and our packages on PYTHONPATH."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **(more or {}), "PYTHONPATH": path}
