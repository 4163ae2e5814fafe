"""Which constants of a graph are weights to train, which are left alone, and why. Pure.

Operators say what most constants are: the filters of a Conv are weights. Others can only be judged
by their values and by where they stand: masks, position tables, filter banks before any weight.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.graph.facts.joined_weights import JOINING_OPERATORS, joined_into
from models.graph.graph_builder import Array

__all__ = [
    "BIAS_OPERATORS",
    "MOVING_OPERATORS",
    "STATISTIC_INPUTS",
    "WEIGHT_INPUTS",
    "Constant",
    "constants",
    "inputs_of",
]

# Inputs that are weights by the operator's definition, whatever their size.
WEIGHT_INPUTS = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1, 2),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
STATISTIC_INPUTS = {"BatchNormalization": (3, 4)}
# Where a constant of more than one element is a weight too, once a weight was met before it.
BIAS_OPERATORS = {"Add", "Div", "Mul", "Sub", "Sum"}
# What may stand between an initializer and the operator that uses it as a weight.
MOVING_OPERATORS = {"Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
# Multiply what they read by a matrix: in front of all weights that may be a fixed transformation.
LINEAR = {"Conv", "Gemm", "MatMul"}
UNTOLD = "a learned table, or a fixed one (that cannot be told)"
MANY = 5  # numbers, from which a line is no chance
MASKED = -1e4  # and below: what is added to a score that shall not count


class Constant(NamedTuple):
    """A constant of a normalized model that could be taken for a weight."""

    name: str
    shape: tuple[int, ...]
    is_trained: bool  # unless its author chooses others
    why: str  # in a few words, for people

    @property
    def is_doubtful(self) -> bool:
        """Whether it is trained though it may be a fixed one: nothing tells them apart."""
        return self.is_trained and self.why.endswith(UNTOLD)


def constants(forward: onnx.ModelProto) -> list[Constant]:
    """Return all float constants of a normalized model but single factors, in order of use."""
    graph = forward.graph
    values = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    statistics = inputs_of(graph, STATISTIC_INPUTS)
    ours = _exporter_s_own(graph, values)
    joined = joined_into(inputs_of(graph, WEIGHT_INPUTS), graph)
    verdicts: dict[str, tuple[bool, str]] = {}
    learned: set[str] = set()  # values that some weight contributes to
    for node in graph.node:
        after_weights = any(name in learned for name in node.input)
        for i, name in enumerate(node.input):
            if name not in values:
                continue
            if name in statistics:
                verdict = (False, "a statistic of a batch norm")
            elif name in ours:
                verdict = (False, "ones or zeros that an exporter wrote: no layer's own")
            else:
                found = _verdict(node, i, values[name], after_weights)
                if name in joined and node.op_type in JOINING_OPERATORS:
                    found = True, "a part of a weight"
                if found is None:
                    continue
                verdict = found
            if name not in verdicts or (verdict[0] and not verdicts[name][0]):
                verdicts[name] = verdict
        if after_weights or any(verdicts.get(name, (False,))[0] for name in node.input):
            learned.update(node.output)
    return [
        Constant(name, tuple(values[name].dims), *verdict) for name, verdict in verdicts.items()
    ]


def inputs_of(graph: onnx.GraphProto, positions: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return what stands at such positions of such operators."""
    return {
        node.input[i]
        for node in graph.node
        for i in positions.get(node.op_type, ())
        if i < len(node.input) and node.input[i]
    }


def _verdict(
    node: onnx.NodeProto, i: int, tensor: onnx.TensorProto, after_weights: bool
) -> tuple[bool, str] | None:
    """Return whether one use makes a constant a weight, None where it says nothing."""
    op = node.op_type
    is_weight = i in WEIGHT_INPUTS.get(op, ())
    plural = len(tensor.dims) >= 1 and int(np.prod(tensor.dims)) > 1
    if not is_weight and not plural:
        return None
    value = numpy_helper.to_array(tensor)
    if not np.isfinite(value).all():
        return False, "a mask: it has values that are not finite"
    if _is_mask(value):
        return False, f"a mask: its only values are {' and '.join(map(_short, np.unique(value)))}"
    if is_weight:
        if op in LINEAR and not after_weights and (what := _fixed_transformation(op, i, value)):
            return False, f"{what} in front of all weights"
        if op == "Gather" and _is_sinusoidal(value):
            return False, "a table of sines and cosines"
        if op == "Conv" and _is_one_filter(value):
            return False, "one and the same filter for each channel: a blur or likewise"
        return True, f"a weight of {op}"
    if op in MOVING_OPERATORS and i == 0:
        if _is_evenly_spaced(value):
            return False, "evenly spaced numbers"
        return (False, "a table of sines and cosines") if _is_sinusoidal(value) else (True, "moved")
    if op not in BIAS_OPERATORS:
        return False, f"{op} reads it, which has no weights"
    if not after_weights:
        return False, "it scales or shifts the input, in front of all weights"
    if _is_evenly_spaced(value) or (op in ("Mul", "Div") and _is_evenly_spaced(_inverse(value))):
        return False, "evenly spaced numbers"
    if _is_sinusoidal(value):
        return False, "a table of sines and cosines"
    if op == "Mul" and np.array_equal(np.unique(value), [0, 1]):
        return False, "a mask: its only values are 0 and 1"
    what = "added to" if op != "Mul" and op != "Div" else "a factor of"
    if value.ndim - sum(d == 1 for d in value.shape) < 2:
        return True, f"{what} what weights made: a bias or gain"
    return True, f"{what} what weights made: {UNTOLD}"


def _short(value: float) -> str:
    return f"{value:g}"


