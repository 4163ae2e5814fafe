"""A progress bar for long runs, on a terminal only."""

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["bar"]


@contextlib.contextmanager
def bar(*, shown: bool) -> Iterator[Callable[[float, str], None]]:
    """Yield what is to be called with the share that is done and a few words."""
    if not shown:
        yield lambda share, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
