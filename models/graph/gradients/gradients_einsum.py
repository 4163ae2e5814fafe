"""Gradient rule of Einsum: the equation with an operand and the output exchanged. Pure."""

import string
from typing import NamedTuple

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node

__all__ = ["EINSUM", "read_equation"]


class Equation(NamedTuple):
    """An equation without ellipsis or spaces: a letter per axis of each operand."""

    operands: tuple[str, ...]
    output: str


def read_equation(text: str, ranks: list[int], node: str) -> Equation:
    """Give every axis a letter; capital letters stand for what an ellipsis covers.

    Raises:
        UsageError: an operand has an axis twice (a diagonal), or its rank does not fit.
    """
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in text]
    covered = [
        rank - len(term.replace("...", "")) if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    most = max(covered)
    if most > len(free) or min(covered) < 0:
        raise UsageError(f"node {node!r} (Einsum): the equation {text!r} does not fit its inputs")
    operands = [
        term.replace("...", "".join(free[most - count : most]))
        for term, count in zip(terms, covered, strict=True)
    ]
    if not arrow:  # what appears once, in alphabetical order, after the ellipsis
        letters = left.replace("...", "").replace(",", "")
        right = "..." + "".join(sorted(c for c in letters if letters.count(c) == 1))
    for term, rank in zip(operands, ranks, strict=True):
        if len(term) != rank:
            raise UsageError(
                f"node {node!r} (Einsum): the equation {text!r} does not fit its inputs"
            )
        if len(set(term)) < rank:
            raise UsageError(
                f"node {node!r} (Einsum): the gradient of a diagonal ({text!r} names an axis "
                "twice in one operand) is not supported; take the diagonal by other operators, "
                "such as a product with an identity matrix and a sum"
            )
    return Equation(tuple(operands), right.replace("...", "".join(free[:most])))


def einsum(b: Backward, node: Node, dY: str) -> Gradients:
    """Every operand's gradient is an Einsum of dY and the other operands.

    An axis that only this operand has was summed: its gradient is the same along it. One of size 1
    that was stretched is summed.
    """
    ranks = [b.rank(name) for name in node.inputs]
    equation = read_equation(node.attributes["equation"], ranks, node.name)
    sizes: dict[str, set[int | None]] = {}
    for term, name in zip(equation.operands, node.inputs, strict=True):
        for letter, d in zip(term, b.shape(name), strict=True):
            sizes.setdefault(letter, set()).add(d)
    stretched = {letter for letter, found in sizes.items() if len(found - {1}) == 1 and 1 in found}
    return [
        _of_operand(b, node, equation, i, dY, stretched) if b.wants(name) else None
        for i, name in enumerate(node.inputs)
    ]


def _of_operand(
    b: Backward, node: Node, equation: Equation, i: int, dY: str, stretched: set[str]
) -> str:
    g, name, term = b.graph, node.inputs[i], equation.operands[i]

    def whole(at: int) -> set[str]:
        """Return the axes of an operand that have their full size."""
        sizes = zip(equation.operands[at], b.shape(node.inputs[at]), strict=True)
        return {letter for letter, d in sizes if d != 1 or letter not in stretched}

    others = [at for at in range(len(node.inputs)) if at != i]
    known = set(equation.output).union(*map(whole, others)) & whole(i)
    shape = b.shape(name)
    kept = "".join(letter for letter in term if letter in known)
    terms = [equation.output, *(equation.operands[at] for at in others)]
    values = [dY, *(node.inputs[at] for at in others)]
    gradient = _product(g, terms, values, kept)
    missing = [axis for axis, c in enumerate(term) if c not in kept]
    if not missing:
        return gradient
    gradient = g.emit("Unsqueeze", gradient, g.ints(missing))
    if all(shape[axis] == 1 for axis in missing):
        return gradient
    return g.emit("Expand", gradient, b.shape_input(name))


def _product(g: GraphBuilder, terms: list[str], values: list[str], output: str) -> str:
    if terms == [output]:
        return values[0]
    return g.emit("Einsum", *values, equation=f"{','.join(terms)}->{output}")


EINSUM: dict[str, Rule] = {"Einsum": einsum}
