"""Derives a training-step graph from a forward graph: forward, loss, backward, update. Pure.

Only standard ONNX operators come out, so that stock onnxruntime trains. Reverse-mode
differentiation over the graph's nodes, one rule of `gradients.py` per node; what no
trainable tensor depends on gets no gradient nodes.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError
from models.graph.backward import Backward
from models.graph.contract.input_contract import DTYPES
from models.graph.facts.shape_facts import BATCH, Facts, infer_facts
from models.graph.gradients.gradients import GRADIENTS
from models.graph.gradients.gradients_adaptive import ADAPTIVE_NORM, forward_of
from models.graph.gradients.gradients_elementwise import flat
from models.graph.graph_builder import (
    IR_VERSION,
    OPSET,
    GraphBuilder,
    Node,
    Shape,
    names_read,
    read_node,
)
from models.graph.reading.forward_graph import statistics, weights
from models.graph.training.adaptive_norms import (
    AdaptiveNorm,
    adaptive_norms,
    emit_statistics,
)
from models.graph.training.losses import LOSSES, LossName, Target
from models.graph.training.model_end import model_end, moved_logits
from models.graph.training.optimizers import ADAM_STEP, Optimizer, emit_updates, slot_names
from models.graph.training.rewrites import fold_norms, multiply_small_images, pool_first

__all__ = ["derive_training_graph"]

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
NEARLY_0 = 1e-7  # a probability is kept so far from 0 and 1; less does not show in float32 near 1


class _Path(NamedTuple):
    """The part of a forward graph that a loss is computed from."""

    nodes: list[Node]
    output: str  # the logits, where the model ends in an activation that the loss contains
    output_shape: Shape
    facts: Facts
    are_probabilities: bool = False  # there are no logits: the loss takes their logarithms


def derive_training_graph(
    forward: onnx.ModelProto,
    *,
    trainable: Sequence[str],
    loss: LossName,
    optimizer: Optimizer,
    proximal: bool = False,
    classes: int = 0,
    y_dtype: str = "int64",
    y_shape: Sequence[int] = (),
    adaptive: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the training step of a normalized ``forward`` model for its ``trainable`` tensors.

    Inputs ``x``, ``y`` [batch, *y_shape], ``sample_weight`` float32 [batch], ``lr``, every
    trainable tensor by its name, the optimizer's slots (`slot_names`) and, if ``proximal``,
    ``anchor/<tensor>`` and ``mu``. Outputs ``new/<tensor>``, ``new/<slot>``, ``loss`` (of the data,
    before the update) and ``grad_norm`` (of the data loss over all trainable tensors).
    ``classes`` is checked against the output where it is not 0. ``adaptive`` names means and
    variances of batch norms: these normalize by the batch, and the names are inputs and
    ``new/<name>`` outputs too (`adaptive_norms`); all other statistics stay as they are.

    For cross_entropy ``y`` holds integer labels, one per sample or, with y_shape (T,), one per
    position of an output [T, classes]; or floats in the shape of the output: probabilities. For
    mse and bce it has as many elements as the output.

    Raises:
        UsageError: an operator without gradient rule on the way, named with its node and with what
            could be trained instead; a tensor that does not exist or does not reach the output;
            shapes that do not fit the loss.
    """
    path = _loss_path(forward, loss)
    values = {t.name: t for t in forward.graph.initializer}
    _check_trainable(trainable, values, path, statistics(forward))
    if classes and loss == "cross_entropy" and classes not in path.output_shape[1:]:
        raise UsageError(
            f"output {path.output!r} has shape {list(path.output_shape[1:])} per sample, "
            f"which does not fit {classes} classes"
        )
    _check_rules(path, trainable, forward)

    g = GraphBuilder({name for node in path.nodes for name in (*node.inputs, *node.outputs)})
    path, norms = _written(path, trainable, adaptive, forward, g)
    moving = {*trainable, *adaptive}
    constants = {
        name: numpy_helper.to_array(tensor) for name, tensor in values.items() if name not in moving
    }
    backward = Backward(g, path.facts.shapes, constants, _dependents(path, trainable))
    logits, slope = _of_probabilities(g, path.output, loss) if path.are_probabilities else ("", "")
    y_is_float = y_dtype.startswith("float")
    target = Target(
        logits or path.output,
        path.output_shape,
        "y",
        (None, *y_shape),
        "sample_weight",
        y_is_float,
    )
    value, gradient = LOSSES[loss](g, target)
    backward.collect(path.output, g.mul(gradient, slope) if slope else gradient)
    _differentiate(backward, path)

    gradients = {}
    for name in trainable:
        found = backward.gradient(name)
        if found is None:
            raise UsageError(_without_slope(name, path))
        gradients[name] = found
    squares = [g.emit("ReduceSumSquare", gradient, keepdims=0) for gradient in gradients.values()]
    total = squares[0] if len(squares) == 1 else g.emit("Sum", *squares)
    g.emit("Sqrt", total, output="grad_norm")
    g.emit("Identity", value, output="loss")
    emit_updates(g, optimizer, gradients, proximal=proximal)
    for norm in norms:
        emit_statistics(g, norm, path.facts.shapes[norm.node.inputs[0]])
    moved = [name for norm in norms for name in (norm.mean, norm.variance)]
    y = helper.make_tensor_value_info("y", DTYPES[y_dtype], [BATCH, *y_shape])
    return _assemble(g, forward, trainable, optimizer, moved, y, proximal=proximal)


