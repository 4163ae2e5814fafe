"""The server's measurement of a release, and hold-out files that do not fit."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from server_world import (
    CONFIG,
    FEATURES,
    World,
    good_direction,
    linear_spec,
    separable,
    write_bundle,
)

from broker.config import load_config
from broker.releases.first_release import initial_parameters, with_parameters
from broker.releases.hold_out import Evaluator, HoldOut, load_hold_out
from models.errors import UsageError
from models.task.bundle import read_bundle
from models.task.params import unflatten
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec

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


def test_a_released_file_is_the_one_that_the_onnx_package_makes(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "b", SPEC))
    theirs = onnx.load_from_string(bundle.infer)
    wanted = unflatten(5 * good_direction(), SPEC.shared)
    for tensor in theirs.graph.initializer:
        if tensor.name in wanted:
            tensor.CopyFrom(numpy_helper.from_array(wanted[tensor.name], tensor.name))
    exported = with_parameters(bundle.infer, SPEC, 5 * good_direction())
    assert exported == theirs.SerializeToString()


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


def alarm(tmp_path: Path) -> Path:
    """A bundle of a yes-or-no task; as all of bce, it answers with probabilities."""
    spec = TaskSpec(
        format=1,
        task="leaves",
        net="alarm",
        tensors=(TensorSpec("weight", (FEATURES, 1), Role.SHARED),),
        x=ArraySpec("float32", (FEATURES,)),
        y=ArraySpec("float32", (1,)),
        classes=0,
        loss="bce",
        metric="accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="p",
        slots=(),
        answers="probabilities",
    )
    weight = np.eye(FEATURES, 1, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["p"]),
        ],
        "alarm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "infer.onnx").write_bytes(model.SerializeToString())
    (directory / "train.onnx").write_bytes(b"a training graph")
    (directory / "spec.json").write_bytes(encode_spec(spec))
    return directory


def test_the_gate_sees_a_yes_or_no_model_that_is_upside_down(tmp_path: Path) -> None:
    """Taken for logits, all its probabilities are above 0: the accuracy was that of always yes."""
    alarm(tmp_path)
    x = np.random.default_rng(0).normal(size=(200, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "holdout.npz", x=x, y=x[:, 0] > 0)
    gate = f'[task.evaluation]\ndata = "{tmp_path / "holdout.npz"}"\nmax_drop = 0.05\n'
    text = f"{CONFIG}[task.aggregation]\nupdates = 1\nmax_norm = 100\n{gate}"
    (tmp_path / "broker.toml").write_text(text)
    (tmp_path / "server").mkdir()
    world = World(tmp_path, load_config(tmp_path / "broker.toml"))
    assert world.manifest().accuracy == 1
    down = -2 * np.eye(FEATURES, 1, dtype=np.float32).reshape(-1)
    refused = world.device().send_delta(down)
    world.run()
    assert world.device().receipts[refused].state == "refused"
    assert "lowers the metric to 0.0000" in world.device().receipts[refused].reason
    up = world.device("dev-2").send_delta(-down)
    world.run()
    assert world.device("dev-2").state(up) == "folded"
    assert world.manifest().accuracy == 1
