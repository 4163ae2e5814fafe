"""Whole training steps against torch: the loss curve, the weights, and what is refused."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from models.graph.autodiff import derive_training_graph
from models.graph.forward_graph import normalize_forward, weights
from models.graph.optimizers import Adam, Optimizer, Sgd, slot_names

STEPS = 50
CURVE = 1e-3  # how far the loss curves may lie apart


def run(session: ort.InferenceSession, feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def load(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)


class OurTrainer:
    """The training graph as a device runs it: outputs of a step are inputs of the next."""

    def __init__(
        self, model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], optimizer: Optimizer
    ) -> None:
        self.session = load(model)
        self.state = dict(tensors)
        for slot in slot_names(optimizer, list(tensors)):
            shape = () if slot == "adam_step" else tensors[slot.split("/", 1)[1]].shape
            self.state[slot] = np.zeros(shape, np.float32)
        self.extra: dict[str, np.ndarray] = {}

    def anchor(self, mu: float, tensors: Mapping[str, np.ndarray]) -> None:
        self.extra = {f"anchor/{name}": value for name, value in tensors.items()}
        self.extra["mu"] = np.array(mu, np.float32)

    def step(
        self, x: np.ndarray, y: np.ndarray, lr: float, weight: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        if weight is None:
            weight = np.ones(len(x), np.float32)
        feed = {"x": x, "y": y, "sample_weight": weight, "lr": np.array(lr, np.float32)}
        out = run(self.session, {**self.state, **self.extra, **feed})
        self.state = {name: out[f"new/{name}"] for name in self.state}
        return out


def export(net: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export with the parameters' own names, in evaluation mode, one fixed batch of 1."""
    net.eval()
    program = torch.onnx.export(
        net,
        (torch.zeros(1, *shape),),
        dynamo=True,
        opset_version=18,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


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


def same_tensors(forward: onnx.ModelProto, net: nn.Module) -> dict[str, str]:
    """Map torch's names to the graph's, which may be transposed or renamed by the exporter."""
    found = weights(forward)
    names = {name: name for name, _ in net.named_parameters() if name in found}
    assert len(names) == len(found) == len(list(net.parameters()))
    return names


def torch_optimizer(net: nn.Module, optimizer: Optimizer, lr: float) -> torch.optim.Optimizer:
    if isinstance(optimizer, Adam):
        return torch.optim.Adam(
            net.parameters(),
            lr,
            (optimizer.beta1, optimizer.beta2),
            optimizer.epsilon,
            optimizer.weight_decay,
        )
    return torch.optim.SGD(
        net.parameters(), lr, optimizer.momentum, weight_decay=optimizer.weight_decay
    )


OPTIMIZERS: dict[str, tuple[Optimizer, float]] = {
    "sgd": (Sgd(momentum=0), 0.05),
    "momentum and decay": (Sgd(momentum=0.9, weight_decay=1e-2), 0.02),
    "adam": (Adam(weight_decay=1e-2), 1e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_the_loss_curve_is_torch_s(name: str, rule: str) -> None:
    build, shape = NETS[name]
    optimizer, lr = OPTIMIZERS[rule]
    torch.manual_seed(0)
    net = build()
    forward = normalize_forward(export(net, shape))
    same_tensors(forward, net)
    tensors = tensors_of(net)
    model = derive_training_graph(
        forward, trainable=list(tensors), loss="cross_entropy", optimizer=optimizer, classes=4
    )
    ours, theirs = OurTrainer(model, tensors, optimizer), torch_optimizer(net, optimizer, lr)
    curves = []
    for x, y in zip(*batches(shape), strict=True):
        theirs.zero_grad()
        loss = nnf.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
        theirs.step()
        out = ours.step(x, y, lr)
        curves.append((float(out["loss"]), loss.item()))
        assert float(out["grad_norm"]) == pytest.approx(norm.item(), rel=0.02)
    found, expected = np.array(curves).T
    assert np.abs(found - expected).max() < CURVE
    assert expected[-10:].mean() < expected[:10].mean()
