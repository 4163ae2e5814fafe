"""Batch norm that adapts, against torch in training mode: losses, gradients, running statistics."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sessions import session_of
from torch import nn
from torch.nn import functional as nnf
from torch_nets import export, rename_transposed

from models.errors import UsageError
from models.graph.reading.forward_graph import normalize_forward, statistics, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

BATCH, CLASSES = 6, 3
RATE = 2.0**20  # so high that the new weights are the gradient
RIGHT = 1e-5  # of the largest element


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(-1)


class Steps(nn.Module):
    """One head for each moment: a norm on rows of which several are of one sample."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.first, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7, momentum=0.3)
        self.last = nn.Linear(7, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x.transpose(0, 1) if self.turned else x
        rows = self.norm(self.first(hidden.reshape(-1, 5))).tanh()
        hidden = self.last(rows).reshape(*hidden.shape[:2], CLASSES)
        return (hidden.transpose(0, 1) if self.turned else hidden).mean(1)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "features": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)),
        (5,),
    ),
    "input": (lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, CLASSES)), (5,)),
    "last": (lambda: nn.Sequential(nn.Linear(5, CLASSES), nn.BatchNorm1d(CLASSES)), (5,)),
    "1-D": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, CLASSES, 2), Mean()
        ),
        (2, 9),
    ),
    "2-D": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False),
            nn.BatchNorm2d(6, eps=1e-3, momentum=0.25),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, groups=6, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, CLASSES, 1),
            Mean(),
        ),
        (2, 9, 8),
    ),
    "2-D without scale": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, CLASSES, 2), Mean()
        ),
        (2, 6, 6),
    ),
    "3-D": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, CLASSES, 2), Mean()
        ),
        (2, 4, 5, 4),
    ),
    "moments as rows": (lambda: Steps(turned=False), (4, 5)),
    "moments as rows, turned": (lambda: Steps(turned=True), (4, 5)),
}


def built(name: str) -> tuple[nn.Module, onnx.ModelProto, tuple[int, ...]]:
    """Return a net of statistics that say something, and its graph with torch's names."""
    build, shape = NETS[name]
    torch.manual_seed(3)
    net = build()
    for key, value in net.state_dict().items():
        if value.dim() == 1 and key.endswith(("mean", "weight", "bias")):
            nn.init.uniform_(value, 0.5, 1.5)
        if key.endswith("var"):
            nn.init.uniform_(value, 0.5, 2)
    model = export(net, shape)
    rename_transposed(model, net)
    return net, normalize_forward(model), shape


MOMENTA = {"2-D": 0.25, "moments as rows": 0.3, "moments as rows, turned": 0.3}  # else 0.1
PLACES = {  # values of a channel in one sample; else 1
    "1-D": 7,
    "2-D": 42,
    "2-D without scale": 16,
    "3-D": 36,
    "moments as rows": 4,
    "moments as rows, turned": 4,
}


