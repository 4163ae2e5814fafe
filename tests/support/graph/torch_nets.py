"""Small nets in torch, their exports, and something for them to learn."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import torch
from newer_exporter import export_newer
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional as nnf

STEPS = 50


def export(net: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export with torch's older exporter, which is quick; batch norm stays a node."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, *shape),),
            buffer,
            opset_version=17,
            do_constant_folding=False,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def export_by_dynamo(net: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export with torch's newer exporter, with the parameters' own names and a fixed batch of 1."""
    inputs = (torch.zeros(1, *shape),)
    return export_newer(net.eval(), inputs, opset_version=18, optimize=False)


def rename_transposed(model: onnx.ModelProto, net: nn.Module) -> None:
    """Undo what the older exporter does to a Linear over sequences: W.T under another name."""
    names = {name for name, _ in net.named_parameters()}
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::"):
            tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
            value = numpy_helper.to_array(tensor).T
            parameters = dict(net.named_parameters())
            (name,) = (n for n in names if np.array_equal(parameters[n].detach().numpy(), value))
            tensor.CopyFrom(numpy_helper.from_array(value.copy(), name))
            turned = f"{name}/transposed"
            node.input[1] = turned
            model.graph.node.insert(0, helper.make_node("Transpose", [name], [turned], perm=[1, 0]))


class Block(nn.Module):
    """conv + batch norm + relu6, a residual, depthwise, pools: what image nets are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 9, 4)
        with torch.no_grad():
            for statistic in (self.norm.running_mean, self.norm.running_var):
                assert statistic is not None
                statistic.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nnf.relu6(self.norm(self.stem(x)))
        x = nnf.max_pool2d(nnf.relu(x + self.point(self.depth(x))), 2)
        return self.head(nnf.avg_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """One transformer block over a sequence, with layer norm and gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, t, 16))
        return self.head(nnf.gelu(x).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 4)),
        (6, 6),
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 20, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Flatten(),
            nn.Linear(180, 4),
        ),
        (1, 12, 12),
    ),
    "block": (Block, (1, 12, 12)),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 16, 5, 2, 2),
            nn.LeakyReLU(0.1),
            nn.Conv1d(16, 20, 3, groups=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(20, 4),
        ),
        (3, 32),
    ),
    "small images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, (3, 2), 1, (2, 1), dilation=2, groups=8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
        (2, 16, 14),
    ),
    "attention": (Attention, (7, 6)),
}


def batches(shape: tuple[int, ...], size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.standard_normal((STEPS, size, *shape)).astype(np.float32)
    y = np.arange(STEPS * size).reshape(STEPS, size) % 4
    x += y.reshape(STEPS, size, *[1] * len(shape)) * 0.3  # something to learn
    return x, y


def tensors_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
