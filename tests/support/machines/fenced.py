"""The commands that a Markdown page tells its reader to type. Pure."""

import re
from typing import NamedTuple

__all__ = ["Command", "blocks", "commands"]

_HEADING = re.compile(r"^(#+) (.+)$")
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'")


class Command(NamedTuple):
    """One command, as it stands there: with its here-document, its comment and continued lines."""

    text: str
    block: int  # which fenced block of the section it stands in, from 0

    @property
    def promise(self) -> str:
        """What the comment at its end says of it; empty if there is none."""
        return self.text.partition("  # ")[2].strip()


def commands(page: str, heading: str) -> list[Command]:
    """Return what is fenced as ``sh`` in the section ``heading`` of ``page``, in order.

    Raises:
        ValueError: there is no such section, or it has no commands.
    """
    return [
        Command(text, number)
        for number, lines in enumerate(blocks(page, heading, "sh"))
        for text in _split(lines)
    ]


def blocks(page: str, heading: str, language: str) -> list[list[str]]:
    """Return the lines of each block fenced as ``language`` in the section ``heading``.

    Raises:
        ValueError: there is no such section, or no such block in it.
    """
    found: list[list[str]] = []
    lines: list[str] | None = None  # of the fence that we are in
    here, fenced_as = False, ""
    for line in page.splitlines():
        if lines is not None:
            if line != "```":
                lines.append(line)
                continue
            if here and fenced_as == language:
                found.append(lines)
            lines = None
        elif line.startswith("```"):
            lines, fenced_as = [], line.removeprefix("```")
        elif match := _HEADING.match(line):
            here = match[2] == heading
    if not found:
        raise ValueError(f"nothing fenced as {language} below {heading!r}")
    return found


def _split(lines: list[str]) -> list[str]:
    """Return the commands of a block: each with its here-document and continued lines."""
    texts: list[str] = []
    current: list[str] = []
    until = None  # the line that ends a here-document
    for line in lines:
        current.append(line)
        if until is None and (match := _HERE_DOCUMENT.search(line)):
            until = match[1]
        elif line == until:
            until = None
        if until is None and not line.endswith("\\"):
            texts.append("\n".join(current))
            current = []
    return [text for text in texts if text.strip()]
