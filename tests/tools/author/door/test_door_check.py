"""The check at the door finds each planted fault, and nothing in what is right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.errors import UsageError
from tools import cli
from tools.author.bundle.create_bundle import Made, make_task
from tools.author.bundle.export_model import read_tensors, replace_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset
from tools.author.door import gradient_check, weight_check
from tools.author.door.door_check import check_made
from tools.author.door.given_answers import Given, resized_rows

RNG = np.random.default_rng(0)


def net(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(3)
    nets: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "mlp": (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), (6,)),
        "tanh": (nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), (6,)),
        "cnn": (
            nn.Sequential(
                nn.Conv2d(2, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(36, 3),
            ),
            (2, 8, 8),
        ),
        "softmax": (nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1)), (6,)),
        "silent": (nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)), (6,)),
    }
    found, shape = nets[name]
    if name == "silent":  # whose first layer is dead
        nn.init.constant_(found[0].bias, -100)  # type: ignore[index, arg-type]
    return found.eval(), shape


def exported(path: Path, model: nn.Module, shape: tuple[int, ...], *, batch: int = 0) -> Path:
    """Write ``model``, for ``batch`` samples at a time or any number."""
    axes = {} if batch else {"in": {0: "n"}, "out": {0: "n"}}
    torch.onnx.export(
        model,
        (torch.zeros(batch or 2, *shape),),
        str(path),
        dynamo=False,
        input_names=["in"],
        output_names=["out"],
        dynamic_axes=axes,
    )
    return path


def samples(shape: tuple[int, ...], loss: str = "cross_entropy", count: int = 40) -> Dataset:
    x = RNG.normal(size=(count, *shape)).astype(np.float32)
    labels = np.arange(count) % 3
    y = labels if loss == "cross_entropy" else np.eye(3, dtype=np.float32)[labels]
    return Dataset("samples", x, y, None, np.arange(count) % 5 == 0, False)


def made(
    tmp_path: Path, name: str = "mlp", *, batch: int = 0, count: int = 40, **options: object
) -> tuple[Made, Given]:
    model, shape = net(name)
    path = exported(tmp_path / "m.onnx", model, shape, batch=batch)
    data = samples(shape, str(options.get("loss", "cross_entropy")), count)
    found = make_task("a", data, TaskOptions(model=path, **options))  # type: ignore[arg-type]
    return found, Given(found.given, "m.onnx", None, False)


def with_model(wrong: Made, which: str, change: Callable[[onnx.ModelProto], None]) -> Made:
    """Return ``wrong`` with ``change`` made to its infer or train graph."""
    bundle = wrong.bundle
    model = onnx.load_from_string(getattr(bundle, which))
    change(model)
    return wrong._replace(bundle=bundle._replace(**{which: model.SerializeToString()}))


def behind(value: str, operator: str, *constants: float) -> Callable[[onnx.ModelProto], None]:
    """Return the change that puts one operator behind ``value``, whoever computes it."""

    def change(model: onnx.ModelProto) -> None:
        extra = [f"planted_{number}" for number in range(len(constants))]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(c, np.float32), name)
            for c, name in zip(constants, extra, strict=True)
        )
        for place, node in enumerate(model.graph.node):
            if value in node.output:
                node.output[list(node.output).index(value)] = "planted_before"
                for later in model.graph.node:
                    later.input[:] = [
                        "planted_before" if name == value else name for name in later.input
                    ]
                model.graph.node.insert(
                    place + 1, helper.make_node(operator, ["planted_before", *extra], [value])
                )
                return
        raise AssertionError(f"nothing computes {value}")

    return change


def before_update(tensor: str, operator: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Return the change that makes the gradient of ``tensor`` another one."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(
            numpy_helper.from_array(np.array(factor, np.float32), "planted")
        )
        made_by = {name: node for node in model.graph.node for name in node.output}
        velocity = made_by[f"new/momentum/{tensor}"]
        place = list(model.graph.node).index(velocity)
        model.graph.node.insert(
            place, helper.make_node(operator, [velocity.input[1], "planted"], ["planted_gradient"])
        )
        velocity.input[1] = "planted_gradient"

    return change


@pytest.mark.parametrize("name", ["mlp", "tanh", "cnn", "softmax"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "mse", "optimizer": "adam", "weight_decay": 0.1},
        {"loss": "bce", "momentum": 0.0, "weight_decay": 0.01, "proximal": True},
        {"trainable": ("*.weight",), "scale": 3.0, "mean": (0.5,), "std": (2.0,)},
    ],
)
def test_what_is_right_passes_and_is_said(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    if name == "softmax" and options.get("loss") == "bce":
        options = {**options, "loss": "mse"}
    found = check_made(*made(tmp_path, name, **options))
    said = "; ".join(found.words)
    assert "run with 3 and 7" in said
    assert "answers as m.onnx does" in said
    assert "a small step lowers the loss" in said
    assert "gradients agree with differences" in said
    assert not found.notes


@pytest.mark.parametrize(("batch", "count"), [(1, 40), (4, 40), (0, 5)])
def test_a_fixed_batch_of_the_given_model_and_few_rows_are_no_fault(
    tmp_path: Path, batch: int, count: int
) -> None:
    assert "answers as m.onnx does" in check_made(*made(tmp_path, batch=batch, count=count)).words


def test_a_net_of_the_zoo_is_checked_against_what_torch_exported() -> None:
    x = RNG.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    data = Dataset("d", x, np.arange(40) % 3, None, np.arange(40) % 5 == 0, False)
    zoo = make_task("a", data, TaskOptions(net="cnn"))
    found = check_made(zoo, Given(zoo.given, "the net cnn", None, False))
    assert "answers as the net cnn does" in found.words


@pytest.mark.parametrize(
    ("which", "change", "says"),
    [
        ("infer", behind("out", "Mul", 1.01), "answers differently from m.onnx .*node 'out'|by 0"),
        ("infer", behind("out", "Neg"), "answers differently from m.onnx"),
        ("train", behind("loss", "Mul", 2.0), "finds a loss of .* where the answers"),
        ("train", behind("grad_norm", "Mul", 2.0), "tells a gradient of norm"),
        ("train", before_update("2.weight", "Mul", -1.0), "gradient of tensor '2.weight' is"),
        ("train", before_update("2.bias", "Mul", 2.0), "gradient of tensor '2.bias' is"),
        ("train", before_update("0.weight", "Mul", 0.5), "gradient of tensor '0.weight' is"),
        ("train", before_update("0.bias", "Mul", 0.0), "gradient of tensor '0.bias' is"),
        ("train", before_update("0.weight", "Add", 0.1), "gradient of tensor '0.weight' is"),
        ("train", before_update("2.weight", "Div", 0.0), "'2.weight' is not finite"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, which: str, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    right, given = made(tmp_path)

    def change_and_hide(model: onnx.ModelProto) -> None:
        change(model)
        if "gradient of tensor" in says:  # an engineer's own fault would be in the norm too
            _norm_of_slots(model)

    with pytest.raises(UsageError, match=says):
        check_made(with_model(right, which, change_and_hide), given)


def _norm_of_slots(model: onnx.ModelProto) -> None:
    """Compute grad_norm from what moves the tensors, as a wrong gradient rule does."""
    graph = model.graph
    for node in graph.node:
        if "grad_norm" in node.output:
            node.output[0] = "unused_norm"
    slots = [value.name for value in graph.output if value.name.startswith("new/momentum/")]
    squares = [f"square_{number}" for number in range(len(slots))]
    graph.node.extend(
        helper.make_node("ReduceSumSquare", [slot], [square], keepdims=0)
        for slot, square in zip(slots, squares, strict=True)
    )
    graph.node.append(helper.make_node("Sum", squares, ["square"]))
    graph.node.append(helper.make_node("Sqrt", ["square"], ["grad_norm"]))


def test_a_step_that_goes_up_is_found(tmp_path: Path) -> None:
    """The slots are right, the update has the wrong sign."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Sub" and node.output[0].startswith("new/"):
                node.op_type = "Add"

    right, given = made(tmp_path)
    with pytest.raises(UsageError, match=r"step does not lower the loss .* before, .* after"):
        check_made(with_model(right, "train", change), given)