def _loss_path(forward: onnx.ModelProto, loss: LossName) -> _Path:
    """Select the nodes that the loss needs: not those behind the logits.

    Moves that the model makes behind its activation are made of the logits instead.
    """
    facts = infer_facts(forward)
    nodes = [read_node(proto) for proto in forward.graph.node]
    output = forward.graph.output[0].name
    shape = facts.shapes.get(output)
    if not shape or shape[0] is not None or None in shape[1:]:
        raise UsageError(
            f"output {output!r} has shape {shape}; the loss wants [batch, ...] with fixed sizes"
        )
    are_probabilities = False
    if loss != "mse":
        end = model_end(forward, loss, facts)
        are_probabilities = not end.logits
        if end.logits:
            moves, output, facts = moved_logits(end, facts)
            nodes += moves
    needed = {output}
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return _Path(kept[::-1], output, shape, facts, are_probabilities)


def _of_probabilities(g: GraphBuilder, p: str, loss: LossName) -> tuple[str, str]:
    """Return logits whose loss is that of ``p``, and their derivative by ``p``.

    log p for cross_entropy, log p - log(1 - p) for bce. As in torch's BCELoss, the gradient of a
    saturated p stays finite and is not cut off.
    """
    inside = g.emit("Clip", p, g.scalar(NEARLY_0), g.scalar(1 if loss != "bce" else 1 - NEARLY_0))
    if loss != "bce":
        return g.emit("Log", inside), g.emit("Reciprocal", inside)
    rest = g.sub(g.scalar(1), inside)
    logits = g.sub(g.emit("Log", inside), g.emit("Log", rest))
    return logits, g.emit("Reciprocal", g.mul(inside, rest))


def _written(
    path: _Path,
    trainable: Sequence[str],
    adaptive: Collection[str],
    forward: onnx.ModelProto,
    g: GraphBuilder,
) -> tuple[_Path, list[AdaptiveNorm]]:
    """Emit the forward half; return its nodes as they are differentiated, and norms that adapt."""
    nodes, norms = adaptive_norms(path.nodes, adaptive, forward, g)
    path = path._replace(nodes=_cheaper(path._replace(nodes=nodes), trainable, g))
    for node in path.nodes:
        if node.op == ADAPTIVE_NORM:
            forward_of(g, node, path.facts.shapes[node.inputs[0]])
        else:
            g.emit_many(node.op, node.inputs, node.outputs, **node.attributes)
    return path, norms


def _cheaper(path: _Path, trainable: Sequence[str], g: GraphBuilder) -> list[Node]:
    """Return the nodes in an equivalent form that is cheaper to train."""
    nodes = fold_norms(path.nodes, path.facts, trainable, g)
    nodes = multiply_small_images(nodes, path.facts, g)
    return pool_first(nodes, path.facts, g, path.output)


def _without_influence(name: str, output: str) -> str:
    return (
        f"tensor {name!r} has no influence on output {output!r}, or only by decisions that have no "
        "gradient (a comparison, ArgMax, rounding): let the model answer with "
        "scores or probabilities, or leave the tensor out (--trainable PATTERN names the others)"
    )


def _check_trainable(
    trainable: Sequence[str],
    values: dict[str, onnx.TensorProto],
    path: _Path,
    frozen: Collection[str],
) -> None:
    if not trainable:
        raise UsageError("no tensor is to be trained")
    for name in trainable:
        if name not in values:
            raise UsageError(f"the model has no weight {name!r}; it has {_some(list(values))}")
        if values[name].data_type != TensorProto.FLOAT:
            raise UsageError(f"tensor {name!r} is not float32 and cannot be trained")
        if name in frozen:
            raise UsageError(f"tensor {name!r} is a batch-norm statistic, which has no gradient")
    reached = {name for node in path.nodes for name in node.inputs}
    lost = [name for name in trainable if name not in reached]
    if lost:
        raise UsageError(_without_influence(lost[0], path.output))


