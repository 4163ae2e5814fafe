"""A progress bar for long runs: on a terminal, where rich is installed; nothing elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["bar"]


@contextlib.contextmanager
def bar(*, shown: bool = True) -> Iterator[Callable[[float, str], None]]:
    """Yield what is to be called with the share that is done and a few words."""
    if not shown or not sys.stderr.isatty():
        yield lambda share, words: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda share, words: None
        return

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(
        *columns,
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=1.0)

        def told(share: float, words: str) -> None:
            progress.update(task, completed=share, description=words)

        yield told
