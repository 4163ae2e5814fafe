"""The server's measurement of a release, and hold-out files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
from server_world import FEATURES, good_direction, linear_spec, separable, write_bundle

from broker.evaluation import Evaluator, HoldOut, load_hold_out
from broker.initial_release import initial_parameters, read_bundle, with_parameters
from models.errors import UsageError
from models.spec import encode_spec

SPEC = linear_spec()


def test_parameters_take_the_place_of_the_initializers(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "b", SPEC))
    x, y = separable()
    evaluate = Evaluator(bundle.infer, SPEC, HoldOut(x, y), batch=7)
    zero = evaluate(np.zeros(SPEC.shared_size, np.float32))
    good = evaluate(5 * good_direction())
    assert good.metric > 0.95 > zero.metric
    exported = with_parameters(bundle.infer, SPEC, 5 * good_direction())
    same = Evaluator(exported, SPEC, HoldOut(x, y))
    again = initial_parameters(bundle._replace(infer=exported))
    np.testing.assert_array_equal(again, 5 * good_direction())
    assert same(again) == pytest.approx(good, rel=1e-6)


def test_only_test_rows_are_held_out(tmp_path: Path) -> None:
    x, y = separable()
    np.savez(tmp_path / "d.npz", x=x, y=y, test=np.arange(len(x)) % 3)
    assert len(load_hold_out(tmp_path / "d.npz", SPEC).x) == 200


def test_the_file_that_the_task_was_made_from_is_read_with_the_names_in_it(tmp_path: Path) -> None:
    x, y = separable()
    np.savez(tmp_path / "d.npz", x=x, y=y, classes=np.array(["open", "closed", "blocked"]))
    assert len(load_hold_out(tmp_path / "d.npz", SPEC).x) == len(x)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((3, FEATURES), np.float32)}, "no array 'y'"),
        ({"x": np.zeros((3, 2), np.float32), "y": np.zeros(3, int)}, "shape"),
        ({"x": np.zeros((3, FEATURES), np.float32), "y": np.zeros(2, int)}, "3 samples with 2"),
        ({"x": np.zeros((0, FEATURES), np.float32), "y": np.zeros(0, int)}, "0 samples"),
        ({"x": np.zeros((1, FEATURES), np.float32), "y": np.array([3])}, "label 3 in row 0"),
        ({"x": np.zeros((1, FEATURES), np.float32), "y": np.array([0.5])}, "not a whole number"),
        ({"x": np.ones((1, FEATURES), np.uint8), "y": np.array([0])}, "x is uint8"),
        ({"x": np.full((1, FEATURES), np.nan), "y": np.array([0])}, "row 0 .* not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UsageError, match=said):
        load_hold_out(tmp_path / "d.npz", SPEC)


def test_a_bundle_whose_files_disagree_is_refused(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path / "b", SPEC)
    (directory / "spec.json").write_bytes(encode_spec(linear_spec(features=FEATURES + 1)))
    with pytest.raises(UsageError, match=r"'weight' is float32 \(6, 3\)"):
        initial_parameters(read_bundle(directory))
    bundle = read_bundle(directory)
    (directory / "infer.onnx").write_bytes(b"no model")
    with pytest.raises(UsageError, match="no ONNX file"):
        initial_parameters(read_bundle(directory))
    x, y = np.zeros((1, FEATURES + 1), np.float32), np.zeros(1, np.int64)
    evaluate = Evaluator(b"no model", bundle.spec, HoldOut(x, y))
    with pytest.raises(UsageError, match="onnx"):
        evaluate(np.zeros(bundle.spec.shared_size, np.float32))


def test_labels_of_any_width_and_whole_floats_are_taken(tmp_path: Path) -> None:
    x = np.ones((2, FEATURES))
    for y in (np.array([0, 2], np.uint8), np.array([0.0, 2.0]), np.array([[0], [2]])):
        np.savez(tmp_path / "d.npz", x=x, y=y)
        hold_out = load_hold_out(tmp_path / "d.npz", SPEC)
        assert (hold_out.x.dtype, hold_out.y.dtype) == (np.float32, np.int64)
        assert hold_out.y.tolist() == [0, 2]
