"""Scores against torch, and hold-out files that do not fit."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from server_world import CLASSES, FEATURES, good_direction, linear_spec, separable, write_bundle

from broker.evaluation import Evaluator, HoldOut, load_hold_out, score_of
from broker.initial_release import initial_parameters, read_bundle, with_parameters
from models.errors import UsageError
from models.spec import encode_spec

SPEC = linear_spec()


def test_cross_entropy_and_accuracy_are_those_of_torch() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 30, (50, CLASSES)).astype(np.float32)
    y = generator.integers(0, CLASSES, 50)
    score = score_of(logits, y, SPEC)
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(y))
    assert score.loss == pytest.approx(loss.item(), rel=1e-5)
    assert score.metric == pytest.approx((logits.argmax(1) == y).mean())
    assert score.samples == 50


def test_binary_cross_entropy_is_that_of_torch() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 30, (50, 1)).astype(np.float32)
    y = generator.integers(0, 2, (50, 1)).astype(np.float32)
    spec = msgspec.structs.replace(SPEC, loss="bce")
    score = score_of(logits, y, spec)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(y)
    )
    assert score.loss == pytest.approx(loss.item(), rel=1e-5)
    assert score.metric == pytest.approx(((logits > 0) == (y > 0.5)).mean())


def test_mean_squared_error_is_metric_and_loss() -> None:
    spec = msgspec.structs.replace(SPEC, loss="mse", metric="mse", classes=0)
    score = score_of(np.array([[1.0], [3.0]]), np.array([[0.0], [1.0]]), spec)
    assert (score.metric, score.loss) == (2.5, 2.5)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="labels"):
        score_of(np.zeros((5, 3)), np.zeros((5, 2), np.int64), SPEC)


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
        ({"x": np.zeros((3, FEATURES), np.float32), "y": np.zeros(2, int)}, "3 samples and 2"),
        ({"x": np.zeros((0, FEATURES), np.float32), "y": np.zeros(0, int)}, "0 samples"),
        ({"x": np.zeros((1, FEATURES), np.float32), "y": np.array([3])}, "labels from 3 to 3"),
        ({"x": np.zeros((1, FEATURES), np.float32), "y": np.array([0.5])}, "float64"),
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
    with pytest.raises(UsageError, match="does not run"):
        evaluate(np.zeros(bundle.spec.shared_size, np.float32))


def test_integers_may_be_given_where_floats_are_wanted(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, FEATURES), np.uint8), y=np.zeros(2, np.uint8))
    hold_out = load_hold_out(tmp_path / "d.npz", SPEC)
    assert (hold_out.x.dtype, hold_out.y.dtype) == (np.float32, np.int64)
