"""Which node of a model is the first whose value is not what it should be: all values looked at."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from models.learning.onnx_session import open_session
from tools.author.door.bundle_run import run_quietly

__all__ = ["first_bad_value", "first_batch_dependence", "first_difference", "values_of"]

Array = npt.NDArray[Any]
SAME = 1e-4
MOST_BYTES = 64 << 20  # of a model that is looked into


def first_bad_value(model: bytes, feeds: Mapping[str, Array]) -> str:
    """Return ", first at node ..." where a value is not finite; "" where that cannot be told."""
    return _first(model, feeds, lambda name, value: not np.isfinite(value).all())


def first_batch_dependence(model: bytes, name: str, x: Array, row: int) -> str:
    """Return ", first at node ..." where ``row`` of a batch is not what it is alone; or ""."""
    alone = values_of(model, {name: x[row : row + 1]})

    def differs(value_name: str, value: Array) -> bool:
        other = alone.get(value_name)
        if other is None or value.shape[:1] != (len(x),) or other.shape != (1, *value.shape[1:]):
            return False
        return not _close(value[row], other[0])

    return _first(model, {name: x}, differs)


def first_difference(
    ours: bytes, our_feeds: Mapping[str, Array], theirs: bytes, their_feeds: Mapping[str, Array]
) -> str:
    """Return ", first at node ..." where a value of ``ours`` is not that of ``theirs``; or ""."""
    others = values_of(theirs, their_feeds)

    def differs(name: str, value: Array) -> bool:
        other = others.get(name)
        return other is not None and other.shape == value.shape and not _close(value, other)

    return _first(ours, our_feeds, differs)


def values_of(model: bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the float values of all nodes by name; {} where they cannot be had."""
    if len(model) > MOST_BYTES:
        return {}
    proto = onnx.load_from_string(model)
    there = {output.name for output in proto.graph.output}
    names = [name for node in proto.graph.node for name in node.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    try:
        session = open_session(proto.SerializeToString())
        values = run_quietly(session, names, feeds)
    except Exception:  # it is only asked in order to say more about a fault that is known
        return {}
    return {
        name: np.asarray(value, np.float64)
        for name, value in zip(names, values, strict=True)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }


def _first(model: bytes, feeds: Mapping[str, Array], is_bad: Callable[[str, Array], bool]) -> str:
    values = values_of(model, feeds)
    for node in onnx.load_from_string(model).graph.node if values else ():
        if _any_bad(node.output, values, is_bad):
            return f", first at node {node.name or node.output[0]!r} ({node.op_type})"
    return ""


def _any_bad(
    names: Sequence[str], values: Mapping[str, Array], is_bad: Callable[[str, Array], bool]
) -> bool:
    return any(name in values and is_bad(name, values[name]) for name in names)


def _close(left: Array, right: Array) -> bool:
    both = np.isfinite(left) & np.isfinite(right)
    if (np.isfinite(left) != np.isfinite(right)).any():
        return False
    size = 1.0 + float(np.abs(right[both]).max(initial=0))
    return bool(np.abs(left[both] - right[both]).max(initial=0) <= SAME * size)
