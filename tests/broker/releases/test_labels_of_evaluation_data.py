"""The author's own file as evaluation data: its labels are read as the author's tools read them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.releases.hold_out import load_hold_out
from models.errors import UsageError
from models.task.spec import ArraySpec, TaskSpec

LABELS = np.arange(6) % 3
NAMES = ("ape", "bee", "cat")
X = np.zeros((6, 2), np.float32)
SPEC = TaskSpec(
    format=1,
    task="t",
    net="n",
    tensors=(),
    x=ArraySpec("float32", (2,)),
    y=ArraySpec("int64", ()),
    classes=3,
    loss="cross_entropy",
    metric="accuracy",
    optimizer="sgd",
    proximal=False,
    infer_input="x",
    infer_output="y",
    slots=(),
    class_names=NAMES,
)


@pytest.mark.parametrize(
    "y", [LABELS, LABELS[:, None], LABELS * 1.0, np.eye(3)[LABELS], np.array(NAMES)[LABELS]]
)
def test_labels_in_each_form_are_those_of_the_task(tmp_path: Path, y: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=y, test=np.arange(6) >= 2)
    assert load_hold_out(tmp_path / "d.npz", SPEC).y.tolist() == LABELS[2:].tolist()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": X, "y": np.array(["ape", "bea"] * 3)}, "y: 'bea' in row 1: no class of task t: did"),
        ({"data": X, "target": LABELS}, "x=d['data'], y=d['target'])"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_remedy(
    tmp_path: Path, arrays: dict[str, Any], says: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        load_hold_out(tmp_path / "d.npz", SPEC)
    assert says in str(caught.value)


def test_labels_go_by_the_names_that_the_file_gives_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=2 - LABELS, classes=NAMES[::-1])
    assert load_hold_out(tmp_path / "d.npz", SPEC).y.tolist() == LABELS.tolist()
    np.savez(tmp_path / "d.npz", x=X, y=LABELS, classes=["ape", "bee", "cow"])
    with pytest.raises(UsageError, match="classes: 'cow': no class of task t: the classes are ape"):
        load_hold_out(tmp_path / "d.npz", SPEC)
