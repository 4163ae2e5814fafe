"""Tables of plain text: whole in a pipe, and as wide as the terminal on one. Pure but for print."""

import textwrap
from collections.abc import Collection, Sequence

__all__ = ["bytes_text", "one_line", "table_lines"]

GAP = "  "
LEAST_LAST = 20  # characters for the last column, before others give way; half of it at worst


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    dispensable: Collection[str] = (),
    left: Collection[str] = (),
) -> list[str]:
    """Return a heading and one line for each of ``rows``, with its last cell as long as it is.

    ``width``: characters of a line, at most; then the ``dispensable`` columns go as far as
    necessary, the first named first, and the last cell is wrapped. None: nothing is cut. ``left``
    are the columns of words; numbers stand on the right.
    """
    sizes = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    shown = list(range(len(columns)))
    last = shown[-1]

    def taken() -> int:
        return sum(sizes[i] + len(GAP) for i in shown[:-1])

    if width is not None:
        least = min(sizes[last], LEAST_LAST)
        for name in dispensable:
            if taken() + least > width and name in columns:
                shown.remove(columns.index(name))
    lines = []
    room = None if width is None else max(width - taken(), LEAST_LAST // 2)
    for row in (columns, *rows):
        cells = [
            row[i].ljust(sizes[i]) if columns[i] in left else row[i].rjust(sizes[i])
            for i in shown[:-1]
        ]
        pieces = [row[last]] if room is None else textwrap.wrap(row[last], room) or [""]
        lines.append(GAP.join([*cells, pieces[0]]).rstrip())
        lines += [" " * taken() + piece for piece in pieces[1:]]
    return lines


def one_line(text: str) -> str:
    """Return text from outside so that it cannot play with the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def bytes_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""
