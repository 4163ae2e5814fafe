"""Where the batch is in every value of a graph. Pure.

Followed from the input on: which axis it is, and where it lies within the axis when that was merged
with others. A Reshape keeps the order of the elements, so the place of the batch in its result
follows from the number of elements to its right.
"""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from models.graph.facts.shape_facts import BATCH_SIZES
from models.graph.facts.shape_trace import ShapeTrace, evaluate
from models.graph.graph_builder import Array

__all__ = ["BatchPlaces", "Place"]

# Work along one axis, and so on all samples together when that is the batch's.
ALONG_AN_AXIS = {
    "Softmax": -1,
    "LogSoftmax": -1,
    "Hardmax": -1,
    "LpNormalization": -1,
    "ArgMax": 0,
    "ArgMin": 0,
    "TopK": -1,
    "Split": 0,
    "Concat": 0,
}


class Place(NamedTuple):
    """Where the batch is in a value: an axis of outer x batch x inner elements."""

    axis: int
    outer: int
    inner: int

    @property
    def factor(self) -> int:
        return self.outer * self.inner


class BatchPlaces:
    """The graph for two batch sizes, and for the one that is ``written`` into it (0: none).

    Nodes are given in order: `step`, then `find_place` for each of their outputs.
    """

    def __init__(self, graph: onnx.GraphProto, written: int) -> None:
        self.graph = graph
        self.written = written
        self.nodes: list[onnx.NodeProto] = []  # taken so far
        self.tensors: list[onnx.TensorProto] = []  # constants that came with them
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.at_written = ShapeTrace(graph, written) if written else None
        self.traces = [ShapeTrace(graph, size) for size in BATCH_SIZES]
        self.places = {graph.input[0].name: Place(0, 1, 1)}
        self.lost: onnx.NodeProto | None = None  # the first node whose result has no batch
        self.merged: onnx.NodeProto | None = None  # the last that merged it with another axis
        self._without = set[str]()  # what is made of its results
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}

    def free_name(self, wish: str) -> str:
        """Return a name that no value has yet."""
        while wish in self._taken:
            wish += "_"
        self._taken.add(wish)
        return wish

    def step(self, node: onnx.NodeProto) -> None:
        """Work out the shapes that ``node`` makes.

        Raises:
            UsageError: it does not fit its inputs.
        """
        for trace in self.traces:
            trace.step(node)

    def find_place(self, node: onnx.NodeProto, name: str) -> None:
        """Note where the batch is in a new value."""
        first, second = (trace.shape(name) for trace in self.traces)
        # Of what CastLike is to be like only the type matters.
        inputs = node.input[:1] if node.op_type == "CastLike" else node.input
        sources = [self.places[source] for source in inputs if source in self.places]
        if first is None or second is None:
            return
        if node.op_type in ("Shape", "Size") or name in self.traces[0].values:
            return
        differ = [axis for axis, (d, o) in enumerate(zip(first, second, strict=False)) if d != o]
        factor, rest = divmod(first[differ[0]], BATCH_SIZES[0]) if differ else (0, 0)
        is_lost = (
            not self._without.isdisjoint(inputs)
            or len(first) != len(second)
            or len(differ) != 1
            or rest
            or factor * BATCH_SIZES[1] != second[differ[0]]
            or self.along_the_batch(node)
        )
        if is_lost:
            if sources or not self._without.isdisjoint(inputs):
                self.lost = self.lost or node
                self._without.add(name)
            return
        (axis,) = differ
        place = Place(axis, 1, factor)
        if node.op_type == "Reshape" and sources:
            inner, rest = divmod(self.right_of(node.input[0]), int(np.prod(first[axis + 1 :])))
            if not rest and inner and factor % inner == 0:
                place = Place(axis, factor // inner, inner)
        else:
            for source in sources:
                if source.factor == factor:
                    place = Place(axis, source.outer, source.inner)
                    break
        self.places[name] = place
        if place.factor > 1 and all(source.factor == 1 for source in sources):
            self.merged = node

    def right_of(self, name: str) -> int:
        """Return how many elements lie between one sample and the next in a value."""
        place, shape = self.places[name], self.traces[0].shape(name)
        assert shape is not None
        return place.inner * int(np.prod(shape[place.axis + 1 :]))

    def along_the_batch(self, node: onnx.NodeProto) -> bool:
        """Return whether ``node`` works along the axis of the batch."""
        if node.op_type not in ALONG_AN_AXIS:
            return False
        axis = next((a.i for a in node.attribute if a.name == "axis"), ALONG_AN_AXIS[node.op_type])
        for name in node.input:
            shape = self.traces[0].shape(name)
            if name in self.places and shape is not None:
                return axis % max(len(shape), 1) == self.places[name].axis
        return False

    def follows(self, name: str) -> bool:
        """Return whether a value differs between batch sizes."""
        first, second = (trace.values.get(name) for trace in self.traces)
        shapes = [trace.shape(name) for trace in self.traces]
        return shapes[0] != shapes[1] or not np.array_equal(
            -1 if first is None else first, -1 if second is None else second
        )

    def shape_at(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a value for the written batch size."""
        return self.at_written.shape(name) if self.at_written is not None else None

    def written_in(self, node: onnx.NodeProto, i: int) -> Array | None:
        """Return an input's whole numbers that do not follow the batch, None if it does."""
        name = node.input[i] if i < len(node.input) else ""
        first, second = (trace.values.get(name) for trace in self.traces)
        if not name or first is None or second is None or not np.array_equal(first, second):
            return None
        return np.array(first, np.int64)

    def fixed_value(self, name: str) -> Array | None:
        """Return what is computed from constants alone, however large."""
        if name in self.constants:
            value: Array = numpy_helper.to_array(self.constants[name])
            return value
        makers = {output: node for node in self.nodes for output in node.output}
        nodes: list[onnx.NodeProto] = []
        todo, seen = [name], set()
        while todo:
            maker = makers.get(todo.pop())
            if maker is None or maker.output[0] in seen:
                continue
            seen.add(maker.output[0])
            nodes.append(maker)
            todo += maker.input
        wanted = {source for node in nodes for source in node.input if source}
        if not nodes or self.graph.input[0].name in wanted:
            return None
        order = {id(node): i for i, node in enumerate(self.nodes)}
        nodes.sort(key=lambda node: order[id(node)])
        inputs = {
            source: numpy_helper.to_array(self.constants[source])
            for source in wanted
            if source in self.constants
        }
        found = evaluate(nodes, inputs, [name])
        return found[0] if found else None

    def add_constant(self, name: str, value: Array) -> str:
        """Add a constant called about ``name``; return its name."""
        name = self.free_name(name)
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.tensors.append(tensor)
        self.constants[name] = tensor
        for trace in self._every_trace():
            trace.add_constant(tensor)
        return name

    def emit(self, node: onnx.NodeProto) -> None:
        """Add a node that was not there."""
        self.nodes.append(node)
        for trace in self._every_trace():
            trace.step(node)
        for name in node.output:
            self.find_place(node, name)

    def _every_trace(self) -> list[ShapeTrace]:
        return [*self.traces, *([self.at_written] if self.at_written is not None else [])]
