"""Builds ONNX nodes one expression at a time; equal expressions become one node. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = [
    "IR_VERSION",
    "OPSET",
    "Array",
    "GraphBuilder",
    "Node",
    "Shape",
    "names_read",
    "read_node",
]

OPSET = 21
IR_VERSION = 10

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]  # None: depends on the batch


class Node(NamedTuple):
    """One node of a forward graph, with its attributes as Python values."""

    name: str
    op: str
    inputs: tuple[str, ...]  # "" where an optional input is left out
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def input(self, index: int) -> str:
        """Return the input's name, "" when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


def read_node(proto: onnx.NodeProto) -> Node:
    """Return ``proto`` with its attributes decoded; text as ``str``."""
    attributes = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        attributes[attribute.name] = (
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        )
    return Node(proto.name, proto.op_type, tuple(proto.input), tuple(proto.output), attributes)


def names_read(proto: onnx.NodeProto) -> set[str]:
    """Return the values that a node reads, those that only its body reads included."""
    names = set(proto.input)
    for attribute in proto.attribute:
        if attribute.HasField("g"):
            body = attribute.g
            own = {value.name for value in (*body.input, *body.initializer)}
            own.update(name for node in body.node for name in node.output)
            names |= {name for node in body.node for name in names_read(node)} - own
    return names


class GraphBuilder:
    """Nodes and constants of one graph under construction.

    Every method returns the name of a value. The same operation on the same inputs is emitted
    once, so that independent rules may ask for what they need without knowing of each other.
    """

    def __init__(self, reserved: Iterable[str] = (), prefix: str = "") -> None:
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._names = set(reserved)
        self._known: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._count = 0

    def fresh(self, stem: str) -> str:
        """Return a name that no value has yet."""
        while True:
            self._count += 1
            name = f"{self._prefix}{stem}_{self._count}"
            if name not in self._names:
                self._names.add(name)
                return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """Return the name of a constant of this value; dtype as numpy has it."""
        array = np.asarray(value, dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = self.fresh("const")
            self.constants[name] = array
            self._known[key] = (name,)
        return self._known[key][0]

    def scalar(self, value: float) -> str:
        return self.constant(value, np.float32)

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(list(values), np.int64)

    def emit(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, called ``output`` if that is given; return its name."""
        return self.emit_many(op, inputs, [output], **attributes)[0]

    def emit_many(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str | None], **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs, named as given or freshly; return their names."""
        key = (op, tuple(inputs), len(outputs), repr(sorted(attributes.items())))
        if key in self._known and not any(outputs):
            return self._known[key]
        names = tuple(name if name is not None else self.fresh(op.lower()) for name in outputs)
        self._names.update(names)
        self.nodes.append(helper.make_node(op, list(inputs), list(names), names[0], **attributes))
        self._known.setdefault(key, names)
        return names

    def emit_new(self, op: str, input_: str) -> str:
        """Add a node even where an equal one is there: each output of a graph needs its own."""
        return self.emit(op, input_, output=self.fresh(op.lower()))

    def nested(self, stem: str) -> "GraphBuilder":
        """Return an empty graph for the body of a node, whose nodes may read values of this one."""
        return GraphBuilder(prefix=f"{self.fresh(stem)}/")

    # The few operations that every rule needs.

    def add(self, left: str, right: str) -> str:
        return self.emit("Add", left, right)

    def sub(self, left: str, right: str) -> str:
        return self.emit("Sub", left, right)

    def mul(self, left: str, right: str) -> str:
        return self.emit("Mul", left, right)

    def div(self, left: str, right: str) -> str:
        return self.emit("Div", left, right)

    def neg(self, value: str) -> str:
        return self.emit("Neg", value)

    def cast(self, value: str, dtype: int = onnx.TensorProto.FLOAT) -> str:
        return self.emit("Cast", value, to=dtype)

    def reduce_sum(self, value: str, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """Sum over ``axes``; over none of them is the value itself."""
        if not axes:
            return value
        return self.emit("ReduceSum", value, self.ints(axes), keepdims=int(keepdims))

    def sum_all(self, value: str) -> str:
        """Return the scalar sum over all elements."""
        return self.emit("ReduceSum", value, keepdims=0)

    def transpose(self, value: str, perm: Sequence[int]) -> str:
        if list(perm) == list(range(len(perm))):
            return value
        return self.emit("Transpose", value, perm=list(perm))

    def reshape(self, value: str, shape: Sequence[int | None]) -> str:
        """Reshape; one dimension at most may be None, which is then worked out at run time."""
        return self.emit("Reshape", value, self.ints([-1 if d is None else d for d in shape]))

    def slice(
        self,
        value: str,
        axes: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> str:
        inputs = [self.ints(starts), self.ints(ends), self.ints(axes)]
        if steps is not None and any(step != 1 for step in steps):
            inputs.append(self.ints(steps))
        return self.emit("Slice", value, *inputs)

    def pad(self, value: str, begins: Sequence[int], ends: Sequence[int]) -> str:
        """Pad with zeros, or crop where negative; one number per axis."""
        if not any(begins) and not any(ends):
            return value
        return self.emit("Pad", value, self.ints([*begins, *ends]))

    def concat(self, values: Sequence[str], axis: int) -> str:
        if len(values) == 1:
            return values[0]
        return self.emit("Concat", *values, axis=axis)

    def initializers(self) -> list[onnx.TensorProto]:
        """Return the constants that the nodes use."""
        used = {name for node in self.nodes for name in names_read(node)}
        return [
            numpy_helper.from_array(array, name)
            for name, array in self.constants.items()
            if name in used
        ]
