"""Replaces names of other modules for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["Substitution", "substituted"]

Substitution = tuple[Any, str, Any]  # owner, name, and by what


@contextlib.contextmanager
def substituted(*changes: Substitution) -> Iterator[None]:
    """Replace attributes for a while."""
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(saved):
            setattr(owner, name, value)
