"""Of a model with any operators, the part that one output needs. Pure.

Nodes are put in order, the output is chosen, and what neither it nor another usable output needs
goes: label branches of other tools, second inputs that nothing reads, operators of other domains.
Only what is left must be ours to understand.
"""

from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto

from models.errors import UsageError

__all__ = [
    "STANDARD",
    "choose_output",
    "has_subgraph",
    "keep_needed",
    "keep_nodes",
    "reads",
    "sort_nodes",
]

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
STANDARD = ("", "ai.onnx")


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put nodes behind what they read, in place; else they stay in their order.

    Raises:
        UsageError: they read each other in a circle, or two of them make the same value.
    """
    makers: dict[str, int] = {}
    nodes = list(graph.node)
    for i, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in makers:
                raise UsageError(f"the model is not valid ONNX: two nodes make {name!r}")
            makers[name] = i
    placed: list[int] = []
    state = [0] * len(nodes)  # 1: its sources are being placed, 2: it is placed
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            if state[i] == 2:
                stack.pop()
                continue
            sources = {makers[name] for name in reads(nodes[i]) if name in makers}
            if state[i] == 0:
                state[i] = 1
                stack += sorted((s for s in sources if state[s] != 2), reverse=True)
                continue
            if any(state[source] == 1 for source in sources):
                raise UsageError(
                    f"the model is not valid ONNX: node {nodes[i].name or list(nodes[i].output)!r} "
                    "needs its own result"
                )
            state[i] = 2
            placed.append(i)
            stack.pop()
    if placed != sorted(placed):
        del graph.node[:]
        graph.node.extend(nodes[i] for i in placed)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node needs, the values that its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
            for inner in graph.node:
                yield from (name for name in reads(inner) if name not in own)
                own.update(inner.output)
            yield from (value.name for value in graph.output if value.name not in own)


def choose_output(graph: onnx.GraphProto, output: str | None) -> None:
    """Put the output to learn from first, in place.

    Raises:
        UsageError: there is no such output, or it holds no numbers that could be learned.
    """
    names = [value.name for value in graph.output]
    if output is not None and output not in names:
        raise UsageError(f"the model has no output {output!r}; its outputs are {', '.join(names)}")
    values = sorted(graph.output, key=lambda value: output is not None and value.name != output)
    chosen = values[0]
    if what := _no_scores(graph, chosen):
        others = [v.name for v in values[1:] if not _no_scores(graph, v)]
        remedy = (
            f"choose another with --output {' or --output '.join(others)}"
            if others
            else "export the model so that it answers with scores or probabilities"
        )
        raise UsageError(f"output {chosen.name!r} holds {what}, which cannot be learned; {remedy}")
    del graph.output[:]
    graph.output.extend(values)


def _no_scores(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> str:
    """Return what an output holds instead of float numbers, "" where it holds these."""
    maker = next((node for node in graph.node if value.name in node.output), None)
    while maker is not None and maker.op_type in ("Identity", "Cast", "Reshape", "Squeeze"):
        source = maker.input[0] if maker.input else ""
        maker = next((node for node in graph.node if source in node.output), None)
    kind = value.type.WhichOneof("value")
    if maker is not None and maker.op_type == "ZipMap":
        return "a map for each sample (ZipMap; skl2onnx: options={'zipmap': False})"
    if kind not in (None, "tensor_type"):
        return f"a {(kind or '').removesuffix('_type')}, not a tensor"
    dtype = value.type.tensor_type.elem_type
    if maker is not None and maker.op_type in ("ArgMax", "ArgMin"):
        return f"labels ({maker.op_type})"
    if dtype in FLOATS or dtype == TensorProto.UNDEFINED:
        return ""
    if dtype not in TensorProto.DataType.values():
        return f"numbers of an unknown type ({dtype})"
    return f"labels or other values of type {TensorProto.DataType.Name(dtype).lower()}"


def keep_needed(graph: onnx.GraphProto) -> None:
    """Drop, in place, what the first output does not need; other outputs stay where they can.

    That is where they are tensors that standard operators make from the same input.
    """
    first, *others = graph.output
    needed = _needed(graph, [first.name])
    names = {name for i in needed for name in reads(graph.node[i])} | {first.name}
    inputs = {value.name for value in graph.input} - {t.name for t in graph.initializer}
    kept = [first]
    for value in others:
        nodes = [graph.node[i] for i in _needed(graph, [value.name])]
        read = {name for node in nodes for name in reads(node)}
        is_ours = all(
            node.domain in STANDARD and not has_subgraph(node) for node in nodes
        ) and not any(node.op_type.startswith(("Sequence", "Optional")) for node in nodes)
        if nodes and is_ours and value.type.HasField("tensor_type") and read & inputs <= names:
            kept.append(value)
    del graph.output[:]
    graph.output.extend(kept)
    keep_nodes(graph, _needed(graph, [value.name for value in kept]))


def keep_nodes(graph: onnx.GraphProto, kept: Iterable[int]) -> None:
    """Leave the nodes with these numbers, and the constants and inputs that they read."""
    nodes = [graph.node[i] for i in sorted(kept)]
    names = {name for node in nodes for name in reads(node)}
    names |= {value.name for value in graph.output}
    del graph.node[:]
    graph.node.extend(nodes)
    for values in (graph.initializer, graph.input):
        left = [value for value in values if value.name in names]
        del values[:]
        values.extend(left)
    sparse = [tensor for tensor in graph.sparse_initializer if tensor.values.name in names]
    del graph.sparse_initializer[:]
    graph.sparse_initializer.extend(sparse)


def has_subgraph(node: onnx.NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _needed(graph: onnx.GraphProto, outputs: Iterable[str]) -> set[int]:
    """Return the numbers of the nodes that ``outputs`` need; nodes are in order."""
    names = set(outputs)
    found = set()
    for i in reversed(range(len(graph.node))):
        if names.intersection(graph.node[i].output):
            found.add(i)
            names.update(reads(graph.node[i]))
    return found