class OurStep:
    """The training graph of a net whose norms adapt: one step from where it stands."""

    def __init__(self, forward: onnx.ModelProto) -> None:
        # Of a norm without scale the exporter makes constants.
        values = {n: v for n, v in weights(forward).items() if "Constant" not in n}
        self.learned = list(values)
        self.tensors = {**values, **statistics(forward)}
        model = derive_training_graph(
            forward,
            trainable=self.learned,
            loss="cross_entropy",
            optimizer=Sgd(momentum=0),
            adaptive=list(statistics(forward)),
        )
        self.session = session_of(model)

    def __call__(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Return the loss, gradients, and new statistics, by torch's names."""
        feed = {
            "x": x,
            "y": y,
            "sample_weight": weight.astype(np.float32),
            "lr": np.array(RATE, np.float32),
            **self.tensors,
        }
        names = [value.name for value in self.session.get_outputs()]
        out = dict(zip(names, self.session.run(names, feed), strict=True))
        found = {n: out[f"new/{n}"] for n in self.tensors}
        return {n: (self.tensors[n] - v) / RATE if n in self.learned else v
                for n, v in found.items()} | {"loss": out["loss"]}  # fmt: skip


def samples(shape: tuple[int, ...], count: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    x = random.normal(0.7, 1.5, size=(count, *shape)).astype(np.float32)
    return x, np.arange(count) % CLASSES


def torch_step(net: nn.Module, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The same by torch in training mode and float64."""
    net = net.double().train()
    net.zero_grad()
    loss = nnf.cross_entropy(net(torch.from_numpy(x).double()), torch.from_numpy(y))
    loss.backward()
    found = {n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None}
    found |= {n: b.numpy().copy() for n, b in net.named_buffers() if b.dim()}
    return {"loss": loss.detach().numpy(), **found}


def assert_same(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], right: float = RIGHT
) -> None:
    """A gradient that is 0 by its nature (of a bias before a norm) is compared with the largest."""
    assert found.keys() == expected.keys()
    largest = max(np.abs(v).max() for n, v in expected.items() if "running" not in n)
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-2 * largest)
        assert np.abs(found[name] - value).max() < right * scale, name


@pytest.mark.parametrize("name", NETS)
def test_a_step_has_torch_s_gradients_and_running_statistics(name: str) -> None:
    net, forward, shape = built(name)
    step = OurStep(forward)
    for count in (BATCH, 4):
        x, y = samples(shape, count)
        found = step(x, y, np.ones(count))
        net, _, _ = built(name)
        assert_same(found, torch_step(net, x, y))


@pytest.mark.parametrize("name", NETS)
def test_padding_has_no_part_in_any_output(name: str) -> None:
    _, forward, shape = built(name)
    step = OurStep(forward)
    x, y = samples(shape)
    strange = np.full((3, *shape), 7, np.float32)
    found = step(np.concatenate([x, strange]), np.append(y, [0, 0, 0]), np.repeat([1, 0], [6, 3]))
    assert_same(found, step(x, y, np.ones(BATCH)), 1e-6)


@pytest.mark.parametrize("name", NETS)
def test_a_sample_of_weight_two_counts_as_two_of_it(name: str) -> None:
    """Class weights and the mass of coreset points come this way: all of it but N, which counts
    values and not weights."""
    _, forward, shape = built(name)
    step = OurStep(forward)
    x, y = samples(shape)
    weight = np.array([1, 2, 1, 1, 3, 1])
    found = step(x, y, weight)
    twice = np.repeat(np.arange(BATCH), weight)
    expected = step(x[twice], y[twice], np.ones(len(twice)))

    for key in [key for key in found if key.endswith("var")]:
        kept, places = 1 - MOMENTA.get(name, 0.1), PLACES.get(name, 1)
        biased = [
            (out.pop(key) - kept * step.tensors[key]) * (count * places - 1) / (count * places)
            for out, count in ((found, BATCH), (expected, len(twice)))
        ]
        np.testing.assert_allclose(*biased, rtol=2e-5)
    assert_same(found, expected, 2e-5)


def test_several_norms_adapt_one_behind_the_other() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, CLASSES, 1),
        Mean(),
    )
    forward = normalize_forward(export(net, (1, 8, 8)))
    x, y = samples((1, 8, 8))
    assert_same(OurStep(forward)(x, y, np.ones(BATCH)), torch_step(net, x, y))


def test_norms_that_are_not_named_stay_frozen_and_cost_nothing() -> None:
    _, forward, _ = built("2-D")
    settings: dict[str, Any] = {
        "trainable": list(weights(forward)),
        "loss": "cross_entropy",
        "optimizer": Sgd(),
    }
    frozen = derive_training_graph(forward, **settings)
    again = derive_training_graph(forward, **settings, adaptive=())
    assert frozen.SerializeToString() == again.SerializeToString()
    assert not {"1.running_mean", "1.running_var"} & {value.name for value in frozen.graph.input}


@pytest.mark.parametrize(("written", "kept"), [(0.0, 0.9), (1.0, 0.9), (0.99, 0.99)])
def test_a_momentum_of_0_or_1_is_none_to_go_by(written: float, kept: float) -> None:
    """Exporters of models that were only ever to be asked write what they like."""
    _, forward, shape = built("2-D")
    (norm,) = [node for node in forward.graph.node if node.op_type == "BatchNormalization"]
    (attribute,) = [a for a in norm.attribute if a.name == "momentum"]
    x, y = samples(shape)
    usual = OurStep(forward)(x, y, np.ones(BATCH))["1.running_mean"]
    before = statistics(forward)["1.running_mean"]
    attribute.f = written
    found = OurStep(forward)(x, y, np.ones(BATCH))["1.running_mean"]
    np.testing.assert_allclose(
        (found - before) / (1 - kept), (usual - before) / MOMENTA["2-D"], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("adaptive", "words"),
    [
        (["1.running_mean"], "both of its statistics"),
        (["1.running_mean", "1.running_var", "3.weight"], "'3.weight' is no statistic"),
    ],
)
def test_half_a_norm_or_none_is_refused(adaptive: list[str], words: str) -> None:
    _, forward, _ = built("2-D")
    with pytest.raises(UsageError, match=words):
        derive_training_graph(
            forward,
            trainable=["0.weight"],
            loss="cross_entropy",
            optimizer=Sgd(),
            adaptive=adaptive,
        )


def test_statistics_of_something_else_than_samples_are_refused_by_name() -> None:
    """Behind a product over the samples no row is of one of them."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(5), nn.Linear(5, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            channels = self.norm(x.permute(1, 2, 0).reshape(4, 5, -1))
            return self.last(channels.permute(2, 0, 1).mean(1))

    forward = normalize_forward(export(Mixed(), (4, 5)))
    with pytest.raises(UsageError, match=r"BatchNormalization.*cannot adapt.*--norms frozen"):
        OurStep(forward)
