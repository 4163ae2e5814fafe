"""Models that were exported for one batch size: free for any, row by row, or refused by name."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from newer_exporter import export_newer
from onnx import TensorProto, helper, numpy_helper
from sessions import session_of
from torch import nn
from torch.nn import functional as nnf

from models.errors import UsageError
from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

TIME, WIDTH = 6, 8


class Encoder(nn.Module):
    """A transformer layer; with a class token, a position table, the sequence first."""

    def __init__(self, *, batch_first: bool = True, token: bool = False, heads: int = 2) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(WIDTH, heads, 16, 0.0, batch_first=batch_first)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if token else None
        self.places = nn.Parameter(torch.randn(1, TIME + token, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.places
        x = self.layer(x) if self.batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x[:, 0] if self.token is not None else x.mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool = True, **more: Any) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layer = kind(WIDTH, 5, batch_first=batch_first, **more)  # type: ignore[call-arg]
        self.head = nn.Linear(5 * (1 + more.get("bidirectional", False)), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(x if self.batch_first else x.transpose(0, 1))
        return self.head(y[:, -1] if self.batch_first else y[-1])


class LearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(WIDTH, 5, batch_first=True), nn.Linear(5, 3)
        self.start = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0][:, 2])


class Queries(nn.Module):
    """Learned queries repeated for every sample, and positions put beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 2 * WIDTH))
        self.places = nn.Parameter(torch.randn(TIME, WIDTH))
        self.head = nn.Linear(3 * 2 * WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.places.unsqueeze(0).expand(x.shape[0], -1, -1)], -1)
        scores = self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1) @ x.transpose(1, 2)
        return self.head((scores.softmax(-1) @ x).flatten(1))


class TwoOfEverything(nn.Module):
    """Two channels, two groups: with a batch of two all these sizes look alike."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv1d(2, 2, 1), nn.GroupNorm(2, 2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        x = x.reshape(n, 2, 3, WIDTH).reshape(n * 2, 3, WIDTH).tanh().reshape(n, 2, 3 * WIDTH)
        return self.head(self.norm(self.mix(x)).mean(-1))


class MaskPerHead(nn.Module):
    """A causal mask that was repeated for every sample and head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.triu(torch.full((TIME, TIME), float("-inf")), 1).repeat(2 * x.shape[0], 1, 1)
        return self.head(self.layer(x, x, x, attn_mask=mask, need_weights=False)[0][:, -1])


class Enlarged(nn.Module):
    """As large as before again, by sizes that hold the batch as well."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 2, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nnf.interpolate(self.down(x.unsqueeze(1)), size=x.shape[1:])


class OneNumber(nn.Module):
    """Squeezed without saying which axis: with a batch of one that is the batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(TIME * WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)).squeeze().sigmoid()


