"""Replaces names of other modules for a while."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Substitution", "substituted", "told"]

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


def told(owner: type, name: str, tell: Callable[..., None]) -> Substitution:
    """Let ``tell`` hear of each call and what it returned; options come last, as one dict."""
    real = getattr(owner, name)

    def told(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        tell(found, *arguments, *([options] if options else []))
        return found

    return owner, name, told
