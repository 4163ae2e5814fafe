"""docs/data.md: each example of its tables is run, and gives what the page says of it."""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_task import linear_model

from edge_agent.inbox import intake
from edge_agent.inbox.intake_job import Entry, IntakeJob, IntakeResult
from models.task.spec import encode_spec
from tools import cli
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset

pytest.importorskip("PIL.Image")

PAGE = (Path(__file__).parents[4] / "docs" / "data.md").read_text("utf-8")


class Row(NamedTuple):
    """One row of a table: its first cell in words, the others without their backticks."""

    what: str
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return self.what


def section(heading: str) -> str:
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def rows(heading: str) -> list[Row]:
    found = []
    for line in section(heading).splitlines():
        what, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        if cells and cells[0].startswith(("`np.", "`image.", "`Image.")):
            found.append(Row(what, tuple(cell.strip("`") for cell in cells)))
    return found


def lines_before(heading: str) -> str:
    """The fenced Python of the page up to the tables of a section."""
    end = PAGE.index(f"## {heading}\n") + len(section(heading))
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGE[:end], re.DOTALL))


TAKEN, REFUSED = rows("What the author's file has"), rows("What is refused there")
INBOX = rows("What a device takes")


def test_each_row_of_the_tables_is_an_example() -> None:
    tables = [line for line in PAGE.splitlines() if line.startswith("| ")]
    headings = [line for line in tables if "example |" in line]
    assert len(headings) == 4
    assert len(TAKEN) + len(REFUSED) + len(INBOX) == len(tables) - len(headings)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's lines define, in a folder with the models that it speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.move(linear_model(1), "one.onnx")
    shutil.move(linear_model(3), "three.onnx")
    write_positions(Path("moments.onnx"), (10, 2), 3)
    write_positions(Path("pixels.onnx"), (4, 4), 2)
    values: dict[str, Any] = {}
    exec(lines_before("What a device takes"), values)
    return values


def write_positions(path: Path, shape: tuple[int, int], classes: int) -> None:
    """A model with classes at each position: of [10, 2] it makes [10, 3], of [4, 4] [4, 4, 2]."""
    column = shape[1] != 4
    weights = np.random.default_rng(0).normal(size=(shape[1] if column else 1, classes))
    nodes = [helper.make_node("MatMul", ["x" if column else "deep", "w"], ["y"])]
    constants = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    if not column:
        nodes.insert(0, helper.make_node("Unsqueeze", ["x", "last"], ["deep"]))
        constants.append(numpy_helper.from_array(np.array([3]), "last"))
    answer = [shape[0], classes] if column else [*shape, classes]
    graph = helper.make_graph(
        nodes,
        "positions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *answer])],
        constants,
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def create(row: Row, page: dict[str, Any]) -> int:
    example, options, _ = row.cells
    exec(example, page)
    (file,) = Path().glob("d.*")
    words = ["task", "create", "t", *options.split(), "--data", str(file), "--out", "t"]
    return cli.main(words)


@pytest.mark.parametrize("row", TAKEN, ids=str)
def test_what_is_taken_is_understood_as_the_page_says(
    row: Row, page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(row, page) == 0
    assert row.cells[-1] in capsys.readouterr().out


@pytest.mark.parametrize("row", REFUSED, ids=str)
def test_what_is_refused_is_refused_with_the_remedy_of_the_page(
    row: Row, page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(row, page) == 2
    said = capsys.readouterr().err
    assert row.cells[-1] in said
    assert said.count("\n") == 1


def pets() -> bytes:
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)
    names = ("cat", "dog", "eel")
    data = Dataset("pets", x, np.arange(30) % 3, None, np.arange(30) % 5 == 0, False, names)
    return encode_spec(create_task("pets", data, TaskOptions(net="mlp")).spec)


PETS = pets()


def taken_in(root: Path) -> IntakeResult:
    folders = {name: root / name for name in ("inbox", "workspace", "train", "holdout")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    (root / "spec.json").write_bytes(PETS)
    entries = sorted(entry.name.encode() for entry in folders["inbox"].iterdir())
    job = IntakeJob(
        entries=tuple(Entry(name, 1e6, 1e6) for name in entries),
        spec=str(root / "spec.json"),
        holdout_share=0.2,
        max_count=1000,
        max_holdout=200,
        max_bytes=10_000_000,
        keep_rejected_bytes=10_000_000,
        keep_rejected_s=1e6,
        wall=2e9,
        **{name: str(folder) for name, folder in folders.items()},
    )
    return intake.take_in(job)


@pytest.mark.parametrize("row", INBOX, ids=str)
def test_a_device_does_with_it_what_the_page_says(
    row: Row, page: dict[str, Any], tmp_path: Path
) -> None:
    example, said = row.cells
    exec(example, page)
    result = taken_in(tmp_path)
    do, _, reason = said.partition(": ")
    if do.endswith("taken"):
        assert (result.added, result.rejected, result.waiting) == (int(do.split()[0]), (), ())
    elif do == "waits":
        ((_, (group,)),) = result.waiting
        assert reason in group.reason
    else:
        assert do == "rejected"
        assert reason in result.rejected[0]


def test_the_commands_on_folders_say_what_their_comments_promise(
    page: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        command, _, promise = line.partition("  #")
        assert cli.main(command.split()[1:]) == 0
        assert promise.strip() in capsys.readouterr().out
