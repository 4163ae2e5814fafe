"""What the first output of a model means: the one walk back to its final activation. Pure.

The walk goes over what does not change the meaning: shape moves, casts, clips to about [0, 1].
Where it meets no activation that is known, the values that the output can have decide
(`models.graph.facts.value_ranges`). Nothing is guessed: an end that fits no reading is refused.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from models.errors import UsageError
from models.graph.facts.shape_facts import Facts
from models.graph.facts.value_ranges import Range, value_ranges
from models.graph.graph_builder import Node, read_node
from models.graph.training.losses import LossName

__all__ = ["End", "Final", "class_axis", "final_activation", "model_end", "moved_logits"]

MOVES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
TINY = 1e-3  # a clip or an offset by so little keeps the meaning
ROWS = 2  # of a batch that is made up to follow an axis
BOUNDED = 1.5  # a model whose answers stay within this hardly answers with logits


class Final(NamedTuple):
    """The activation that a model ends in, and what follows it."""

    kind: Literal["sigmoid", "softmax", "log_softmax", "none"]
    node: Node | None  # the last node of the activation, or of what is none
    value: str  # what comes out of the activation
    logits: str  # what goes into it; "" where it is none of logits
    axis: int  # of the classes in ``value``; for softmax
    moves: tuple[Node, ...]  # what makes the output from ``value``, in this order
    of_shares: bool = False  # of kind none, but scaled shares (percent), or minus their logarithm


class End(NamedTuple):
    """How a loss reads the first output of a model."""

    answers: Literal["logits", "probabilities"]
    logits: str  # the value that the loss takes, then ``moves``; "": only probabilities are there
    moves: tuple[Node, ...]
    node: Node | None  # the one that it was seen by
    unknown: str = ""  # the node that may hide an activation, where the graph does not tell


def model_end(forward: onnx.ModelProto, loss: LossName, facts: Facts) -> End:
    """Return what the first output of a normalized model is to ``loss`` (cross_entropy or bce).

    For cross_entropy the classes are in the last axis that is not 1.

    Raises:
        UsageError: it fits no reading; names the node and what to do.
    """
    final = final_activation(forward, facts)
    output = forward.graph.output[0].name
    found = value_ranges(forward).get(output, Range())
    if loss == "bce":
        return _yes_or_no(final, output, found, facts)
    return _classes(final, output, found, facts)


def _yes_or_no(final: Final, output: str, found: Range, facts: Facts) -> End:
    if final.kind == "sigmoid" and all(m.outputs[0] in facts.shapes for m in final.moves):
        return End("probabilities", final.logits, final.moves, final.node)
    if final.kind in ("softmax", "log_softmax"):
        shape = facts.shapes.get(final.value, ())
        if shape and shape[final.axis % len(shape)] == 1:
            raise UsageError(
                f"{_text(final.node)} makes shares of one value, which are always 1: for bce end "
                f"output {output!r} in a Sigmoid or in logits (without that node)"
            )
    if found.is_within(0, 1):
        return End("probabilities", "", (), final.node)
    is_bounded = math.isfinite(found.low) and math.isfinite(found.high)
    takes_both_signs = found.low < 0 < found.high
    if not takes_both_signs or (is_bounded and max(-found.low, found.high) <= BOUNDED):
        raise UsageError(
            f"the model's output {output!r} ends in {_text(final.node)}, whose answers lie between "
            f"{found.low:g} and {found.high:g}: for bce end it in a Sigmoid or in logits (without "
            "that node), or choose --loss mse"
        )
    return End("logits", output, (), final.node, found.unknown)


def _classes(final: Final, output: str, found: Range, facts: Facts) -> End:
    are_shares = final.kind == "softmax" and (final.logits != "" or found.is_within(0, 1))
    if are_shares or final.kind == "log_softmax":
        at = class_axis(final, output, facts)
        shape = facts.shapes.get(output, ())
        if at is None or at == 0 or any(d != 1 for d in shape[at + 1 :]):
            raise UsageError(
                f"{_text(final.node)} makes shares over axis {final.axis} of {list(shape)}, where "
                f"the classes are not: put it over the classes, or end output {output!r} in logits"
            )
        answers: Literal["logits", "probabilities"] = (
            "probabilities" if final.kind == "softmax" else "logits"  # its softmax is the same
        )
        return End(answers, final.logits, final.moves if final.logits else (), final.node)
    if found.is_within(0, 1):
        several = "each class with a share of its own" if final.kind == "sigmoid" else "shares"
        raise UsageError(
            f"the model's output {output!r} ends in {_text(final.node)}, which answers with "
            f"{several} from 0 to 1 that need not sum to 1: for cross_entropy end it in a Softmax "
            "over the classes or in logits (without that node); if several classes can be right at "
            "once, choose --loss bce and give y a column for each"
        )
    if final.of_shares:
        raise UsageError(
            f"the model's output {output!r} ends in {_text(final.node)}, which scales the classes' "
            "shares or turns their signs: for cross_entropy end it in the Softmax itself or in "
            "logits (without that node)"
        )
    return End("logits", output, (), final.node, found.unknown)


def _text(node: Node | None) -> str:
    return f"node {node.name!r} ({node.op})" if node else "its input"


def final_activation(forward: onnx.ModelProto, facts: Facts) -> Final:
    """Return the activation that the first output of a normalized model comes from."""
    return _Walk(forward, facts).back(forward.graph.output[0].name)


def class_axis(final: Final, output: str, facts: Facts) -> int | None:
    """Return the axis of ``output`` along which the softmax ran; None where it is none of them."""
    value, last = facts.shapes.get(final.value, ()), facts.shapes.get(output, ())
    if not value:
        return None
    axis = final.axis % len(value)
    # What follows the batch may be a multiple of it: [batch * T, classes] becomes [batch, T, ...].
    within = math.prod(d for d in last if d is not None)
    of_one = math.prod(d for d in value if d is not None)
    rows = ROWS * max(1, within // max(1, of_one))
    shape = tuple(rows if d is None else d for d in value)
    classes = np.arange(shape[axis], dtype=np.int32)
    classes = classes.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    values = np.broadcast_to(classes, shape)
    for node in final.moves:
        found = facts.shapes.get(node.outputs[0])
        known = math.prod(d for d in found or () if d is not None)
        if found is None or found.count(None) > 1 or values.size % max(1, known):
            return None
        if node.op == "Transpose":
            values = values.transpose(node.attributes.get("perm"))
        elif node.op not in ("Cast", "Identity"):
            values = values.reshape([-1 if d is None else d for d in found])
    for at, size in enumerate(values.shape):
        line = np.arange(size).reshape([-1 if i == at else 1 for i in range(values.ndim)])
        if size == shape[axis] and (values == line).all():
            return at
    return None


class _Walk:
    """Looks at a graph from its end."""

    def __init__(self, forward: onnx.ModelProto, facts: Facts) -> None:
        nodes = [read_node(proto) for proto in forward.graph.node]
        self._producers = {name: node for node in nodes for name in node.outputs}
        self._constants = {
            tensor.name: tensor
            for tensor in forward.graph.initializer
            if math.prod(tensor.dims) == 1
        }
        self._facts = facts

    def back(self, output: str) -> Final:
        none = Final("none", self._last(output), output, output, 0, ())
        moves: list[Node] = []
        name, is_log = output, False
        while (node := self._producers.get(name)) is not None:
            if node.op in MOVES:
                moves.append(node)
                name = node.inputs[0]
            elif (through := self._harmless(node)) is not None:
                name = through
            elif node.op == "Log" and not is_log:
                name, is_log = node.inputs[0], True
            else:
                break
        found = self._activation(node) if node else None
        if found is not None and is_log:  # of shares; the logarithm of anything else is a formula
            is_known = found.kind == "softmax" and found.logits
            found = found._replace(kind="log_softmax") if is_known else None
        if found is None:
            return none._replace(of_shares=self._scales_shares(node))
        return found._replace(moves=tuple(moves[::-1]))

    def _scales_shares(self, node: Node | None) -> bool:
        """Return whether a node multiplies shares by one number, or is minus their logarithm."""
        if node is None or node.op not in ("Div", "Mul", "Neg"):
            return False
        found = [self.back(name) for name in node.inputs if name not in self._constants]
        known = ("log_softmax", "sigmoid", "softmax") if node.op == "Neg" else ("softmax",)
        return len(found) == 1 and found[0].kind in known

    def _last(self, output: str) -> Node | None:
        """Return the last node that is more than a move."""
        node = self._producers.get(output)
        while node is not None and node.op in MOVES and node.inputs[0] in self._producers:
            node = self._producers[node.inputs[0]]
        return node

    def _harmless(self, node: Node) -> str | None:
        """Return the input of a clip to about [0, 1], or of a tiny offset."""
        low = self._constant(node.input(1), -math.inf)
        if node.op == "Dropout" and not node.input(2):
            return node.inputs[0]
        if node.op == "Clip":
            high = self._constant(node.input(2), math.inf)
            return node.inputs[0] if low <= TINY and high >= 1 - TINY else None
        if node.op in ("Max", "Min", "Add") and len(node.inputs) == 2:
            for name, other in (node.inputs, node.inputs[::-1]):
                value = self._constant(other, math.nan)
                if {
                    "Max": value <= TINY,
                    "Min": value >= 1 - TINY,
                    "Add": abs(value) <= TINY,
                }[node.op]:
                    return name
        return None

    def _constant(self, name: str, default: float) -> float:
        """Return the value of a single constant; nan: it is none, ``default``: it has no name."""
        if not name:
            return default
        if name not in self._constants:
            return math.nan
        return float(numpy_helper.to_array(self._constants[name]).reshape(-1)[0])

    def _is(self, name: str, value: float) -> bool:
        return self._constant(name, math.nan) == value

    def _activation(self, node: Node) -> Final | None:
        value = node.outputs[0]
        if node.op == "Sigmoid":
            return Final("sigmoid", node, value, node.inputs[0], 0, ())
        if node.op in ("Softmax", "LogSoftmax"):
            kind: Literal["softmax", "log_softmax"] = (
                "softmax" if node.op == "Softmax" else "log_softmax"
            )
            return Final(kind, node, value, node.inputs[0], node.attributes.get("axis", -1), ())
        if node.op == "Exp":
            inner = self._producers.get(node.inputs[0])
            if inner is not None and inner.op == "LogSoftmax":
                axis = inner.attributes.get("axis", -1)
                return Final("softmax", node, value, inner.inputs[0], axis, ())
        if node.op == "Reciprocal":
            return self._written_sigmoid(node, node.inputs[0])
        if node.op == "Div" and self._is(node.inputs[0], 1):
            return self._written_sigmoid(node, node.inputs[1])
        if node.op == "Div":
            return self._written_softmax(node)
        if node.op == "Concat" and len(node.inputs) == 2:
            return self._both_sides(node)
        return None

    def _written_sigmoid(self, node: Node, below: str) -> Final | None:
        """1 / (1 + exp(-z))"""
        added = self._producers.get(below)
        if added is None or added.op != "Add":
            return None
        for one, rest in (added.inputs, added.inputs[::-1]):
            power = self._producers.get(rest)
            if not self._is(one, 1) or power is None or power.op != "Exp":
                continue
            minus = self._producers.get(power.inputs[0])
            if minus is not None and minus.op == "Neg":
                return Final("sigmoid", node, node.outputs[0], minus.inputs[0], 0, ())
            if minus is not None and minus.op == "Mul":
                for factor, logits in (minus.inputs, minus.inputs[::-1]):
                    if self._is(factor, -1):
                        return Final("sigmoid", node, node.outputs[0], logits, 0, ())
        return None

    def _written_softmax(self, node: Node) -> Final | None:
        """v / sum(v), of which exp(z) / sum(exp(z)) is a softmax of z."""
        above, total = (self._producers.get(name) for name in node.inputs)
        while total is not None:  # behind it may be a clip or an offset, not to divide by 0
            through = total.inputs[0] if total.op == "Expand" else self._harmless(total)
            if through is None:
                break
            total = self._producers.get(through)
        if total is None or total.op not in ("ReduceL1", "ReduceSum"):
            return None
        axis = self._constant(total.input(1), math.nan)
        if total.inputs[0] != node.inputs[0] or math.isnan(axis):
            return None
        logits = above.inputs[0] if above is not None and above.op == "Exp" else ""
        return Final("softmax", node, node.outputs[0], logits, int(axis), ())

    def _both_sides(self, node: Node) -> Final | None:
        """[1 - p, p] or [p, 1 - p], of one p each."""
        axis = node.attributes["axis"]
        shape = self._facts.shapes.get(node.outputs[0], ())
        for p, other in (node.inputs, node.inputs[::-1]):
            minus = self._producers.get(other)
            if minus is None or minus.op != "Sub" or not self._is(minus.inputs[0], 1):
                continue
            if minus.inputs[1] == p and shape and shape[axis % len(shape)] == 2:
                return Final("softmax", node, node.outputs[0], "", axis, ())
        return None


def moved_logits(end: End, facts: Facts) -> tuple[list[Node], str, Facts]:
    """Return ``end.moves`` once more, on the logits; the name of what comes out; all facts."""
    nodes: list[Node] = []
    name, shapes, dtypes = end.logits, dict(facts.shapes), dict(facts.dtypes)
    for node in end.moves:
        fresh = f"{node.outputs[0]}/of_logits"
        while fresh in shapes:
            fresh += "_"
        inputs = (name, *node.inputs[1:])
        nodes.append(Node(fresh, node.op, inputs, (fresh,), node.attributes))
        shapes[fresh] = facts.shapes[node.outputs[0]]
        dtypes[fresh] = facts.dtypes[node.outputs[0]]
        name = fresh
    return nodes, name, Facts(shapes, dtypes)
