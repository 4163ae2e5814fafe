"""What is trained of a file's constants, what is left alone and why, and what had been merged."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sessions import session_of
from torch import nn
from torch.nn import functional as nnf

from models.graph.facts.constants import constants
from models.graph.reading.forward_graph import normalize_forward, statistics, weights

TIME, WIDTH = 8, 16
RNG = np.random.default_rng(0)


def exported(net: nn.Module, *shape: int, fold: bool = False) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2, *shape),),
            buffer,
            dynamo=False,
            do_constant_folding=fold,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    return onnx.load_from_string(buffer.getvalue())


class WithTable(nn.Module):
    """A linear layer, a table that is added to, or multiplied with, what it makes, and another."""

    def __init__(self, table: np.ndarray, *, factor: bool = False) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.factor = factor
        self.register_buffer("table", torch.as_tensor(table, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head((x * self.table if self.factor else x + self.table).mean(1))


class Scored(nn.Module):
    """Attention whose scores get a constant mask added."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.q, self.k, self.head = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 2)
        self.register_buffer("table", torch.as_tensor(mask, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (self.q(x) @ self.k(x).transpose(1, 2) / 2 + self.table).softmax(-1)
        return self.head((scores @ x)[:, -1])


def sines(*, halves: bool = False) -> np.ndarray:
    angles = np.arange(TIME)[:, None] / 10000 ** (np.arange(0, WIDTH, 2) / WIDTH)
    if halves:
        return np.concatenate([np.sin(angles), np.cos(angles)], 1)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(TIME, WIDTH)


def above(value: float) -> np.ndarray:
    return np.triu(np.full((TIME, TIME), value), 1)


LEFT_ALONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a causal mask of 0 and -inf": (lambda: Scored(above(-np.inf)), "not finite"),
    "a causal mask of 0 and -1e9": (lambda: Scored(above(-1e9)), "a mask"),
    "a causal mask of 0 and the least float": (
        lambda: Scored(above(float(np.finfo(np.float32).min))),
        "a mask",
    ),
    "a mask of 0 and -10000": (lambda: Scored(above(-1e4)), "a mask"),
    "a mask that hides everything": (lambda: Scored(np.full((TIME, TIME), -1e9)), "a mask"),
    "a mask of ones and zeros": (
        lambda: WithTable(np.tril(np.ones((TIME, WIDTH))), factor=True),
        "a mask",
    ),
    "positions as sines beside cosines": (lambda: WithTable(sines()), "sines and cosines"),
    "positions as sines, then cosines": (
        lambda: WithTable(sines(halves=True)),
        "sines and cosines",
    ),
    "positions as sines, scaled": (lambda: WithTable(3.7 * sines()[None]), "sines and cosines"),
    "a ramp": (lambda: WithTable(np.linspace(-1, 1, WIDTH)), "evenly spaced"),
    "coordinates": (
        lambda: WithTable(np.add.outer(np.arange(TIME), 0.5 * np.arange(WIDTH))),
        "evenly spaced",
    ),
    "counts to divide by": (
        lambda: WithTable(1 / np.arange(1, WIDTH + 1), factor=True),
        "evenly spaced",
    ),
    "distances": (
        lambda: Scored(-0.5 * np.abs(np.subtract.outer(np.arange(TIME), np.arange(TIME)))),
        "evenly spaced",
    ),
    "rotary positions": (lambda: WithTable(sines(halves=True), factor=True), "sines and cosines"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_masks_and_tables_of_sines_are_left_alone_and_it_is_said_why(case: str) -> None:
    build, why = LEFT_ALONE[case]
    normal = normalize_forward(exported(build(), TIME, WIDTH))
    found = {constant.name: constant for constant in constants(normal)}
    assert "table" not in weights(normal)
    assert not found["table"].is_trained
    assert why in found["table"].why
    assert {"head.bias"} < set(weights(normal))


@pytest.mark.parametrize("factor", [False, True])
def test_a_learned_table_is_trained_and_that_it_may_be_fixed_is_said(factor: bool) -> None:
    table = 0.02 * RNG.standard_normal((1, TIME, WIDTH))
    normal = normalize_forward(exported(WithTable(table, factor=factor), TIME, WIDTH))
    (found,) = [c for c in constants(normal) if c.name == "table"]
    assert found.is_trained
    assert found.shape == (1, TIME, WIDTH)
    assert "a learned table, or a fixed one" in found.why


def mel_filters() -> np.ndarray:
    places = np.arange(65)[:, None]
    centers = np.linspace(2, 60, 12)
    return np.maximum(0, 1 - np.abs(places - centers) / 4).astype(np.float32)


def fourier(*, window: bool) -> np.ndarray:
    angles = 2 * np.pi * np.outer(np.arange(33), np.arange(64)) / 64
    basis = np.concatenate([np.cos(angles), np.sin(angles)])
    return basis * (np.hanning(64) if window else 1)


class FrontEnd(nn.Module):
    """Spectrogram by a fixed convolution, mel bands by a fixed matrix, then a net."""

    def __init__(self, basis: np.ndarray, bands: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("basis", torch.as_tensor(basis[:, None], dtype=torch.float32))
        self.register_buffer("bands", torch.as_tensor(bands))
        self.head = nn.Linear(bands.shape[1], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = nnf.conv1d(x, self.basis, stride=32)
        power = parts[:, :33] ** 2 + parts[:, 33:] ** 2
        return self.head(torch.log1p(power.transpose(1, 2) @ self.bands).mean(1))


@pytest.mark.parametrize("window", [True, False])
def test_a_spectrogram_in_front_of_all_weights_is_no_weight(window: bool) -> None:
    net = FrontEnd(fourier(window=window), mel_filters()[:33])
    normal = normalize_forward(exported(net, 1, 256))
    told = {
        constant.name: constant.why for constant in constants(normal) if not constant.is_trained
    }
    assert list(weights(normal)) == ["head.weight", "head.bias"]
    assert told == {
        "basis": ("a Fourier basis" if window else "a table of sines and cosines")
        + " in front of all weights",
        "bands": "a filter bank in front of all weights",
    }


@pytest.mark.parametrize("shape", [(16, 1, 64), (16, 1, 9), (33, 1, 400)])
def test_learned_filters_on_a_raw_signal_are_weights(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv1d(1, shape[0], shape[2]), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    assert "0.weight" in weights(normalize_forward(exported(net, 1, 500)))


def pruned() -> torch.Tensor:
    weight = torch.zeros(8, WIDTH)
    weight[torch.arange(3), torch.tensor([5, 1, 9])] = torch.tensor([0.3, 1.0, 0.5])
    return weight


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, WIDTH),
        torch.eye(WIDTH),
        pruned(),
        torch.linspace(-1, 1, WIDTH)[None] * torch.arange(1, 5)[:, None],
    ],
    ids=["zeros", "identity", "pruned", "straight lines"],
)
def test_a_first_layer_that_begins_simple_is_trained(weight: torch.Tensor) -> None:
    net = nn.Linear(WIDTH, len(weight))
    net.weight.data = weight
    assert "weight" in weights(normalize_forward(exported(net, WIDTH)))


@pytest.mark.parametrize("affine", [True, False])
def test_a_group_norm_s_inner_ones_and_zeros_are_not_trained(affine: bool) -> None:
    net = nn.Sequential(nn.Conv1d(2, 6, 3), nn.GroupNorm(3, 6, affine=affine), nn.Flatten())
    normal = normalize_forward(exported(net, 2, 10))
    expected = {"0.weight", "0.bias"} | ({"1.weight", "1.bias"} if affine else set())
    assert set(weights(normal)) == expected
    left = [c for c in constants(normal) if not c.is_trained]
    assert {c.shape for c in left} == {(3,)}
    assert all("an exporter wrote" in c.why for c in left)


class Fresh(nn.Module):
    """Norms and biases as they are before any training: the exporter finds them equal."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        for layer in self.layers:
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        return x


def test_equal_tensors_of_a_fresh_net_are_each_layer_s_own() -> None:
    notes: list[str] = []
    net = Fresh()
    given = exported(net, 8)
    normal = normalize_forward(given, on_note=notes.append)
    names = {name for name, _ in net.named_parameters()}
    assert set(weights(normal)) == names
    assert [note.split(" (")[0] for note in notes] == [
        "the exporter had merged equal tensors of several layers"
    ]
    x = RNG.standard_normal((4, 8)).astype(np.float32)
    before, after = session_of(given).run(None, {"x": x}), session_of(normal).run(None, {"x": x})
    np.testing.assert_allclose(before[0], after[0], rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """One layer that is used three times, and its input's table as the head: tied on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(9, 8), nn.Linear(8, 8)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x.to(torch.int64))
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return x @ self.embedding.weight.T


def test_what_is_tied_on_purpose_stays_tied() -> None:
    notes: list[str] = []
    normal = normalize_forward(exported(Twice(), 5), on_note=notes.append)
    assert notes == []
    assert {value.size for value in weights(normal).values()} == {72, 64, 8}
    assert len(weights(normal)) == 3


def test_without_names_merged_tensors_are_told_apart_by_their_layers() -> None:
    """As other exporters merge: no Identity says which tensor was whose."""

    def node(op: str, inputs: str, output: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), [output])

    tensors = {
        "zeros": np.zeros(4),
        "ones": np.ones(4),
        "a": RNG.standard_normal((4, 4)),
        "b": RNG.standard_normal((4, 4)),
    }
    graph = helper.make_graph(
        [
            node("Gemm", "input a zeros", "one"),
            node("Gemm", "one b zeros", "two"),
            node("Gemm", "two a zeros", "three"),
            node("BatchNormalization", "three ones zeros zeros ones", "four"),
            node("Mul", "four ones", "out"),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    normal = normalize_forward(model)
    first, second, third, norm, gain = normal.graph.node
    assert first.input[2] == third.input[2] != second.input[2]
    assert len({*first.input[2:], *second.input[2:], *norm.input[1:], gain.input[1]}) == 7
    assert set(statistics(normal)) == set(norm.input[3:])
    assert len(weights(normal)) == 7
    assert normalize_forward(normal) == normal
