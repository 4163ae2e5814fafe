"""Nets with group, instance and layer norms and Einsum, from both exporters, against torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from net_gradients import EXPORT_PARAMETERS, EXPORTS, assert_torch_s_step
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as nnf

from models.errors import UsageError
from models.graph.gradients.gradients_einsum import read_equation
from models.graph.reading.forward_graph import normalize_forward
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd


class Head(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x).flatten(2).mean(-1)


def convolutional(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), *layers, nn.ReLU(), nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4), Head()
    )


class Mixer(nn.Module):
    """Einsum with weights, without, and over more than two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(5, 3, 4) / 3)
        self.b = nn.Parameter(torch.randn(6, 6) / 3)
        self.c = nn.Parameter(torch.randn(4, 3, 4) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("btd,dhe->bthe", x, self.a)
        scores = torch.einsum("bihe,bjhe->bhij", h, h).softmax(-1)
        h = torch.einsum("bhij,bjhe->bihe", scores, h)
        h = torch.einsum("...t,ts->...s", h.permute(0, 2, 3, 1), self.b)
        return torch.einsum("bhet,che->bc", h, self.c)


IMAGE, SERIES = (2, 8, 7), (6, 5)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "group norm": (lambda: convolutional(nn.GroupNorm(3, 6)), IMAGE),
    "group norm of one group": (lambda: convolutional(nn.GroupNorm(1, 6)), IMAGE),
    "group norm without weights": (lambda: convolutional(nn.GroupNorm(2, 6, affine=False)), IMAGE),
    "instance norm": (lambda: convolutional(nn.InstanceNorm2d(6, affine=True)), IMAGE),
    "instance norm without weights": (lambda: convolutional(nn.InstanceNorm2d(6)), IMAGE),
    "instance norm of a line": (
        lambda: nn.Sequential(nn.Conv1d(6, 4, 2), nn.InstanceNorm1d(4, affine=True), Head()),
        SERIES,
    ),
    "instance norm of a volume": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.InstanceNorm3d(4, affine=True), Head()),
        (2, 4, 5, 4),
    ),
    "layer norm over all": (
        lambda: nn.Sequential(
            nn.Linear(5, 5),
            nn.LayerNorm((6, 5)),
            nn.LayerNorm(5, elementwise_affine=False),
            nn.Flatten(),
            nn.Linear(30, 4),
        ),
        SERIES,
    ),
    "einsum": (Mixer, SERIES),
}


@pytest.mark.parametrize("export", EXPORT_PARAMETERS)
@pytest.mark.parametrize("name", NETS)
def test_such_a_net_trains_as_in_torch(name: str, export: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():  # equal tensors the exporter would merge
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    # The ones and zeros of norms without weights of their own are left alone.
    assert_torch_s_step(net, EXPORTS[export](net, shape), shape, flat_ones_too=False)


def model_of(
    op: str, inputs: list[np.ndarray], opset: int, sample: tuple[int, ...], **attributes: Any
) -> onnx.ModelProto:
    names = [f"in{i + 1}" for i in range(len(inputs))]
    graph = helper.make_graph(
        [
            helper.make_node(op, ["input", *names], ["normal"], "node", **attributes),
            helper.make_node("Tanh", ["normal"], ["bent"]),
            helper.make_node("GlobalAveragePool", ["bent"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["out"]),
        ],
        op,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *sample])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in zip(names, inputs, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


class Scaled(nn.Module):
    """A group norm whose scale and bias are as an opset has them."""

    def __init__(self, scale: np.ndarray, bias: np.ndarray, groups: int) -> None:
        super().__init__()
        self.scale, self.bias = (nn.Parameter(torch.tensor(v)) for v in (scale, bias))
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        each = 4 // len(self.scale)
        s, b = (p.repeat_interleave(each) for p in (self.scale, self.bias))
        return torch.tanh(nnf.group_norm(x, self.groups, s, b)).mean((2, 3))


@pytest.mark.parametrize(("opset", "size"), [(18, 2), (20, 2), (21, 4), (22, 4)])
def test_group_normalization_takes_the_scale_as_its_opset_has_it(opset: int, size: int) -> None:
    """Per group up to opset 20, per channel from 21 on."""
    generator = np.random.default_rng(0)
    scale, bias = generator.standard_normal((2, size)).astype(np.float32)
    model = model_of("GroupNormalization", [scale, bias], opset, (4, 5, 3), num_groups=2)
    net = Scaled(scale, bias, 2)
    assert_torch_s_step(net, model, (4, 5, 3), flat_ones_too=False)


def test_a_diagonal_is_refused_by_name() -> None:
    w = np.eye(4, dtype=np.float32)[:, :, None, None] * np.ones((1, 1, 2, 2), np.float32)
    model = model_of("Einsum", [w], 21, (4, 2, 2), equation="bcij,cdii->bdij")
    forward = normalize_forward(model)
    with pytest.raises(UsageError, match=r"'node'.*diagonal"):
        derive_training_graph(
            forward, trainable=["in1"], loss="cross_entropy", optimizer=Sgd(momentum=0)
        )


@pytest.mark.parametrize(
    ("text", "ranks", "operands", "output"),
    [
        ("ij, jk -> ik", [2, 2], ("ij", "jk"), "ik"),
        ("ij,jk", [2, 2], ("ij", "jk"), "ik"),
        ("ba", [2], ("ba",), "ab"),
        ("...ij,jk->...ik", [4, 2], ("ABij", "jk"), "ABik"),
        ("...i,...i->...", [3, 2], ("ABi", "Bi"), "AB"),
        ("i...", [3], ("iAB",), "ABi"),
        ("ij->", [2], ("ij",), ""),
    ],
)
def test_an_equation_gets_a_letter_for_every_axis(
    text: str, ranks: list[int], operands: tuple[str, ...], output: str
) -> None:
    assert read_equation(text, ranks, "node") == (operands, output)
