"""Equivalent forms of a forward graph that take less work to train. Pure."""

from collections import Counter
from collections.abc import Collection, Sequence

from models.graph.graph_builder import GraphBuilder, Node, Shape
from models.graph.shape_facts import Facts


def pool_first(nodes: Sequence[Node], facts: Facts, output: str) -> list[Node]:
    """Turn Relu - MaxPool into MaxPool - Relu where nobody else reads the Relu.

    The result is the same to the bit, on a fraction of the elements, forward and backward.
    ``facts`` learns of the new value between the two; ``output`` stays as it is.
    """
    readers = Counter(name for node in nodes for name in node.inputs)
    relus = {
        node.outputs[0]: node
        for node in nodes
        if node.op == "Relu" and readers[node.outputs[0]] == 1 and node.outputs[0] != output
    }
    pools = {
        node.outputs[0]: node.inputs[0]
        for node in nodes
        if node.op == "MaxPool" and len(node.outputs) == 1 and node.inputs[0] in relus
    }
    result = []
    for node in nodes:
        pooled = node.outputs[0]
        if pooled in pools.values():
            continue
        if pooled not in pools:
            result.append(node)
            continue
        relu = relus[pools[pooled]]
        between = f"{pooled}/before_relu"
        result.append(node._replace(inputs=relu.inputs, outputs=(between,)))
        result.append(relu._replace(inputs=(between,), outputs=(pooled,)))
        facts.shapes[between], facts.dtypes[between] = facts.shapes[pooled], facts.dtypes[pooled]
    return result


def fold_norms(
    nodes: Sequence[Node], facts: Facts, trainable: Collection[str], g: GraphBuilder
) -> list[Node]:
    """Turn Conv - BatchNormalization into one Conv whose weights are scaled in the graph.

    With frozen statistics a batch norm is W' = W s, b' = bias + (b - mean) s for
    s = scale / sqrt(variance + epsilon): a few operations on weights instead of several on whole
    activations, forward and backward, and one activation less to keep. Not where only the norm is
    trained and the convolution is not: its own rule is cheaper then. Constants go to ``g``;
    ``facts`` learns of the new values.
    """
    readers = Counter(name for node in nodes for name in node.inputs)
    convolutions = {node.outputs[0]: node for node in nodes if node.op == "Conv"}
    norms = {
        node.outputs[0]: convolutions[node.inputs[0]]
        for node in nodes
        if node.op == "BatchNormalization"
        and readers[node.inputs[0]] == 1
        and node.inputs[0] in convolutions
        and (
            convolutions[node.inputs[0]].inputs[1] in trainable
            or not any(name in trainable for name in node.inputs[1:3])
        )
    }
    folded = {conv.outputs[0] for conv in norms.values()}
    result = []
    for node in nodes:
        if node.outputs[0] in folded:
            continue
        if node.outputs[0] in norms:
            result += _folded(norms[node.outputs[0]], node, facts, g)
        else:
            result.append(node)
    return result


def _folded(conv: Node, norm: Node, facts: Facts, g: GraphBuilder) -> list[Node]:
    scale, bias, mean, variance = norm.inputs[1:]
    weight, old_bias = conv.inputs[1], conv.input(2)
    filters, rank = facts.shapes[weight][0], len(facts.shapes[weight])
    nodes: list[Node] = []

    def add(op: str, inputs: tuple[str, ...], what: str, shape: Shape) -> str:
        name = f"{norm.outputs[0]}/{what}"
        nodes.append(Node(name, op, inputs, (name,), {}))
        facts.shapes[name], facts.dtypes[name] = shape, facts.dtypes[weight]
        return name

    vector = (filters,)
    epsilon = g.scalar(norm.attributes.get("epsilon", 1e-5))
    deviation = add("Sqrt", (add("Add", (variance, epsilon), "variance", vector),), "std", vector)
    s = add("Div", (scale, deviation), "s", vector)
    column = (filters, *[1] * (rank - 1))
    s_column = add("Reshape", (s, g.ints([-1, *[1] * (rank - 1)])), "s_column", column)
    new_weight = add("Mul", (weight, s_column), "weight", facts.shapes[weight])
    center = add("Sub", (mean, old_bias), "center", vector) if old_bias else mean
    new_bias = add("Sub", (bias, add("Mul", (center, s), "shift", vector)), "bias", vector)
    inputs = (conv.inputs[0], new_weight, new_bias)
    return [*nodes, conv._replace(inputs=inputs, outputs=norm.outputs)]
