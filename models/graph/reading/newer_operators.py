"""Operators that came after our opset, written out in older ones. Pure.

Attention, RMSNormalization, RotaryEmbedding and Swish become the products, sums and activations
that their definitions name; what else our opset does not have is refused.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference

from models.errors import UsageError
from models.graph.graph_builder import OPSET, Array, GraphBuilder, Node, read_node

__all__ = ["in_older_operators", "under_other_names"]

TO_THE_END = 2**31 - 1
MASKED = -1e30  # as a score: its share is 0, and where all are masked nothing is divided by 0
# The converter knows no way back for these, though only more types came with the newer version.
SAME_AS_BEFORE = {"GlobalMaxPool": "GlobalAveragePool"}  # and one of the same form that it knows


class _Rewriting:
    """The graph that is written, and what is known of the one that is read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        taken = {name for node in graph.node for name in (*node.input, *node.output)}
        taken |= {value.name for value in (*graph.initializer, *graph.input)}
        self.g = GraphBuilder(taken, "older/")
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT)
        }
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        try:
            inferred = shape_inference.infer_shapes(model).graph
        except Exception:  # what is wrong is said later, in our words
            inferred = graph
        self._values = {
            value.name: value.type.tensor_type
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        for tensor in graph.initializer:
            kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            self._values[tensor.name] = kind.tensor_type

    def dims(self, name: str) -> list[int | None] | None:
        """Return the dimensions of a value, None where they are open, or if its rank is unknown."""
        kind = self._values.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]

    def size(self, node: Node, name: str, axis: int) -> int:
        dims = self.dims(name)
        d = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
        if d is None:
            raise UsageError(
                f"node {node.name!r} ({node.op}): the size of {name!r} along axis {axis} is not "
                f"known; export the model with fixed sizes, or with opset {OPSET}"
            )
        return d

    def is_bool(self, name: str) -> bool:
        kind = self._values.get(name)
        return kind is not None and kind.elem_type == TensorProto.BOOL

    def data(self, name: str) -> str:
        """Return the same value, which is no weight whatever it is multiplied with.

        The maximum of one: what reads a weight is a product, a sum or a move.
        """
        return self.g.emit("Max", name)