def _without_slope(name: str, path: _Path) -> str:
    """Say which node, nearest to the tensor, has a slope of 0 everywhere."""
    reached = {name}
    for node in path.nodes:
        if reached.isdisjoint(node.inputs):
            continue
        is_whole = all(path.facts.dtypes.get(made, 1) not in FLOATS for made in node.outputs)
        if is_whole or GRADIENTS.get(node.op) is flat:
            return (
                f"tensor {name!r} cannot be trained: node {node.name!r} ({node.op}), between it "
                f"and output {path.output!r}, only makes steps, which have no slope; export the "
                "model without it"
            )
        reached.update(node.outputs)
    return _without_influence(name, path.output)


def _some(names: Sequence[str]) -> str:
    """List names, the first few when there are many."""
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"


def _dependents(path: _Path, trainable: Sequence[str]) -> set[str]:
    """Return all float values that depend on a trainable tensor, these included."""
    wanted = set(trainable)
    for node in path.nodes:
        if wanted.intersection(node.inputs):
            floats = (name for name in node.outputs if path.facts.dtypes.get(name, 1) in FLOATS)
            wanted.update(name for name in floats if name)  # "": an output that is left out
    return wanted


def _missing_rule(path: _Path, wanted: set[str]) -> Node | None:
    """Return the last node on the way that has no rule."""
    node: Node
    for node in reversed(path.nodes):
        on_the_way = not wanted.isdisjoint(node.inputs) and not wanted.isdisjoint(node.outputs)
        if on_the_way and node.op not in GRADIENTS:
            return node
    return None


def _check_rules(path: _Path, trainable: Sequence[str], forward: onnx.ModelProto) -> None:
    missing = _missing_rule(path, _dependents(path, trainable))
    if missing is None:
        return
    reached = {name for node in path.nodes for name in node.inputs}
    possible = [
        name
        for name in weights(forward)
        if name in reached and _missing_rule(path, _dependents(path, [name])) is None
    ]
    advice = (
        f"these can be trained instead: {_some(possible)}"
        if possible
        else "nothing after it can be trained"
    )
    raise UsageError(
        f"node {missing.name!r} is {missing.op}, for which there is no gradient rule, and it lies "
        f"between the tensors to train and the loss; {advice}"
    )


def _differentiate(backward: Backward, path: _Path) -> None:
    for node in reversed(path.nodes):
        gradient = next(filter(None, map(backward.gradient, node.outputs)), None)
        if gradient is None or not any(backward.wants(name) for name in node.inputs):
            continue
        for name, part in zip(
            node.inputs, GRADIENTS[node.op](backward, node, gradient), strict=True
        ):
            if part is not None and backward.wants(name):
                backward.collect(name, part)


def _assemble(
    g: GraphBuilder,
    forward: onnx.ModelProto,
    trainable: Sequence[str],
    optimizer: Optimizer,
    adaptive: Sequence[str],
    y: onnx.ValueInfoProto,
    *,
    proximal: bool,
) -> onnx.ModelProto:
    moving = [*trainable, *adaptive]
    shapes = {t.name: list(t.dims) for t in forward.graph.initializer if t.name in moving}
    slots = slot_names(optimizer, trainable)

    def floats(name: str, dims: Sequence[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    def slot_shape(slot: str) -> list[int]:
        return [] if slot == ADAM_STEP else shapes[slot.split("/", 1)[1]]

    inputs = [
        forward.graph.input[0],
        y,
        floats("sample_weight", [BATCH]),
        floats("lr", []),
        *(floats(name, shapes[name]) for name in moving),
        *(floats(slot, slot_shape(slot)) for slot in slots),
    ]
    if proximal:
        inputs += [floats(f"anchor/{name}", shapes[name]) for name in trainable]
        inputs.append(floats("mu", []))
    outputs = [
        *(floats(f"new/{name}", shapes[name]) for name in moving),
        *(floats(f"new/{slot}", slot_shape(slot)) for slot in slots),
        floats("loss", []),
        floats("grad_norm", []),
    ]
    nodes = _needed(g.nodes, {value.name for value in outputs})
    used = {name for node in nodes for name in names_read(node)}
    frozen = [t for t in forward.graph.initializer if t.name in used and t.name not in moving]
    constants = [t for t in g.initializers() if t.name in used]
    graph = helper.make_graph(nodes, "training_step", inputs, outputs, [*frozen, *constants])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    model.producer_name = "edgefold"
    onnx.checker.check_model(model)
    return model


def _needed(nodes: Sequence[onnx.NodeProto], names: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that ``names`` are computed from, in order."""
    needed = set(names)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_read(node))
    return kept[::-1]
