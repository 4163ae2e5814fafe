"""An npz in the inbox with labels as people write them: stored as the task's, or it waits."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny_fleet import blobs, tiny_spec

from edge_agent.samples.entry_fate import NotHereError
from edge_agent.samples.sample_files import read_npz
from models.errors import UsageError
from models.task.spec import TaskSpec

X, Y = blobs(6, seed=3)
Y = Y.astype(np.int64)
NAMES = ("ape", "bee", "cat")


def read(tmp_path: Path, spec: TaskSpec, **arrays: Any) -> np.ndarray:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    return read_npz(path.read_bytes(), spec, max_bytes=10**6)[1]


@pytest.mark.parametrize(
    "y",
    [
        Y.astype(np.uint8),
        Y[:, None],
        Y * 1.0,
        np.eye(3)[Y],
        np.eye(3, dtype=bool)[Y],
        np.array(NAMES)[Y],
        np.array(NAMES).astype(bytes)[Y],
        np.array(["0", "1", "2"])[Y],
        np.array(NAMES).astype(">U9")[Y][:, None],
    ],
)
def test_labels_in_each_form_become_those_of_the_task(tmp_path: Path, y: np.ndarray) -> None:
    found = read(tmp_path, tiny_spec(class_names=NAMES), x=X, y=y)
    assert found.dtype == np.int64
    assert found.tolist() == Y.tolist()


def test_a_name_that_no_class_has_waits_for_a_release_that_knows_it(tmp_path: Path) -> None:
    spec = tiny_spec(class_names=NAMES)
    with pytest.raises(NotHereError, match=r"y: 'bea' in row 5: .* did you mean 'bee'"):
        read(tmp_path, spec, x=X, y=np.array([*["ape"] * 5, "bea"]))
    with pytest.raises(NotHereError, match="no class of task blobs: a class is named by its num"):
        read(tmp_path, tiny_spec(), x=X, y=np.array(["ape"] * 6))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("x_train", "y_train", "x_test", "y_test"), "put both parts into one: d = np.load("),
        (("X", "Y"), "name them: d = np.load('FILE.npz'); np.savez('samples.npz', x=d['X'], y="),
        (("data", "target"), "x=d['data'], y=d['target'])"),
    ],
)
def test_a_layout_of_others_is_named_in_the_reason(
    tmp_path: Path, names: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, tiny_spec(), **dict.fromkeys(names, X))
    assert says in str(caught.value)
    assert json.dumps(str(caught.value))
    assert not isinstance(caught.value, NotHereError), "it is put aside, with its reason"


def test_numbers_of_a_regression_may_be_integers(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(
        tiny_spec(), loss="mse", metric="mse", classes=0, y=msgspec.structs.replace(
            tiny_spec().y, dtype="float32"
        )
    )  # fmt: skip
    assert read(tmp_path, spec, x=X, y=Y).dtype == np.float32
    assert read(tmp_path, spec, x=X, y=Y[:, None]).shape == (6,)


ORDER = np.array([2, 0, 1])  # what the task's labels are in a file that counts in another order
THEIRS = ["bee", "cat", "ape"]


@pytest.mark.parametrize("y", [ORDER[Y], ORDER[Y] * 1.0, np.eye(3)[ORDER[Y]], ORDER[Y][:, None]])
def test_labels_go_by_the_names_that_a_file_gives_them(tmp_path: Path, y: np.ndarray) -> None:
    spec = tiny_spec(class_names=NAMES)
    assert read(tmp_path, spec, x=X, y=y, classes=THEIRS).tolist() == Y.tolist()
    assert read(tmp_path, spec, x=X, y=Y, classes=[*NAMES, "dog"]).tolist() == Y.tolist()
    assert read(tmp_path, spec, x=X, y=np.array(NAMES)[Y], classes=THEIRS).tolist() == Y.tolist()
    assert read(tmp_path, tiny_spec(), x=X, y=Y, classes=THEIRS).tolist() == Y.tolist()


def test_a_file_with_a_class_that_the_task_does_not_name_waits(tmp_path: Path) -> None:
    spec = tiny_spec(class_names=NAMES)
    with pytest.raises(NotHereError, match="classes: 'bea': no class of task blobs: did you mean"):
        read(tmp_path, spec, x=X, y=np.arange(6) % 3, classes=["ape", "bea", "cat"])
    with pytest.raises(NotHereError, match=r"y: label 2, and the file's own classes are 0 to 1 \("):
        read(tmp_path, spec, x=X, y=np.arange(6) % 3, classes=["bee", "ape"])
