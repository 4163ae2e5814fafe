"""Operators newer than our opset: written out they mean the same, and torch's nets train."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from net_gradients import assert_torch_s_step, newer
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sessions import session_of
from torch import nn
from torch.nn import functional as nnf

from models.errors import UsageError
from models.graph.reading.forward_graph import normalize_forward, weights

Build = Callable[[], nn.Module]


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def one_node(
    op: str,
    inputs: list[np.ndarray | None],
    *,
    x: tuple[int, ...],
    opset: int = 24,
    places: tuple[int, ...] = (0,),
    **attributes: Any,
) -> onnx.ModelProto:
    """The node on the model's input at ``places``, and constants elsewhere."""
    constants = {f"in{i}": value for i, value in enumerate(inputs) if value is not None}
    names = [f"in{i}" if f"in{i}" in constants else "" for i in range(len(inputs))]
    for i in places:
        names[i] = "input"
    graph = helper.make_graph(
        [helper.make_node(op, names, ["out"], "node", **attributes)],
        "one",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *x])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


ALL = (0, 1, 2)
MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]], bool)
HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
COSINES, SINES = np.cos(values(6, 4)), np.sin(values(6, 4))
POSITIONS = np.array([[0, 2, 1, 5]])

MODELS: dict[str, onnx.ModelProto] = {
    "attention": one_node("Attention", [None] * 3, x=(2, 4, 8), places=ALL),
    "attention of opset 23": one_node("Attention", [None] * 3, x=(2, 4, 8), places=ALL, opset=23),
    "attention, causal": one_node("Attention", [None] * 3, x=(2, 4, 8), places=ALL, is_causal=1),
    "attention, scaled": one_node("Attention", [None] * 3, x=(2, 4, 8), places=ALL, scale=0.3),
    "attention, capped": one_node("Attention", [None] * 3, x=(2, 4, 8), places=ALL, softcap=0.5),
    "attention, masked": one_node("Attention", [None] * 3 + [MASK], x=(2, 4, 8), places=ALL),
    "attention, nothing left": one_node(
        "Attention", [None] * 3 + [MASK & False], x=(2, 4, 8), places=ALL
    ),
    "attention, biased": one_node(
        "Attention", [None] * 3 + [values(1, 2, 4, 4)], x=(2, 4, 8), places=ALL, is_causal=1
    ),
    "attention, flat": one_node("Attention", [None] * 3, x=(4, 16), places=ALL, **HEADS),
    "attention, flat and causal": one_node(
        "Attention", [None] * 3, x=(4, 16), places=ALL, is_causal=1, **HEADS
    ),
    "attention to fewer heads": one_node(
        "Attention", [None, values(1, 2, 5, 8), values(1, 2, 5, 6)], x=(4, 4, 8)
    ),
    "attention to one head, flat": one_node(
        "Attention",
        [None, values(1, 5, 4), values(1, 5, 3)],
        x=(4, 16),
        q_num_heads=4,
        kv_num_heads=1,
    ),
    "rms": one_node("RMSNormalization", [None, values(8)], x=(4, 8)),
    "rms over two axes": one_node("RMSNormalization", [None, values(4, 8)], x=(4, 8), axis=1),
    "rms over two axes from the end": one_node(
        "RMSNormalization", [None, values(4, 8)], x=(4, 8), axis=-2, epsilon=0.1
    ),
    "swish": one_node("Swish", [None], x=(5,)),
    "swish, alpha": one_node("Swish", [None], x=(5,), alpha=1.7),
    "rotary": one_node("RotaryEmbedding", [None, COSINES, SINES, POSITIONS], x=(2, 4, 8), opset=23),
    "rotary, interleaved": one_node(
        "RotaryEmbedding", [None, COSINES, SINES, POSITIONS], x=(2, 4, 8), interleaved=1
    ),
    "rotary, flat": one_node(
        "RotaryEmbedding", [None, COSINES, SINES, POSITIONS], x=(4, 16), num_heads=2
    ),
    "rotary of a part": one_node(
        "RotaryEmbedding",
        [None, COSINES[:, :2].copy(), SINES[:, :2].copy(), POSITIONS],
        x=(2, 4, 8),
        rotary_embedding_dim=4,
    ),
    "rotary, interleaved part": one_node(
        "RotaryEmbedding",
        [None, COSINES[:, :2].copy(), SINES[:, :2].copy(), POSITIONS],
        x=(4, 16),
        num_heads=2,
        rotary_embedding_dim=4,
        interleaved=1,
    ),
    "rotary without positions": one_node(
        "RotaryEmbedding", [None, values(1, 4, 4), values(1, 4, 4)], x=(2, 4, 8)
    ),
    "global maximum": one_node("GlobalMaxPool", [None], x=(2, 4, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_newer_operator_means_the_same_written_out(name: str) -> None:
    model = MODELS[name]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = values(3, *shape)
    reference = ReferenceEvaluator(model)
    expected = np.concatenate([reference.run(None, {"input": row[None]})[0] for row in x])
    normal = normalize_forward(model)
    assert normal.opset_import[0].version == 21
    (found,) = session_of(normal).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if "rotary" in name or "masked" in name or "biased" in name:
        assert not weights(normal)


class Block(nn.Module):
    """Attention with heads that are shared and positions that turn, as small language models."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm = nn.RMSNorm(16)
        self.q = nn.Linear(16, 16, bias=False)
        self.kv = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 4)
        self.causal = causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.embed(x))
        q = self.q(h).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.kv(h).chunk(2, -1)
        k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (k, v))
        mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
        h = h + mixed.transpose(1, 2).flatten(2)
        return self.head(nnf.silu(h).mean(1))


NETS: dict[str, tuple[Build, int]] = {
    "shared heads": (lambda: Block(causal=False), 23),
    "shared heads, causal": (lambda: Block(causal=True), 24),
    "encoder": (
        lambda: nn.Sequential(
            nn.Linear(6, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
            nn.Flatten(),
            nn.Linear(40, 4),
        ),
        23,
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.RMSNorm(6, eps=1e-3),
            nn.Linear(6, 8),
            nn.RMSNorm((5, 8)),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(40, 4),
        ),
        24,
    ),
}


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
def test_a_net_exported_at_a_newer_opset_trains_as_in_torch(name: str, *, dynamic: bool) -> None:
    build, opset = NETS[name]
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():  # equal tensors the exporter would merge
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert_torch_s_step(net, newer(net, (5, 6), dynamic=dynamic, opset=opset), (5, 6))


class Normed(nn.Module):
    def __init__(self, scale: np.ndarray) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nnf.rms_norm(x, (4,), self.scale, 1e-5)


def test_the_scale_of_a_first_rms_norm_is_a_weight() -> None:
    model = one_node("RMSNormalization", [None, values(4)], x=(4,))
    assert list(weights(normalize_forward(model))) == ["in1"]
    assert_torch_s_step(Normed(values(4)), model, (4,))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            one_node("Attention", [None] * 6, x=(2, 4, 8), places=(0, 1, 2, 4, 5)),
            "'node'.*past keys.*without a cache",
        ),
        (one_node("CumProd", [None, np.array(1)], x=(4,), opset=26), "'node'.*CumProd.*opset 21"),
    ],
)
def test_what_has_no_older_form_is_refused_by_name(model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        normalize_forward(model)
