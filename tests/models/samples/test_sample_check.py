"""One table of what is a sample of a task, and what is said of what is not."""

from typing import Any

import msgspec
import numpy as np
import pytest
from scored_task import SPEC

from models.errors import UsageError
from models.samples.sample_check import OtherTaskError, broken_rows, checked_x, samples_of
from models.task.spec import ArraySpec, TaskSpec

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
Y = np.array([0, 4, 2, 1, 3])
PIXELS = np.arange(20).reshape(5, 4)


def spec_of(
    x: str = "float32", y: str = "int64", y_shape: tuple[int, ...] = (), loss: str = ""
) -> TaskSpec:
    loss = loss or ("cross_entropy" if y.startswith("int") else "bce")
    return msgspec.structs.replace(
        SPEC,
        x=ArraySpec(x, (4,)),
        y=ArraySpec(y, y_shape),
        classes=5 if loss == "cross_entropy" else 0,
        loss=loss,
    )


def with_value(array: np.ndarray, row: int, value: Any) -> np.ndarray:
    changed = array.copy() if array.dtype.kind == "f" else array.astype(np.float64)
    changed.reshape(len(array), -1)[row, -1] = value
    return changed


TAKEN: dict[str, tuple[TaskSpec, np.ndarray, np.ndarray]] = {
    "as they are": (spec_of(), X, Y),
    "float64": (spec_of(), X.astype(np.float64), Y),
    "float16": (spec_of(), X.astype(np.float16), Y),
    "big-endian": (spec_of(), X.astype(">f4"), Y.astype(">i2")),
    "truth values for floats": (spec_of(), X > 0, Y),
    "truth values for bytes": (spec_of("uint8"), X > 0, Y),
    "pixels as int64": (spec_of("uint8"), PIXELS, Y),
    "int16 for int32": (spec_of("int32"), PIXELS.astype(np.int16), Y),
    "labels as bytes": (spec_of(), X, Y.astype(np.uint8)),
    "labels as uint64": (spec_of(), X, Y.astype(np.uint64)),
    "labels as whole floats": (spec_of(), X, Y.astype(np.float32)),
    "labels as truth values": (spec_of(), X, Y > 1),
    "labels in a column": (spec_of(), X, Y[:, np.newaxis]),
    "labels not in a column": (spec_of(y_shape=(1,)), X, Y),
    "yes and no as integers": (spec_of(y="float32"), X, (Y > 1).astype(np.int64)),
    "yes and no as truth values": (spec_of(y="float32"), X, Y > 1),
    "numbers as integers": (spec_of(y="float32", loss="mse"), X, Y),
    "none": (spec_of(), X[:0], Y[:0]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_means_the_same_is_taken_in_the_dtypes_of_the_spec(name: str) -> None:
    spec, x, y = TAKEN[name]
    found_x, found_y = samples_of(spec, x, y)
    assert (found_x.dtype, found_x.shape[1:]) == (spec.x.dtype, spec.x.shape)
    assert (found_y.dtype, found_y.shape[1:]) == (spec.y.dtype, spec.y.shape)
    np.testing.assert_array_equal(found_x, x.astype(spec.x.dtype))
    np.testing.assert_array_equal(found_y.reshape(-1), y.reshape(-1))
    assert not broken_rows(spec, x, y).any()
    np.testing.assert_array_equal(checked_x(spec, x), found_x)


def test_what_fits_already_is_not_copied() -> None:
    x, y = samples_of(spec_of(), X, Y)
    assert np.shares_memory(x, X)
    assert np.shares_memory(y, Y)


OF_ANOTHER_TASK: dict[str, tuple[TaskSpec, np.ndarray, np.ndarray, str]] = {
    "pixels for floats": (spec_of(), PIXELS.astype(np.uint8), Y, "x is uint8.*convert it"),
    "integers for floats": (spec_of(), PIXELS, Y, "x is int64.*convert it"),
    "floats for pixels": (spec_of("uint8"), X, Y, "x is float32.*0 to 255"),
    "floats for integers": (spec_of("int32"), X, Y, "x is float32"),
    "complex": (spec_of(), X + 1j, Y, "x is complex64.*numbers"),
    "other features": (spec_of(), X[:, :3], Y, r"x has shape \(5, 3\).*\(n, 4\)"),
    "one sample": (spec_of(), X[0], Y, r"x has shape \(4,\)"),
    "one number": (spec_of(), X[0, 0], Y, r"x has shape \(\)"),
    "two columns of labels": (spec_of(), X, np.stack([Y, Y], 1), r"y has shape \(5, 2\).*\(n,\)"),
    "no sequence": (spec_of(y_shape=(7,)), X, Y, r"y has shape \(5,\).*\(n, 7\)"),
}


@pytest.mark.parametrize("name", OF_ANOTHER_TASK)
def test_another_shape_or_dtype_is_named_with_what_to_do(name: str) -> None:
    spec, x, y, says = OF_ANOTHER_TASK[name]
    for refused in (samples_of, broken_rows):
        with pytest.raises(OtherTaskError, match=says):
            refused(spec, x, y)


BAD_ROWS: dict[str, tuple[TaskSpec, np.ndarray, np.ndarray, int, str]] = {
    "not a number": (spec_of(), with_value(X, 3, np.nan), Y, 3, "x: row 3 .*not finite"),
    "infinite": (spec_of(), with_value(X, 0, -np.inf), Y, 0, "x: row 0 .*not finite"),
    "too large": (spec_of(), with_value(X.astype(float), 2, 1e39), Y, 2, "x: row 2 .*too large"),
    "label not a number": (spec_of(), X, with_value(Y, 1, np.nan), 1, "y: row 1 .*not finite"),
    "label between": (spec_of(), X, with_value(Y, 1, 2.5), 1, "label 2.5 in row 1 is not a whole"),
    "label too high": (
        spec_of(),
        X,
        with_value(Y, 4, 5).astype(int),
        4,
        "label 5 in row 4,.*0 to 4",
    ),
    "label below 0": (spec_of(), X, with_value(Y, 2, -1).astype(int), 2, "label -1 in row 2"),
    "whole but too high": (spec_of(), X, with_value(Y, 2, 1e20), 2, "label 1e.20 in row 2"),
    "no probability": (
        spec_of(y="float32"),
        X,
        with_value(Y > 1, 3, 3),
        3,
        "label 3 in row 3,.*0 to 1",
    ),
    "target infinite": (
        spec_of(y="float32", loss="mse"),
        X,
        with_value(Y, 3, np.inf),
        3,
        "y: row 3 .*not finite",
    ),
    "pixel too high": (
        spec_of("uint8"),
        with_value(PIXELS, 3, 256).astype(int),
        Y,
        3,
        "x: row 3 .*0 to 255",
    ),
    "pixel below 0": (
        spec_of("uint8"),
        with_value(PIXELS, 1, -1).astype(int),
        Y,
        1,
        "x: row 1 .*0 to 255",
    ),
    "too high for int32": (
        spec_of("int32"),
        with_value(PIXELS, 1, 2**31).astype(int),
        Y,
        1,
        "x: row 1 ",
    ),
}


def refused_rows(spec: TaskSpec, x: np.ndarray, y: np.ndarray) -> dict[int, str]:
    """Return the rows that are refused alone, each with the reason."""
    found = {}
    for row in range(len(x)):
        try:
            samples_of(spec, x[row : row + 1], y[row : row + 1])
        except UsageError as error:
            found[row] = str(error)
    return found


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_good(name: str) -> None:
    spec, x, y, row, says = BAD_ROWS[name]
    with pytest.raises(UsageError, match=says):
        samples_of(spec, x, y)
    assert list(refused_rows(spec, x, y)) == [row]
    good = np.arange(5) != row
    assert len(samples_of(spec, x[good], y[good])[0]) == 4


def test_all_bad_rows_are_found_each_with_its_first_reason() -> None:
    x, y = with_value(with_value(X, 4, np.nan), 1, np.inf), with_value(Y, 1, 9).astype(int)
    found = refused_rows(spec_of(), x, y)
    assert list(found) == [1, 4]
    assert found[1].startswith("x: row 0")


def test_values_that_are_no_numbers_are_broken_and_labels_wait_for_their_release() -> None:
    with pytest.raises(UsageError) as broken:
        samples_of(spec_of(), with_value(X, 4, np.nan), Y)
    assert not isinstance(broken.value, OtherTaskError)
    with pytest.raises(OtherTaskError):
        samples_of(spec_of(), X, Y + 1)


def test_as_many_labels_as_samples_are_needed() -> None:
    with pytest.raises(UsageError, match="5 samples with 4 labels"):
        samples_of(spec_of(), X, Y[:4])


def test_large_arrays_are_checked_in_pieces() -> None:
    x = np.zeros((300_000, 4), np.float32)
    x[[7, 299_999], 0] = np.nan
    found = broken_rows(spec_of(), x, np.zeros(300_000, int))
    assert np.flatnonzero(found).tolist() == [7, 299_999]
