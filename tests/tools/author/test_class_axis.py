"""Models whose classes may be in two axes, through the command line."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.task.bundle import read_bundle
from tools import cli


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """Five classes at five moments, told apart by nobody."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(5, 3, 1)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, 5])
        for name, channels in (("x", 3), ("p", 5))
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["p"], "conv")],
        "g",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "square.onnx"
    )
    x = generator.normal(size=(40, 3, 5)).astype(np.float32)
    labels = np.einsum("oc,nct->not", weight[:, :, 0], x).argmax(1)  # as torch has the classes
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    return tmp_path


def create(square: Path, *more: str) -> int:
    model, data = str(square / "square.onnx"), str(square / "data.npz")
    place = ["--out", str(square / "bundle"), "--force"]
    return cli.main(["task", "create", "a", "--onnx", model, "--data", data, *place, *more])


def test_two_possible_axes_are_refused_with_the_option_that_decides(
    square: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(square) == 2
    assert "may be in axis 1 or 2 of [batch, 5, 5]" in (said := capsys.readouterr().err)
    assert "--class-axis" in said
    assert not (square / "bundle").exists()


@pytest.mark.parametrize(("axis", "turned"), [("1", True), ("2", False), ("-1", False)])
def test_the_named_axis_is_put_last(
    square: Path, axis: str, turned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(square, "--class-axis", axis) == 0
    assert ("classes in axis 1" in capsys.readouterr().out) == turned
    spec = read_bundle(square / "bundle").spec
    assert (spec.classes, spec.answers) == (5, "logits")
    data = str(square / "data.npz")
    arguments = ["--data", data, "--epochs", "0.01", "--lr", "1e-6", "--report"]
    report = square / "report.json"
    assert cli.main(["task", "train", str(square / "bundle"), *arguments, str(report)]) == 0
    assert ('"accuracy_before": 1.0' in report.read_text()) == turned