def _is_mask(value: Array) -> bool:
    if value.size < 2 or value.min() > MASKED:
        return False
    return np.unique(value).size <= 2


def _exporter_s_own(graph: onnx.GraphProto, values: Mapping[str, onnx.TensorProto]) -> set[str]:
    """Return the ones and zeros of an InstanceNormalization that stands for a group norm.

    Exporters write Reshape, InstanceNormalization without effect of its own, Reshape; the layer's
    scale and bias follow.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    own: set[str] = set()
    for node in graph.node:
        if node.op_type != "InstanceNormalization" or len(node.input) < 3:
            continue
        before = makers.get(node.input[0])
        between = before is not None and before.op_type == "Reshape"
        if not between or set(readers.get(node.output[0], [])) != {"Reshape"}:
            continue
        pair = [values.get(name) for name in node.input[1:3]]
        if all(
            tensor is not None and (numpy_helper.to_array(tensor) == expected).all()
            for tensor, expected in zip(pair, (1, 0), strict=True)
        ):
            own.update(node.input[1:3])
    return own


def _fixed_transformation(op: str, i: int, value: Array) -> str:
    """Return what a matrix in front of all weights is, if it was computed rather than learned."""
    if value.ndim < 2 or (op == "Conv" and (i != 1 or value.shape[1] != 1)):
        return ""
    is_conv = op == "Conv"
    matrix = value.reshape(value.shape[0], -1) if is_conv else value.reshape(-1, value.shape[-1])
    if min(matrix.shape) < 2 or max(matrix.shape) < 8:
        return ""
    if _is_filter_bank(matrix) or _is_filter_bank(matrix.T):
        return "a filter bank"
    if _is_sinusoidal(matrix) or _is_sinusoidal(matrix.T):
        return "a table of sines and cosines"
    if _is_fourier_basis(matrix) or (not is_conv and _is_fourier_basis(matrix.T)):
        return "a Fourier basis"
    return ""


def _is_filter_bank(rows: Array) -> bool:
    """Return whether each row is one band of positive values, further on than the one before.

    Most of it is zero, but not most rows: weights that begin at zero, at the identity, or that
    somebody pruned, are learned.
    """
    if (rows < 0).any() or (rows == 0).mean() < 0.5:
        return False
    bands = [np.flatnonzero(row) for row in rows if row.any()]
    if 2 * len(bands) < len(rows) or max((places.size for places in bands), default=0) < 3:
        return False
    starts = [places[0] for places in bands]
    return starts == sorted(starts) and all(p[-1] - p[0] + 1 == p.size for p in bands)


def _is_fourier_basis(rows: Array) -> bool:
    """Return whether nearly every row is one frequency under a window, and they differ."""
    if rows.shape[1] < 16:
        return False
    energy = np.abs(np.fft.rfft(rows.astype(np.float64), axis=1)) ** 2
    energy = energy[energy.sum(1) > 1e-6 * energy.sum(1).max()]
    if not len(energy):
        return False
    peaks = energy.argmax(1)
    near = np.abs(np.arange(energy.shape[1]) - peaks[:, None]) <= 2
    pure = (energy * near).sum(1) > 0.98 * energy.sum(1)
    return bool(pure.mean() > 0.95 and np.unique(peaks).size >= 0.4 * len(peaks) >= 3)


def _is_one_filter(value: Array) -> bool:
    """Return whether each of several channels has the same filter, which is no plain fill."""
    if value.ndim < 3 or len(value) < 2 or value.shape[1] != 1:
        return False
    return bool((value == value[:1]).all() and np.ptp(value[0]) > 0)


def _is_evenly_spaced(value: Array) -> bool:
    """Return whether a table is a ramp along one axis (or several: coordinates), or distances.

    Distances are |i - j| times a factor, as a bias of attention has them.
    """
    dims = [d for d in value.shape if d != 1]
    if not dims or max(dims) < MANY or not np.isfinite(value).all() or np.ptp(value) == 0:
        return False
    table = value.reshape(dims).astype(np.float64)
    close = 1e-5 * np.abs(table).max()
    if all(
        d < 3 or (np.abs(np.diff(table, 2, axis)) <= close).all() for axis, d in enumerate(dims)
    ):
        return True
    if len(dims) < 2 or dims[-1] != dims[-2] or dims[-1] < MANY:
        return False
    near = np.abs(np.subtract.outer(np.arange(dims[-1]), np.arange(dims[-1])))
    return bool((np.abs(table - table[..., :1, 1:2] * near) <= close).all())


def _inverse(value: Array) -> Array:
    return np.divide(1, value, out=np.zeros_like(value), where=value != 0)


def _is_sinusoidal(value: Array) -> bool:
    """Return whether each column is a sine or cosine of the row's number.

    These, and no learned table, obey v[p + 1] + v[p - 1] = c v[p] with one c for each column.
    """
    dims = [d for d in value.shape if d != 1]
    if len(dims) != 2 or dims[0] < 5 or dims[1] < 2:
        return False
    table = value.reshape(dims).astype(np.float64)
    spread = np.ptp(table, axis=0)
    if (spread > 1e-3).mean() < 0.5:
        return False
    middle, beside = table[1:-1], table[2:] + table[:-2]
    c = (middle * beside).sum(0) / np.maximum((middle**2).sum(0), 1e-30)
    rest = np.abs(beside - c * middle).max(0)
    is_wave = (np.abs(c) <= 2.001).all() and (np.abs(c) < 1.99).any()  # 2: a straight line
    return bool((rest <= 1e-4 * np.abs(table).max()).all() and is_wave)
