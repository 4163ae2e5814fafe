"""The diagrams of lives in docs/protocol.md are those of the tables in the code."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from edge_agent.releases.release_life import RELEASE_LIFE
from models.life import Life
from models.protocol.update_life import ON_DEVICE, ON_SERVER, WITH_MEMORY

PAGE = Path(__file__).parents[1] / "docs/protocol.md"
LIVES: dict[str, Life[StrEnum, StrEnum]] = {  # heading on the page -> the table
    "The life of a release on a device": RELEASE_LIFE,  # type: ignore[dict-item]
    "The life of an update on its device": ON_DEVICE,  # type: ignore[dict-item]
    "The life of an update made against a memory": WITH_MEMORY,  # type: ignore[dict-item]
    "The life of an update on the server": ON_SERVER,  # type: ignore[dict-item]
}


def section(heading: str) -> str:
    return PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("heading", LIVES)
def test_the_page_shows_the_diagram_of_the_table(heading: str) -> None:
    assert f"```mermaid\n{LIVES[heading].diagram()}\n```\n" in section(heading)


@pytest.mark.parametrize("heading", LIVES)
def test_the_page_says_what_is_durable_in_each_state(heading: str) -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \|$", section(heading), re.MULTILINE)
    assert dict(rows[1:]) == {state.value: text for state, text in LIVES[heading].durable.items()}
