"""Recurrent nets from both exporters against torch, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from net_gradients import EXPORT_PARAMETERS, EXPORTS, assert_torch_s_step, newer, older
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch_nets import export, export_by_dynamo

from models.errors import UsageError
from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

SHAPE = (6, 5)


class Recurrent(nn.Module):
    """A layer before the recurrence, and a head on what ``read`` takes from it."""

    def __init__(
        self, kind: type[nn.RNNBase], read: Callable[..., torch.Tensor], **options: Any
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 4)
        self.net = kind(4, 3, batch_first=True, **options)
        self.read = read
        with torch.no_grad():
            found = read(*self.net(torch.zeros(1, 6, 4)))
        self.head = nn.Linear(found.shape[-1], 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.read(*self.net(torch.tanh(self.embed(x)))))


def last_time(y: torch.Tensor, _: Any) -> torch.Tensor:
    return y[:, -1]


def mean_over_time(y: torch.Tensor, _: Any) -> torch.Tensor:
    return y.mean(1)


def last_state(_: torch.Tensor, state: Any) -> torch.Tensor:
    h = state[0] if isinstance(state, tuple) else state
    return h[-1]


def all_last(y: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.cat([y[:, 0], *state[0], *state[1]], 1)


def both_ends(_: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.cat([h[-2], h[-1]], 1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm, last time": lambda: Recurrent(nn.LSTM, last_time),
    "lstm, last state": lambda: Recurrent(nn.LSTM, last_state),
    "lstm, everything, two layers": lambda: Recurrent(nn.LSTM, all_last, num_layers=2),
    "lstm both ways, two layers": lambda: Recurrent(
        nn.LSTM, mean_over_time, bidirectional=True, num_layers=2, dropout=0.3
    ),
    "lstm without bias": lambda: Recurrent(nn.LSTM, mean_over_time, bias=False),
    "gru, last time": lambda: Recurrent(nn.GRU, last_time),
    "gru both ways, ends": lambda: Recurrent(nn.GRU, both_ends, bidirectional=True),
    "gru, three layers": lambda: Recurrent(nn.GRU, mean_over_time, num_layers=3),
    "rnn, last state": lambda: Recurrent(nn.RNN, last_state),
    "rnn with relu both ways": lambda: Recurrent(
        nn.RNN, mean_over_time, nonlinearity="relu", bidirectional=True
    ),
}


@pytest.mark.parametrize("export", EXPORT_PARAMETERS)
@pytest.mark.parametrize("name", NETS)
def test_a_recurrent_net_trains_as_in_torch(name: str, export: str) -> None:
    if name.startswith("rnn") and export == "newer, fixed":
        pytest.skip("the exporter unrolls it, with the first step's bias in a constant of its own")
    torch.manual_seed(0)
    net = NETS[name]()
    assert_torch_s_step(net, EXPORTS[export](net, SHAPE), SHAPE)


class FirstStates(nn.Module):
    """First states that are learned too."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.randn(2, 1, 3))
        self.c = nn.Parameter(torch.randn(2, 1, 3))
        self.net = nn.LSTM(5, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [state.expand(2, x.shape[0], 3).contiguous() for state in (self.h, self.c)]
        return self.head(self.net(x, tuple(states))[0].mean(1))


@pytest.mark.parametrize("export", [older, pytest.param(newer, marks=pytest.mark.slow)])
def test_first_states_are_trained_too(export: Callable[..., onnx.ModelProto]) -> None:
    torch.manual_seed(0)
    net = FirstStates()
    model = export(net, SHAPE, dynamic=True)
    assert {"h", "c"} <= set(weights(normalize_forward(model)))
    assert_torch_s_step(net, model, SHAPE)


@pytest.mark.parametrize(
    "export_unfolded", [export, pytest.param(export_by_dynamo, marks=pytest.mark.slow)]
)
def test_weights_that_an_exporter_cuts_and_joins_keep_torch_s_own_names(
    export_unfolded: Callable[..., onnx.ModelProto],
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Recurrent(nn.GRU, mean_over_time), nn.Tanh(), nn.Linear(4, 4))
    model = export_unfolded(net, SHAPE)
    found = weights(normalize_forward(model))
    assert {name for name, _ in net.named_parameters() if ".net." in name} <= set(found)
    assert_torch_s_step(net, model, SHAPE)


def recurrent(op: str, **changes: Any) -> onnx.ModelProto:
    """x - Transpose - the operator - the last state, with ``changes`` of its inputs or attributes.

    ``inputs`` puts tensors at places; ``batch_first`` is the operator's own layout 1.
    """
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    generator = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return generator.uniform(-0.5, 0.5, shape).astype(np.float32)

    given = {1: values(1, gates * 4, 5), 2: values(1, gates * 4, 4), 3: values(1, gates * 8)}
    given |= changes.pop("inputs", {})
    batch_first = changes.get("layout", 0)
    names = ["input" if batch_first else "turned", *("" for _ in range(max(given)))]
    for i in given:
        names[i] = f"in{i}"
    outputs = changes.pop("outputs", ["", "h"])
    times = changes.pop("times", 6)
    nodes = [
        helper.make_node("Transpose", ["input"], ["turned"], perm=[1, 0, 2]),
        helper.make_node(op, names, outputs, "cell", hidden_size=4, **changes),
        helper.make_node("Squeeze", ["h", "axis"], ["out"]),
    ]
    axis = np.array([1 if batch_first else 0])
    tensors = {**{f"in{i}": value for i, value in given.items()}, "axis": axis}
    graph = helper.make_graph(
        nodes[batch_first:],
        op,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", times, 5])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class Given(nn.Module):
    """torch's LSTM with the weights of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.net = nn.LSTM(5, 4, batch_first=True)
        values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}

        def sorted_as_torch(rows: torch.Tensor) -> torch.Tensor:
            i, o, f, c = rows.chunk(4)
            return torch.cat([i, f, c, o])

        biases = values["in3"][0].chunk(2)
        with torch.no_grad():
            self.net.weight_ih_l0.copy_(sorted_as_torch(values["in1"][0]))
            self.net.weight_hh_l0.copy_(sorted_as_torch(values["in2"][0]))
            self.net.bias_ih_l0.copy_(sorted_as_torch(biases[0]))
            self.net.bias_hh_l0.copy_(sorted_as_torch(biases[1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[1][0][0]


@pytest.mark.parametrize("outputs", [["", "h"], ["", "h", ""], ["y", "h", "c"]])
def test_outputs_may_be_left_out(outputs: list[str]) -> None:
    model = recurrent("LSTM", outputs=outputs)
    assert_torch_s_step(Given(model), model, SHAPE)


def test_the_operator_s_own_batch_first_layout_is_taken() -> None:
    """onnxruntime does not run it; the transposed form it does."""
    model = recurrent("LSTM", layout=1)
    assert_torch_s_step(Given(model), model, SHAPE)


def derive(model: onnx.ModelProto) -> onnx.ModelProto:
    forward = normalize_forward(model)
    return derive_training_graph(
        forward, trainable=list(weights(forward)), loss="cross_entropy", optimizer=Sgd()
    )


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (recurrent("LSTM", inputs={7: np.ones((1, 12), np.float32)}), "peepholes"),
        (recurrent("GRU", clip=3.0), "clip"),
        (recurrent("LSTM", input_forget=1), "input_forget"),
        (recurrent("RNN", activations=["Softsign"]), "softsign is not supported; use tanh or relu"),
        (recurrent("GRU", activations=["HardSigmoid", "Tanh"]), "hardsigmoid, tanh"),
    ],
)
def test_what_has_no_gradient_is_refused_by_name(model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(UsageError, match=rf"'cell'.*{words}"):
        derive(model)


def test_times_in_the_place_of_the_batch_are_refused() -> None:
    """Without the transposition the net is sequence first, and its first axis is no batch."""
    model = recurrent("LSTM", outputs=["", "h"])
    model.graph.node[1].input[0] = "input"
    with pytest.raises(UsageError):
        derive(model)


def test_a_long_sequence_is_no_larger_a_graph() -> None:
    """Unrolled, onnxruntime would take minutes to load a thousand times."""
    sizes = {len(derive(recurrent("LSTM", times=t)).graph.node) for t in (10, 1000)}
    assert len(sizes) == 1
