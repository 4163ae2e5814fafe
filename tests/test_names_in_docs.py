"""What docs name is there, and what they list is complete: modules, operators, fields, files."""

import re
from pathlib import Path, PurePath

import msgspec
import pytest

from models.graph.gradients.gradients import GRADIENTS
from models.task.spec import TaskSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GRAPHS = (ROOT / "docs/training-graphs.md").read_text()


def test_the_page_on_training_graphs_lists_every_operator_with_a_gradient() -> None:
    table = GRAPHS.partition("| family | operators |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = re.findall(r"[A-Z]\w+", " ".join(row.split("|")[2] for row in table.splitlines()))
    assert sorted(listed) == sorted(GRADIENTS)


def test_the_page_on_training_graphs_names_every_module() -> None:
    head = "| module of `models/graph/` | what it does |\n|---|---|\n"
    table = GRAPHS.partition(head)[2].partition("\n\n")[0]
    named = set(
        re.findall(r"`(\w+\*?)`", " ".join(row.split("|")[1] for row in table.splitlines()))
    )
    there = {path.stem for path in (ROOT / "models/graph").rglob("*.py")} - {"__init__"}
    there = {"gradients*" if name.startswith("gradients") else name for name in there}
    assert named == there


def test_the_page_on_bundles_explains_every_field_of_a_spec() -> None:
    page = (ROOT / "docs/bundle.md").read_text()
    table = page.partition("| `spec.json` | meaning |\n|---|---|\n")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines()))
    assert sorted(named) == sorted(f.encode_name for f in msgspec.structs.fields(TaskSpec))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"\b(?:models|edge_agent|broker|tools|tests|systemd)/[\w./*-]+\w", text)
    gone = [name for name in named if not any(ROOT.glob(name)) and not ignored(name)]
    assert not gone
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][\w-]+)`", text)) <= targets
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]


def ignored(name: str) -> bool:
    """Whether a name is one of the tree that devices and servers have, not ours."""
    return name.startswith(("broker/broker.", "systemd/system"))


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_plan_of_the_house_names_is_there(page: str) -> None:
    named = re.findall(r"`([\w./*]+\.(?:py|md|sh))`", (ROOT / page).read_text())
    assert named
    there = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    missing = [name for name in named if not any(PurePath(path).match(name) for path in there)]
    assert missing == []


def test_the_plan_of_the_house_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {
        path.parent.name
        for package in ("models", "edge_agent", "broker", "tools")
        for path in (ROOT / package).rglob("__init__.py")
        if path.parent.parent != ROOT
    }
    deep = {"recurrent", "spatial", "bundle", "model"}  # rooms within a room that is named
    assert {room for room in rooms - deep if f"`{room}/`" not in page} == set()
