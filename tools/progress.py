"""How far a long run is: a bar on a terminal, a line every few seconds elsewhere, on stderr."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["LINE_S", "Tell", "bar", "progress_line"]

LINE_S = 10.0  # between two lines, and before the first: short runs say nothing

Tell = Callable[[float, str], None]  # called with the share that is done (0..1) and a few words


@contextlib.contextmanager
def bar(*, shown: bool = True, what: str = "", every_s: float = LINE_S) -> Iterator[Tell]:
    """Yield what is to be called with the share that is done and a few words; from any thread.

    On a terminal with rich it is a bar that vanishes at the end; else a line on stderr every
    ``every_s`` seconds, which begins with ``what``, also while nothing new was told. With
    ``shown`` false it says nothing.
    """
    if not shown:
        yield lambda share, words: None
        return
    try:
        if not sys.stderr.isatty():
            raise ImportError
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        with _lines(what, every_s) as told:
            yield told
        return

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(
        *columns,
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share, words: progress.update(task, completed=share, description=words)


def progress_line(what: str, share: float, words: str, elapsed_s: float) -> str:
    """Return one line: "simulate: 40 %, day 3 of 7; 1:20 so far, about 2:00 to go"."""
    said = ", ".join(filter(None, [f"{100 * min(max(share, 0.0), 1.0):.0f} %", words]))
    line = f"{what}: {said}" if what else said
    line += f"; {_minutes(elapsed_s)} so far"
    if 0.02 < share < 1:  # before that, it would be a guess
        line += f", about {_minutes(elapsed_s * (1 - share) / share)} to go"
    return line


@contextlib.contextmanager
def _lines(what: str, every_s: float) -> Iterator[Tell]:
    began = time.monotonic()
    told: list[tuple[float, str]] = [(0.0, "")]
    over = threading.Event()

    def say() -> None:
        while not over.wait(every_s):
            line = progress_line(what, *told[-1], time.monotonic() - began)
            print(line, file=sys.stderr, flush=True)

    def hear(share: float, words: str) -> None:
        told[:] = [(share, words)]

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield hear
    finally:
        over.set()
        thread.join()


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