class FrameByFrame(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(WIDTH, 4), nn.Linear(TIME * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, f = x.shape
        return self.head(self.inner(x.reshape(n * t, f)).tanh().reshape(n, t, 4).reshape(n, -1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "encoder": Encoder,
    "encoder, one head": lambda: Encoder(heads=1),
    "encoder, sequence first": lambda: Encoder(batch_first=False),
    "class token": lambda: Encoder(token=True),
    "class token, sequence first": lambda: Encoder(token=True, batch_first=False),
    "lstm": lambda: Recurrent(nn.LSTM),
    "lstm, two layers both ways": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru, sequence first": lambda: Recurrent(nn.GRU, batch_first=False),
    "gru, learned start": LearnedStart,
    "queries": Queries,
    "two of everything": TwoOfEverything,
    "mask for every head": MaskPerHead,
    "enlarged": Enlarged,
    "one number": OneNumber,
    "frame by frame": FrameByFrame,
}
BY_DYNAMO = ["class token, sequence first", "gru, learned start", "enlarged"]


def exported(
    name: str, batch: int, *, dynamo: bool = False, dynamic: bool = False
) -> onnx.ModelProto:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    x = torch.randn(batch, TIME, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            return export_newer(net, (x,))
        axes = {"x": {0: "n"}} if dynamic else {}
        buffer = io.BytesIO()
        torch.onnx.export(net, (x,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return onnx.load_from_string(buffer.getvalue())


def check_rows(given: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Demand that each row of a batch is answered as the given model answers it alone."""
    normal = normalize_forward(given)
    x = np.random.default_rng(1).standard_normal((5, TIME, WIDTH)).astype(np.float32)
    before, after = session_of(given), session_of(normal)
    name = before.get_inputs()[0].name
    alone = [
        np.asarray(before.run(None, {name: np.repeat(row[None], batch, 0)})[0]).reshape(batch, -1)
        for row in x
    ]
    for size in (1, 3, 5):
        answer = np.asarray(after.run([normal.graph.output[0].name], {"x": x[:size]})[0])
        assert len(answer) == size
        np.testing.assert_allclose(
            answer.reshape(size, -1), [rows[0] for rows in alone[:size]], rtol=1e-4, atol=1e-5
        )
    return normal


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_an_export_for_one_batch_size_answers_any_batch_row_by_row(name: str, batch: int) -> None:
    check_rows(exported(name, batch), batch)


@pytest.mark.parametrize("name", ["encoder, sequence first", "class token", "one number", "lstm"])
def test_an_export_for_any_batch_stays_right(name: str) -> None:
    check_rows(exported(name, 2, dynamic=True), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_DYNAMO)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_newer_exporter_s_graphs_are_freed_as_well(name: str, batch: int) -> None:
    check_rows(exported(name, batch, dynamo=True), batch)


def test_a_class_token_that_was_written_for_one_sample_is_trained() -> None:
    forward = normalize_forward(exported("class token", 1))
    trainable = [name for name in weights(forward) if name == "token"]
    step = derive_training_graph(
        forward, trainable=trainable, loss="cross_entropy", optimizer=Sgd()
    )
    tensors = {"token": weights(forward)["token"]}
    feed = {
        "x": np.random.default_rng(0).standard_normal((3, TIME, WIDTH)).astype(np.float32),
        "y": np.array([0, 1, 2]),
        "sample_weight": np.ones(3, np.float32),
        "lr": np.array(0.1, np.float32),
    }
    slots = {"momentum/token": np.zeros((1, 1, WIDTH), np.float32)}
    (moved,) = session_of(step).run(["new/token"], {**tensors, **feed, **slots})
    assert np.abs(moved - tensors["token"]).max() > 1e-4


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"{op} {output}", **attributes)


def by_hand(
    nodes: list[onnx.NodeProto], tensors: dict[str, Any], batch: int | str = 1
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("input", TensorProto.FLOAT, [batch, TIME, WIDTH])],
        [value("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)


def test_sizes_of_one_that_look_like_the_batch_are_told_from_it_by_what_follows() -> None:
    """[6, 1, 8] to [6, 1, 1, 8]: either 1 could be the batch until the last transpose."""
    model = by_hand(
        [
            node("Transpose", "input", "t", perm=[1, 0, 2]),
            node("Reshape", "t s", "r", allowzero=1),
            node("Transpose", "r", "u", perm=[2, 1, 0, 3]),
            node("Reshape", "u flat", "out"),
        ],
        {"s": [TIME, 1, 1, WIDTH], "flat": [1, TIME * WIDTH]},
    )
    x = np.arange(3 * TIME * WIDTH, dtype=np.float32).reshape(3, TIME, WIDTH)
    (answer,) = session_of(normalize_forward(model)).run(None, {"x": x})
    np.testing.assert_array_equal(answer, x.reshape(3, -1))


def test_a_size_that_is_written_behind_a_batch_declared_open_is_found() -> None:
    model = by_hand(
        [
            node("Transpose", "input", "t", perm=[1, 0, 2]),
            node("Reshape", "t s", "r"),
            node("Transpose", "r", "u", perm=[1, 0, 2]),
            node("ReduceMean", "u axis", "out", keepdims=0),
        ],
        {"s": [TIME, 4 * 2, WIDTH // 2], "axis": [1]},
        batch="n",
    )
    with pytest.raises(UsageError, match=r"'Reshape r' \(Reshape\) works for one batch size only"):
        normalize_forward(model)  # two heads end up beside the samples
    model.graph.node[-1].CopyFrom(node("Reshape", "u back", "out"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, -1]), "back"))
    normal = normalize_forward(model)
    x = np.random.default_rng(0).standard_normal((3, TIME, WIDTH)).astype(np.float32)
    (answer,) = session_of(normal).run(None, {"x": x})
    heads = x.reshape(3, TIME, 2, 4).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(answer, heads.reshape(3, -1))


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int, str]] = {
    "rows written by number": (
        [node("ScatterND", "input places values", "out")],
        {"places": [[0, 2]], "values": np.zeros((1, WIDTH), np.float32)},
        1,
        r"'ScatterND out' \(ScatterND\) works for one batch size only; export the model with a dyn",
    ),
    "another constant for each sample": (
        [node("Add", "input c", "out")],
        {"c": np.arange(2 * TIME * WIDTH, dtype=np.float32).reshape(2, TIME, WIDTH)},
        2,
        r"'c' has other values for each of 2 samples; export the model with a dynamic batch",
    ),
    "the samples are weighed against each other": (
        [node("Softmax", "input", "out", axis=0)],
        {},
        1,
        r"'Softmax out' \(Softmax\)",
    ),
    "the samples are added up": (
        [node("ReduceSum", "input axes", "out", keepdims=0)],
        {"axes": [0]},
        1,
        r"'ReduceSum out' \(ReduceSum\)",
    ),
    "the first sample is taken": (
        [node("Gather", "input first", "out", axis=0)],
        {"first": 0},
        1,
        r"'Gather out' \(Gather\) works for one batch size only",
    ),
    "attention among the samples": (
        [
            node("Transpose", "input", "t", perm=[1, 0, 2]),
            node("Transpose", "input", "u", perm=[1, 2, 0]),
            node("MatMul", "t u", "s"),
            node("MatMul", "s t", "v"),
            node("Transpose", "v", "out", perm=[1, 0, 2]),
        ],
        {},
        1,
        r"'MatMul s' \(MatMul\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_freed_is_refused_with_its_node(case: str) -> None:
    nodes, tensors, batch, words = REFUSED[case]
    with pytest.raises(UsageError, match=words):
        normalize_forward(by_hand(nodes, tensors, batch))


def test_squeezing_a_sample_that_has_no_axis_of_one_does_nothing() -> None:
    model = by_hand([node("Squeeze", "input", "out")], {}, batch="n")
    x = np.random.default_rng(0).standard_normal((1, TIME, WIDTH)).astype(np.float32)
    session = session_of(normalize_forward(model))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


def test_a_constant_cast_to_the_type_of_samples_does_not_mix_them() -> None:
    nodes = [node("CastLike", "six input", "six_float"), node("Min", "input six_float", "out")]
    for batch in ("n", 1):
        normalize_forward(by_hand(nodes, {"six": np.array(6)}, batch=batch))


def test_a_row_for_each_moment_of_a_sample_is_refused_by_that() -> None:
    for batch in ("n", 1):
        model = by_hand([node("Reshape", "input s", "out")], {"s": [-1, WIDTH]}, batch=batch)
        with pytest.raises(UsageError, match=rf"'out' has {TIME} rows for each sample"):
            normalize_forward(model)