def reshaped_to_one(model: onnx.ModelProto) -> None:
    """Put the batch into the graph, as exporters do that were shown one sample."""
    output = model.graph.output[0].name
    behind(output, "Identity")(model)
    (node,) = (node for node in model.graph.node if output in node.output)
    node.op_type, node.name = "Reshape", "planted_reshape"
    node.input.append("one")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "one"))


def mixed_rows(model: onnx.ModelProto) -> None:
    """Subtract the mean over the batch, as a batch norm in training mode does."""
    output = model.graph.output[0].name
    behind(output, "Sub")(model)
    (node,) = (node for node in model.graph.node if output in node.output)
    node.name = "planted_mixer"
    node.input.append("mean")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    mean = helper.make_node("ReduceMean", ["planted_before", "zero"], ["mean"], keepdims=1)
    model.graph.node.insert(list(model.graph.node).index(node), mean)


def noisy(model: onnx.ModelProto) -> None:
    output = model.graph.output[0].name
    behind(output, "Add")(model)
    (node,) = (node for node in model.graph.node if output in node.output)
    node.input.append("noise")
    noise = helper.make_node("RandomNormalLike", ["planted_before"], ["noise"])
    model.graph.node.insert(list(model.graph.node).index(node), noise)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (reshaped_to_one, "3 samples at a time: node 'planted_reshape' .*with a dynamic batch"),
        (
            mixed_rows,
            "differently for a row alone and among 7 .*'planted_mixer' .*mixes the samples",
        ),
        (noisy, "something in it is random"),
        (behind("out", "Log"), "not finite, first at node 'out' .*scale x"),
    ],
)
def test_a_graph_for_one_batch_or_for_no_numbers_is_found(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    right, given = made(tmp_path)
    with pytest.raises(UsageError, match=says):
        check_made(with_model(right, "infer", change), given)


def test_a_training_graph_for_one_batch_is_found(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if "loss" in node.output)
        node.op_type, node.name = "Add", "planted"
        node.input.append("three")
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "rows"))
        at = list(model.graph.node).index(node)
        model.graph.node.insert(at, helper.make_node("Add", ["sample_weight", "rows"], ["bad"]))
        model.graph.node.insert(at + 1, helper.make_node("ReduceSum", ["bad"], ["sum"], keepdims=0))
        model.graph.node.insert(at + 2, helper.make_node("Mul", ["sum", "zero"], ["three"]))

    right, given = made(tmp_path)
    with pytest.raises(UsageError, match=r"train.onnx fails with 7 .*\(Add\).*dynamic batch"):
        check_made(with_model(right, "train", change), given)