def in_older_operators(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return ``model``, of opset ``version``, with operators that our opset has.

    Raises:
        UsageError: an operator is newer than our opset and not known here, or used in a way for
            which there is no older form; the node is named.
    """
    if version <= OPSET or all(_exists(node.op_type) for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    work = _Rewriting(copy)
    read = {name for node in copy.graph.node for name in node.input}
    read |= {value.name for value in copy.graph.output}
    nodes: list[onnx.NodeProto] = []
    for proto in copy.graph.node:
        if _exists(proto.op_type):
            nodes.append(proto)
            continue
        node = read_node(proto)
        node = node._replace(name=node.name or node.outputs[0])
        if node.op not in OLDER:
            raise UsageError(
                f"node {node.name!r} is {node.op}, which opset {OPSET} does not have; export the "
                f"model with opset {OPSET}"
            )
        used = [name for name in node.outputs[1:] if name in read]
        if used:
            raise UsageError(
                f"node {node.name!r} ({node.op}): its output {used[0]!r} is not supported; export "
                f"the model with opset {OPSET}"
            )
        done = len(work.g.nodes)
        result = OLDER[node.op](work, node)
        nodes += work.g.nodes[done:]
        nodes.append(helper.make_node("Identity", [result], [node.outputs[0]], node.name))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(work.g.initializers())
    return copy


def _exists(op: str) -> bool:
    try:
        defs.get_schema(op, OPSET)
    except defs.SchemaError:
        return False
    return True


def under_other_names(model: onnx.ModelProto) -> Callable[[onnx.ModelProto], None]:
    """Hide, in place, operators that the converter cannot bring back; returns what undoes it."""
    hidden = {
        node.output[0]: node.op_type for node in model.graph.node if node.op_type in SAME_AS_BEFORE
    }
    for node in model.graph.node:
        node.op_type = SAME_AS_BEFORE.get(node.op_type, node.op_type)

    def undo(converted: onnx.ModelProto) -> None:
        for node in converted.graph.node:
            node.op_type = hidden.get(node.output[0], node.op_type)

    return undo


def _swish(work: _Rewriting, node: Node) -> str:
    """X sigmoid(alpha X)."""
    g, (x,) = work.g, node.inputs
    alpha = node.attributes.get("alpha", 1.0)
    inner = x if alpha == 1 else g.mul(x, g.scalar(alpha))
    return g.mul(x, g.emit("Sigmoid", inner))


def _rms_normalization(work: _Rewriting, node: Node) -> str:
    """X / sqrt(mean(X²) + epsilon) scale; the mean from an axis on."""
    g, (x, scale) = work.g, node.inputs
    axis = node.attributes.get("axis", -1)
    if axis >= 0:
        dims = work.dims(x)
        if dims is None:
            raise UsageError(
                f"node {node.name!r} ({node.op}): the rank of {x!r} is not known; export the "
                f"model with opset {OPSET}"
            )
        axis -= len(dims)
    mean = g.emit("ReduceMean", g.mul(x, x), g.ints(range(axis, 0)), keepdims=1)
    epsilon = g.scalar(node.attributes.get("epsilon", 1e-5))
    normal = g.div(x, g.emit("Sqrt", g.add(mean, epsilon)))
    return g.mul(normal, g.emit("Identity", scale))  # by which the scale is known as a weight


def _rotary_embedding(work: _Rewriting, node: Node) -> str:
    """Su et al., arXiv:2104.09864: pairs of features turned by an angle per position."""
    g, x = work.g, node.inputs[0]
    caches = [_angles(work, node, name) for name in node.inputs[1:3]]
    heads = node.attributes.get("num_heads", 0)
    flat = len(work.dims(x) or []) == 3 or (work.dims(x) is None and heads > 0)
    value = g.reshape(x, [0, 0, heads, -1]) if flat else g.transpose(x, [0, 2, 1, 3])
    turned = node.attributes.get("rotary_embedding_dim", 0)
    whole = work.size(node, x, -1) // (heads if flat else 1)
    turned = turned or whole
    part = value if turned == whole else g.slice(value, [3], [0], [turned])
    if node.attributes.get("interleaved", 0):
        one, two = (g.slice(part, [3], [i], [TO_THE_END], [2]) for i in (0, 1))
    else:
        one = g.slice(part, [3], [0], [turned // 2])
        two = g.slice(part, [3], [turned // 2], [turned])
    cos, sin = (g.emit("Unsqueeze", cache, g.ints([2])) for cache in caches)
    real = g.sub(g.mul(one, cos), g.mul(two, sin))
    imaginary = g.add(g.mul(one, sin), g.mul(two, cos))
    if node.attributes.get("interleaved", 0):
        pairs = [g.emit("Unsqueeze", side, g.ints([4])) for side in (real, imaginary)]
        result = g.reshape(g.concat(pairs, 4), [0, 0, 0, -1])
    else:
        result = g.concat([real, imaginary], 3)
    if turned < whole:
        result = g.concat([result, g.slice(value, [3], [turned], [TO_THE_END])], 3)
    return g.reshape(result, [0, 0, -1]) if flat else g.transpose(result, [0, 2, 1, 3])


def _angles(work: _Rewriting, node: Node, cache: str) -> str:
    """Return cosines or sines [.., positions, half]: of the given positions, or as they are."""
    places = node.input(3)
    if not places:
        return work.data(cache)
    if places in work.constants and cache in work.constants:
        picked = work.constants[cache][work.constants[places]]
        return work.data(work.g.constant(np.ascontiguousarray(picked)))
    at = work.g.emit("Unsqueeze", places, work.g.ints([-1]))
    return work.data(work.g.emit("GatherND", cache, at))


def _attention(work: _Rewriting, node: Node) -> str:
    """softmax(softcap(Q Kᵀ scale) + mask) V, per head; fewer heads of K and V are shared."""
    g = work.g
    given = (*node.inputs, *[""] * 7)[:7]
    q, k, v, mask = given[:4]
    for name, what in zip(given[4:], ("past keys", "past values", "nonpad_kv_seqlen"), strict=True):
        if name:
            raise UsageError(
                f"node {node.name!r} (Attention): {what} are not supported; export the model "
                "without a cache of keys and values"
            )
    heads = node.attributes.get("q_num_heads", 0)
    flat = heads > 0
    if not flat:
        heads = work.size(node, q, 1)
    kv_heads = node.attributes.get("kv_num_heads", 0) or work.size(node, k, 1)
    width = work.size(node, q, -1) // (heads if flat else 1)
    length, kv_length = (1, 1) if flat else (2, 2)
    if flat:
        split = [g.reshape(x, [0, 0, n, -1]) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads))]
        query, key, value = (g.transpose(x, [0, 2, 1, 3]) for x in split)
    else:
        query, key, value = q, k, v
    if heads != kv_heads:
        key, value = (
            _shared(g, x, heads // kv_heads, heads, work.size(node, name, -1) // per)
            for x, name, per in (
                (key, k, kv_heads if flat else 1),
                (value, v, kv_heads if flat else 1),
            )
        )
    scale = node.attributes.get("scale", 0) or 1 / math.sqrt(width)
    scores = g.emit("MatMul", g.mul(query, g.scalar(scale)), g.transpose(key, [0, 1, 3, 2]))
    cap = node.attributes.get("softcap", 0)
    if cap:
        scores = g.mul(g.emit("Tanh", g.div(scores, g.scalar(cap))), g.scalar(cap))
    allowed = []
    if mask and work.is_bool(mask):
        allowed.append(mask)
    elif mask:
        scores = g.add(scores, work.data(mask))
    if node.attributes.get("is_causal", 0):
        rows, columns = work.size(node, q, length), work.size(node, k, kv_length)
        allowed.append(g.constant(np.tri(rows, columns, dtype=bool)))
    for here in allowed:
        scores = g.emit("Where", here, scores, g.scalar(MASKED))
    shares = g.emit("Softmax", scores, axis=-1)
    if mask and work.is_bool(mask):  # where nothing at all is allowed the answer is 0
        shares = g.emit("Where", mask, shares, g.scalar(0))
    result = g.emit("MatMul", shares, value)
    if not flat:
        return result
    return g.reshape(g.transpose(result, [0, 2, 1, 3]), [0, 0, -1])


def _shared(g: GraphBuilder, value: str, times: int, heads: int, width: int) -> str:
    """Repeat each head of [samples, heads, length, width] ``times`` times."""
    apart = g.emit("Unsqueeze", value, g.ints([2]))
    repeated = g.emit("Expand", apart, g.ints([1, 1, times, 1, 1]))
    return g.reshape(repeated, [0, heads, -1, width])


OLDER: Mapping[str, Callable[[_Rewriting, Node], str]] = {
    "Attention": _attention,
    "RMSNormalization": _rms_normalization,
    "RotaryEmbedding": _rotary_embedding,
    "Swish": _swish,
}
