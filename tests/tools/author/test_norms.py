"""``task create --norms``: the choice is explained, works on strangers' files, or says why not."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from newer_exporter import export_newer
from torch import nn

from models.errors import UsageError
from models.graph.gradients import gradients_adaptive
from models.graph.gradients.gradients import GRADIENTS
from models.task.bundle import read_bundle
from models.task.spec import Role
from tools import cli
from tools.author.bundle.create_bundle import make_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset
from tools.author.door.door_check import check_made

RANDOM = np.random.default_rng(2)
Y = np.arange(60) % 3
X = (RANDOM.normal(size=(60, 1, 8, 8)) + Y[:, None, None, None]).astype(np.float32)
DATA = Dataset("noise", X, Y, None, np.arange(60) % 5 == 0, False)


def net() -> nn.Module:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    head = nn.Sequential(nn.Flatten(), nn.Linear(54, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))
    return nn.Sequential(body, head).eval()


def by_older_exporter(path: Path, **settings: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net(),
            (torch.zeros(2, 1, 8, 8),),
            str(path),
            dynamo=False,
            input_names=["in"],
            dynamic_axes={"in": {0: "n"}},
            **settings,
        )
    return path


def by_newer_exporter(path: Path) -> Path:
    onnx.save(
        export_newer(net(), (torch.zeros(1, 1, 8, 8),), opset_version=18, optimize=False), path
    )
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x=X, y=Y, test=DATA.test)
    return tmp_path / "data.npz"


def create(model: Path | str, data: Path, *options: str) -> int:
    given = ["--net", model] if isinstance(model, str) else ["--onnx", str(model)]
    out = str(data.parent / "out")
    return cli.main(
        ["task", "create", "norms", *given, "--data", str(data), "--out", out, "--force", *options]
    )


@pytest.mark.parametrize("exporter", ["older", "newer"])
def test_the_choice_is_explained_to_who_did_not_make_it(
    data: Path, exporter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data.parent / "stranger.onnx"
    if exporter == "older":
        by_older_exporter(path, do_constant_folding=False)
    else:
        by_newer_exporter(path)
    assert create(path, data) == 0
    said = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(said) if line.startswith("norms"))
    assert "--norms frozen" in said[at]
    assert "--norms personal" in said[at + 1]
    assert "FedBN" in said[at + 1]
    asked = read_bundle(data.parent / "out")
    assert create(path, data, "--norms", "frozen") == 0
    assert "norms" not in capsys.readouterr().out.replace("task norms in", "")
    assert read_bundle(data.parent / "out") == asked

    assert create(path, data, "--norms", "personal") == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("norms  personal") for line in said)
    assert any("gradients agree with differences" in line for line in said)
    spec = read_bundle(data.parent / "out").spec
    found = {kind: [t for t in spec.tensors if t.kind == kind] for kind in ("norm", "statistic")}
    assert {kind: len(tensors) for kind, tensors in found.items()} == {"norm": 4, "statistic": 4}
    assert {t.role for tensors in found.values() for t in tensors} == {Role.PERSONAL}
    assert spec.shared_size == 6 * 9 + 6 + 54 * 9 + 9 + 9 * 3 + 3
    assert cli.main(["task", "show", str(data.parent / "out")]) == 0
    assert "personal  statistic" in capsys.readouterr().out


def test_machines_hear_of_it_too(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = by_older_exporter(data.parent / "stranger.onnx", do_constant_folding=False)
    assert create(path, data, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["batch_norms"], found["norms"], found["norms_were_asked_for"]) == (
        2,
        "frozen",
        False,
    )


def test_only_the_norms_that_are_trained_adapt(data: Path) -> None:
    path = by_older_exporter(data.parent / "stranger.onnx", do_constant_folding=False)
    assert create(path, data, "--norms", "personal", "--trainable", "1.*") == 0
    spec = read_bundle(data.parent / "out").spec
    assert {t.name for t in spec.trainable if t.kind == "statistic"} == {
        "1.2.running_mean",
        "1.2.running_var",
    }
    assert {t.kind for t in spec.with_role(Role.FROZEN)} == {"weight"}


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("mlp", ["--norms", "personal"], "net mlp has no batch norm; cnn_norm"),
        ("folded", ["--norms", "personal"], "do_constant_folding=False"),
        ("kept", ["--norms", "personal", "--trainable", "1.3.*"], "--trainable names"),
        ("kept", ["--norms", "personal", "--trainable", "0.1.*"], "nothing could be learned"),
        ("kept", ["--norms", "shared"], "invalid choice"),
    ],
)
def test_what_cannot_adapt_is_refused_with_a_way_out(
    data: Path, model: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path | str = model
    if model != "mlp":
        folds = model == "folded"
        path = by_older_exporter(data.parent / "m.onnx", do_constant_folding=folds)
    if model == "folded":  # what the linear layer feeds is folded by hand: older exporters do not
        only_first = onnx.load(path)
        assert sum(n.op_type == "BatchNormalization" for n in only_first.graph.node) <= 1
        nodes = [n for n in only_first.graph.node if n.op_type == "BatchNormalization"]
        for node in nodes:
            for other in only_first.graph.node:
                other.input[:] = [node.input[0] if i == node.output[0] else i for i in other.input]
            only_first.graph.node.remove(node)
        onnx.save(only_first, path)
    try:
        code = create(path, data, *options)
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    assert says in capsys.readouterr().err


def test_a_gradient_of_adaptive_norms_that_is_wrong_is_found_at_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = gradients_adaptive.adaptive_normalization

    def forgetful(b: Any, node: Any, gradient: str) -> Any:
        """As a frozen norm has it: without what a value does to mean and variance."""
        dx, *others = rule(b, node, gradient)
        return [b.graph.mul(gradient, b.graph.scalar(1)) if dx else None, *others]

    options = TaskOptions(net="ds_cnn", norms="personal")
    check_made(make_task("norms", DATA, options))
    monkeypatch.setitem(GRADIENTS, gradients_adaptive.ADAPTIVE_NORM, forgetful)
    with pytest.raises(UsageError, match="train it wrong"):
        check_made(make_task("norms", DATA, options))


def test_a_training_graph_whose_norms_stay_frozen_is_none_of_such_a_task() -> None:
    made = make_task("norms", DATA, TaskOptions(net="ds_cnn", norms="personal"))
    frozen = make_task("norms", DATA, TaskOptions(net="ds_cnn"))
    model = onnx.load_from_string(frozen.bundle.train)
    for tensor in made.bundle.spec.trainable:
        if tensor.kind == "statistic":
            value = onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.shape)
            model.graph.input.append(value)
            kept = [t for t in model.graph.initializer if t.name != tensor.name]
            del model.graph.initializer[:]
            model.graph.initializer.extend(kept)
            name = f"new/{tensor.name}"
            model.graph.node.append(onnx.helper.make_node("Identity", [tensor.name], [name]))
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, tensor.shape))
    bundle = made.bundle._replace(train=model.SerializeToString())
    with pytest.raises(UsageError, match="finds a loss of"):
        check_made(made._replace(bundle=bundle))
