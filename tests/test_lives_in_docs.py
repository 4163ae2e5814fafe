"""The pages show lives as their tables draw them: what happens, and what is on disk meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from models.life import Life
from models.protocol.update_life import ON_DEVICE, ON_SERVER

PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.md"
LIVES: dict[str, Life[Any, Any]] = {  # by the heading that they stand below
    "### On the device": ON_DEVICE,
    "### On the server": ON_SERVER,
}


@pytest.mark.parametrize("heading", LIVES)
def test_a_life_is_drawn_as_it_is(heading: str) -> None:
    life = LIVES[heading]
    section = PROTOCOL.read_text("utf-8").partition(f"\n{heading}\n")[2].partition("\n#")[0]
    assert f"```mermaid\n{life.diagram()}\n```" in section
    for state, kept in life.durable.items():
        assert f"| {state} | {kept} |" in section.splitlines()