def test_a_sigmoid_in_another_form_gets_no_second_one(tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) / 2 + 0.5

    torch.manual_seed(0)
    path = exported(tmp_path / "m.onnx", nn.Sequential(nn.Linear(6, 3), Half()), (6,))
    found = make_task("a", samples((6,), "bce"), TaskOptions(model=path, loss="bce"))
    check_made(found, Given(found.given, "m.onnx", None, False))
    assert found.bundle.spec.answers == "probabilities"


def test_an_index_that_the_model_does_not_have_is_the_row_s_fault(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    table = numpy_helper.from_array(RNG.normal(size=(5, 3)).astype(np.float32), "table")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "in"], ["e"], name="embed"),
            helper.make_node("ReduceMean", ["e", "one"], ["out"], keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.INT64, ["n", 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
        [table, numpy_helper.from_array(np.array([1]), "one")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    x = RNG.integers(0, 5, (40, 4))
    data = samples((4,))._replace(x=x)
    right = make_task("a", data, TaskOptions(model=path))
    assert check_made(right, Given(right.given, "m.onnx", None, False))
    wrong = make_task("a", data._replace(x=x + 4), TaskOptions(model=path))
    with pytest.raises(UsageError, match=r"for row \d+ of the data: node .*such values of x"):
        check_made(wrong, Given(wrong.given, "m.onnx", None, False))


def test_layers_without_gradient_are_a_note_and_no_fault(tmp_path: Path) -> None:
    found = check_made(*made(tmp_path, "silent"))
    assert "no gradient reaches 0.weight, 0.bias, 2.weight on the rows" in found.notes[0]


def test_a_model_that_onnxruntime_does_not_take_is_a_note(tmp_path: Path) -> None:
    right, given = made(tmp_path)
    strange = onnx.ModelProto()
    strange.CopyFrom(given.model)
    strange.opset_import[0].version = 999
    found = check_made(right, given._replace(model=strange))
    assert "could not be compared with m.onnx itself" in found.notes[0]


@pytest.mark.parametrize("size", [(5, 9), (16, 16), (3, 4)])
def test_pictures_are_resized_as_torch_does_it(size: tuple[int, int]) -> None:
    x = RNG.random((2, 1, 8, 6)).astype(np.float32)
    images = torch.from_numpy(x).repeat(1, 3, 1, 1)
    expected = torch.nn.functional.interpolate(images, size, mode="bilinear").numpy()
    np.testing.assert_allclose(resized_rows(x, 3, *size), expected, atol=1e-5)


def test_create_with_resize_is_compared_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    path = exported(tmp_path / "m.onnx", model.eval(), (3, 12, 12))
    x = RNG.integers(0, 256, (40, 20, 15)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 3)
    words = ["task", "create", "a", "--onnx", str(path), "--data", str(tmp_path / "d.npz")]
    assert cli.main([*words, "--resize", "--out", str(tmp_path / "a")]) == 0
    assert "m.onnx does; a small step lowers" in capsys.readouterr().out


def test_weights_that_a_file_does_not_hold_as_raw_bytes_can_be_replaced(tmp_path: Path) -> None:
    model, shape = net("mlp")
    path = exported(tmp_path / "m.onnx", model, shape)
    changed = onnx.load(path)
    for tensor in changed.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, 1, value.shape, value.reshape(-1)))
        assert not tensor.HasField("raw_data")
    onnx.save(changed, path)
    found = make_task("a", samples(shape), TaskOptions(model=path))
    check_made(found)
    assert replace_tensors(found.bundle.infer, read_tensors(found.bundle)) == found.bundle.infer


def two_headed(tmp_path: Path) -> Path:
    """Return a detector's file: scores by one head, a box by another, from the same features."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.scores, self.box = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = torch.relu(self.features(x))
            return self.scores(seen), self.box(seen)

    path = tmp_path / "m.onnx"
    x = torch.zeros(2, 6)
    torch.onnx.export(
        Detector().eval(),
        (x,),
        str(path),
        dynamo=False,
        input_names=["in"],
        output_names=["scores", "box"],
        dynamic_axes={"in": {0: "n"}},
    )
    return path


@pytest.mark.parametrize(
    ("output", "loss", "frozen"),
    [(None, "cross_entropy", "box"), ("box", "mse", "scores")],
)
def test_what_serves_another_output_only_is_frozen_and_said(
    tmp_path: Path, output: str | None, loss: str, frozen: str
) -> None:
    data = samples((6,))
    if loss == "mse":
        data = data._replace(y=RNG.normal(size=(len(data.x), 4)).astype(np.float32))
    said: list[str] = []
    options = TaskOptions(model=two_headed(tmp_path), output=output)
    found = make_task("a", data, options, on_warning=said.append)
    check_made(found)
    roles = {tensor.name: tensor.role for tensor in found.bundle.spec.tensors}
    assert {name for name, role in roles.items() if role == "frozen"} == {
        f"{frozen}.weight",
        f"{frozen}.bias",
    }
    assert any(f"{frozen}.bias, {frozen}.weight" in words for words in said)


def test_training_only_what_serves_another_output_is_refused(tmp_path: Path) -> None:
    options = TaskOptions(model=two_headed(tmp_path), trainable=("box.*",))
    with pytest.raises(
        UsageError, match=r"box\.bias has no influence on output 'scores'.*--output"
    ):
        make_task("a", samples((6,)), options)


def test_weights_behind_a_decision_are_refused_with_what_to_do(tmp_path: Path) -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.body(x) > 0).float()

    path = exported(tmp_path / "m.onnx", Decides(), (6,))
    with pytest.raises(UsageError, match=r"only makes steps.*export the model without it"):
        make_task("a", samples((6,), "bce"), TaskOptions(model=path, loss="bce"))


def test_a_slow_net_is_checked_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gradient_check, weight_check):
        monkeypatch.setattr(module, "LONGEST", 0.0)
    checked = check_made(*made(tmp_path))
    assert not any("gradients" in words or "lowers" in words for words in checked.words)


def test_a_net_whose_gradients_burst_is_said_and_not_called_wrong(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(10):
        layers += [nn.Linear(6, 6), nn.ReLU()]
        nn.init.constant_(layers[-2].weight, 30.0)  # type: ignore[arg-type]
    head = nn.Linear(6, 3)
    nn.init.constant_(head.weight, 1.0)
    path = exported(tmp_path / "m.onnx", nn.Sequential(*layers, head), (6,))
    found = make_task("a", samples((6,)), TaskOptions(model=path))
    checked = check_made(found, Given(found.given, "m.onnx", None, False))
    assert any("diverges at any usual learning rate" in words for words in checked.notes)


def test_where_no_gradient_was_compared_that_is_said(tmp_path: Path) -> None:
    class Stairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.round(4 * torch.tanh(self.body(x))))

    path = exported(tmp_path / "m.onnx", Stairs(), (6,))
    found = make_task("a", samples((6,)), TaskOptions(model=path, trainable=("head.*",)))
    checked = check_made(found, Given(found.given, "m.onnx", None, False))
    assert "no gradient was compared with differences: Round makes steps" in checked.notes[0]
