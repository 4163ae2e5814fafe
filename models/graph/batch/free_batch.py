"""A batch size that is written into a graph becomes any size. Pure.

Exporters trace a model with one example and may write its number of samples into Reshapes, initial
states and constants. We follow the batch from the input through the graph: which axis it is, and
where it lies within the axis when that was merged with others. A Reshape keeps the order of the
elements, so the place of the batch in its result follows from the number of elements to its right,
also where other dimensions have the same size. Where two places are possible (all dimensions of
size 1 look alike), the first under which the rest of the graph fits for two batch sizes is taken.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.errors import UsageError
from models.graph.batch.batch_place import BatchPlaces, Place
from models.graph.batch.written_sizes import (
    ContradictionError,
    WrittenError,
    mixes_axes,
    repeats,
    written_shape,
)
from models.graph.facts.shape_facts import BATCH, BATCH_SIZES, batch_input
from models.graph.facts.shape_trace import RECURRENT, node_name

__all__ = ["free_batch"]

ATTEMPTS = 32  # combinations of ambiguous places that are tried
BROADCASTING = {
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"),
    *("MatMul", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
}
BY_POSITION = {"GatherND", "ScatterElements", "ScatterND"}  # constants may name rows of the batch
TO_THE_END = np.iinfo(np.int64).max


def free_batch(model: onnx.ModelProto) -> None:
    """Make the batch of a model with one input symbolic, in place.

    Raises:
        UsageError: the model works for one batch size only, or on all samples of a batch together;
            the node is named.
    """
    declared: int = batch_input(model.graph).dim_value
    batch_input(model.graph).dim_param = BATCH
    if not declared:
        try:
            _Pass(model.graph, 0, []).run()
        except WrittenError as written:  # an open batch is declared, but one is written inside
            declared = written.size
        else:
            return
    choices: list[int] = []
    first_error: UsageError | None = None
    for _ in range(ATTEMPTS):
        attempt = _Pass(model.graph, declared, choices)
        try:
            nodes, tensors = attempt.run()
        except ContradictionError:
            raise  # wherever the batch is
        except UsageError as error:
            first_error = first_error or error
            following = _next(attempt.made[: attempt.choices_until_error])
            if following is None:
                break
            choices = following
            continue
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensors)
        return
    assert first_error is not None
    raise first_error


def _next(made: Sequence[tuple[int, int]]) -> list[int] | None:
    """Return the next combination of choices: of the last that has another possibility left."""
    for i in reversed(range(len(made))):
        chosen, possible = made[i]
        if chosen + 1 < possible:
            return [*(choice for choice, _ in made[:i]), chosen + 1]
    return None


class _Pass(BatchPlaces):
    """One way through the graph, with ``choices`` where the place of the batch is ambiguous.

    Without a written batch the graph is only looked at.
    """

    def __init__(self, graph: onnx.GraphProto, written: int, choices: Sequence[int]) -> None:
        super().__init__(graph, written)
        self.made: list[tuple[int, int]] = []  # choices, and of how many
        self.choices_until_error: int | None = None  # those behind it cannot mend it
        self._choices = list(choices)

    def run(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Return the nodes for any batch, and the constants that came with them."""
        error: UsageError | None = None
        for node in self.graph.node:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            try:
                self._take(own)
            except WrittenError:
                raise
            except UsageError as found:
                # Behind the first output it would not matter: what follows is merely unknown.
                if error is None:
                    error, self.choices_until_error = found, len(self.made)
                self.nodes.append(own)
        output = self.graph.output[0].name
        place = self.places.get(output)
        if place == Place(0, 1, 1):
            return self.nodes, self.tensors
        if error is not None:
            raise error
        if place is not None and place.factor > 1 and self.merged is not None:
            raise UsageError(
                f"node {node_name(self.merged)} works for one batch size only, or puts another "
                f"axis into that of the batch: output {output!r} has {place.factor} rows for each "
                "sample; export the model with a dynamic batch, and its output as [batch, ...]"
            )
        if self.lost is None and self.traces[0].shape(output) is None:
            raise UsageError(self._unknown(output))
        if self.lost is not None:
            if not self.written and self.lost.op_type != "Reshape":
                raise UsageError(mixes_axes(self.lost))
            raise UsageError(written_shape(self.lost))
        raise UsageError(
            f"output {output!r} does not have the batch as first dimension; export the model "
            "with the batch first, and so that its output has a row for every sample"
        )

    def _unknown(self, output: str) -> str:
        unknown = (
            f": node {node_name(node)} makes something whose size depends on the numbers in it"
            for node in self.nodes
            if any(name and self.traces[0].shape(name) is None for name in node.output)
        )
        return f"the shape of output {output!r} cannot be worked out{next(unknown, '')}"

    def _take(self, node: onnx.NodeProto) -> None:
        if self.at_written is not None:
            try:
                self.at_written.step(node)
            except UsageError as error:
                raise ContradictionError(str(error)) from None
            self._repair(node)
        try:
            self.step(node)
        except UsageError as error:
            size = self._size_in(node)
            if size:
                raise WrittenError(size, error) from None
            follows = any(name in self.places for name in node.input)
            raise UsageError(written_shape(node)) if follows and self.written else error from None
        self.nodes.append(node)
        for name in node.output:
            self.find_place(node, name)

    def _size_in(self, node: onnx.NodeProto) -> int:
        """Return the batch size for which ``node`` would fit, 0 if that cannot be told."""
        if self.written or not any(name in self.places for name in node.input):
            return 0
        if node.op_type == "Reshape":
            size = BATCH_SIZES[0]
            before = self.traces[0].shape(node.input[0])
            target = self.traces[0].values.get(node.input[1])
            unequal = not np.array_equal(
                -1 if target is None else target, self.traces[1].values.get(node.input[1], -1)
            )
            if before is None or target is None or unequal or (target <= 0).any():
                return 0
            per_sample = int(np.prod(before)) // size
            written = int(np.prod(target))
            return written // per_sample if per_sample and written % per_sample == 0 else 0
        return 1

    def _repair(self, node: onnx.NodeProto) -> None:
        """Free ``node`` of the size that is written into what it reads."""
        op = node.op_type
        source = node.input[0] if node.input else ""
        if op == "Reshape" and source in self.places:
            self._free_reshape(node)
        elif op == "Expand" and source not in self.places:
            self._narrow_expanded(node)
        elif op in ("Expand", "Slice", "Resize") and source in self.places:
            getattr(self, f"_free_{op.lower()}")(node)
        elif op == "Squeeze" and source in self.places and not (node.input[1:] and node.input[1]):
            self._free_squeeze(node)
        elif op in RECURRENT and source in self.places:
            self._free_states(node)
        elif op in BROADCASTING:
            self._widen_all(node, stretch=False)
        elif op in ("Concat", "GatherElements"):
            self._widen_all(node, stretch=True)
        elif op in BY_POSITION and source in self.places and self._names_rows(node):
            raise UsageError(written_shape(node))

    def _free_reshape(self, node: onnx.NodeProto) -> None:
        target = self.shape_at(node.output[0])
        given = [trace.values.get(node.input[1]) for trace in self.traces]
        if target is None or given[0] is None or given[1] is None:
            return
        if not np.array_equal(given[0], given[1]):
            return  # it follows the batch
        right = self.right_of(node.input[0])
        possible: list[tuple[tuple[bool, bool, bool, int], int]] = []
        for axis, size in enumerate(target):
            after = int(np.prod(target[axis + 1 :]))
            inner, rest = divmod(right, after) if after else (0, 1)
            if rest or not inner or size % (self.written * inner):
                continue
            outer = size // (self.written * inner)
            is_last = axis == len(target) - 1 and len(target) > 1
            possible.append((((outer, inner) != (1, 1), is_last, outer != 1, axis), axis))
        if not possible:
            raise UsageError(written_shape(node))
        axis = self._choose([axis for _, axis in sorted(possible)])
        shape = [-1 if i == axis else d for i, d in enumerate(target)]
        node.input[1] = self.add_constant(f"{node.output[0]}/shape", np.array(shape, np.int64))

    def _choose(self, possible: Sequence[int]) -> int:
        at = len(self.made)
        chosen = self._choices[at] if at < len(self._choices) else 0
        self.made.append((chosen, len(possible)))
        return possible[chosen]

    def _free_expand(self, node: onnx.NodeProto) -> None:
        given = self.written_in(node, 1)
        shape = self.shape_at(node.input[0])
        if given is None or shape is None:
            return
        place = self.places[node.input[0]]
        axis = given.size - len(shape) + place.axis
        if axis >= 0 and given[axis] == self.written * place.factor:
            given[axis] = 1
            node.input[1] = self.add_constant(f"{node.output[0]}/shape", given)

    def _narrow_expanded(self, node: onnx.NodeProto) -> None:
        """Where a constant of the written size is expanded to any size, take one sample of it."""
        first, second = (trace.values.get(node.input[1]) for trace in self.traces)
        shape = self.shape_at(node.input[0])
        if first is None or second is None or shape is None or first.shape != second.shape:
            return
        for i in np.flatnonzero(first != second).tolist():
            axis = i - (first.size - len(shape))
            if axis >= 0 and shape[axis] == self.written > 1:
                self._widen(node, 0, axis, Place(axis, 1, 1), stretch=False)

    def _free_slice(self, node: onnx.NodeProto) -> None:
        starts, ends = self.written_in(node, 1), self.written_in(node, 2)
        shape = self.shape_at(node.input[0])
        if starts is None or ends is None or shape is None:
            return
        axes = self.written_in(node, 3)
        steps = self.written_in(node, 4)
        place = self.places[node.input[0]]
        for i, axis in enumerate(range(ends.size) if axes is None else axes.tolist()):
            whole = starts[i] == 0 and ends[i] >= shape[place.axis]
            if axis % len(shape) != place.axis or (steps is not None and steps[i] != 1):
                continue
            if whole and self.written * place.factor == shape[place.axis]:
                ends[i] = TO_THE_END
                node.input[2] = self.add_constant(f"{node.output[0]}/ends", ends)

    def _free_resize(self, node: onnx.NodeProto) -> None:
        """Leave the axis of the batch out of the sizes."""
        sizes = self.written_in(node, 3)
        if sizes is None or any(a.name == "axes" for a in node.attribute):
            return
        axis = self.places[node.input[0]].axis
        kept = [i for i in range(sizes.size) if i != axis]
        node.input[3] = self.add_constant(f"{node.output[0]}/sizes", sizes[kept])
        node.attribute.append(helper.make_attribute("axes", kept))
        if len(node.input) > 1 and (roi := self.constants.get(node.input[1])) is not None:
            region = numpy_helper.to_array(roi)
            if region.size == 2 * sizes.size:
                both = [*kept, *(sizes.size + i for i in kept)]
                node.input[1] = self.add_constant(f"{node.output[0]}/roi", region[both])
            else:
                node.input[1] = ""

    def _free_squeeze(self, node: onnx.NodeProto) -> None:
        """Squeeze what is 1 for any batch, not the batch of one as well."""
        shape = self.traces[0].shape(node.input[0])
        if shape is not None:
            axes = np.array([axis for axis, d in enumerate(shape) if d == 1], np.int64)
            name = self.add_constant(f"{node.output[0]}/axes", axes)
            node.input[:] = [node.input[0], name]

    def _free_states(self, node: onnx.NodeProto) -> None:
        """Initial states of zeros are what is meant without any; others are stretched."""
        layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
        if len(node.input) > 4 and node.input[4] and node.input[4] not in self.places:
            lengths = self.fixed_value(node.input[4])
            x = self.shape_at(node.input[0])
            if lengths is not None and x is not None and (lengths == x[layout]).all():
                node.input[4] = ""
        for i in RECURRENT[node.op_type]:
            if len(node.input) <= i or not node.input[i] or node.input[i] in self.places:
                continue
            state = self.fixed_value(node.input[i])
            if state is not None and not state.any():
                node.input[i] = ""
            else:
                self._widen(node, i, 1 - layout, Place(1 - layout, 1, 1), stretch=True)

    def _widen_all(self, node: onnx.NodeProto, *, stretch: bool) -> None:
        """Give inputs that have the written size where the others have the batch any size."""
        sources = [name for name in node.input if name in self.places]
        if not sources:
            return
        shape = self.shape_at(sources[0])
        if shape is None:
            return
        place = self.places[sources[0]]
        from_right = len(shape) - place.axis
        if node.op_type == "MatMul" and from_right <= 2:
            return
        if node.op_type == "Concat" and self.along_the_batch(node):
            raise UsageError(mixes_axes(node))
        for i, name in enumerate(node.input):
            dims = self.shape_at(name) if name and name not in self.places else None
            if dims is None or len(dims) < from_right:
                continue
            axis = len(dims) - from_right
            if dims[axis] == self.written * place.factor and (stretch or dims[axis] != 1):
                self._widen(node, i, axis, place, stretch=stretch)

    def _widen(
        self, node: onnx.NodeProto, i: int, axis: int, place: Place, *, stretch: bool
    ) -> None:
        """Make an input that does not follow the batch do so: one sample's part, repeated."""
        name, stem = node.input[i], f"{node.output[0]}/{i}"
        dims = self.shape_at(name)
        if dims is None:
            return
        part = place.factor
        if dims[axis] != part:
            value = self.fixed_value(name)
            if place.outer != 1 or value is None or not repeats(value, axis, part):
                raise UsageError(
                    f"node {node_name(node)}: {name!r} has other values for each of "
                    f"{self.written} samples; export the model with a dynamic batch"
                )
            name = self._one_part(name, axis, part, f"{stem}/one")
        if part == 1 and not stretch:
            node.input[i] = name
            return
        size = self.free_name(f"{stem}/batch")
        rank = len(dims)
        self.emit(helper.make_node("Shape", [self.graph.input[0].name], [size], start=0, end=1))
        pieces = []
        if axis:
            pieces.append(self.add_constant(f"{stem}/before", np.ones(axis, np.int64)))
        pieces.append(size)
        if axis < rank - 1:
            pieces.append(self.add_constant(f"{stem}/after", np.ones(rank - 1 - axis, np.int64)))
        target = size
        if len(pieces) > 1:
            target = self.free_name(f"{stem}/times")
            self.emit(helper.make_node("Concat", pieces, [target], axis=0))
        op = "Expand" if part == 1 else "Tile"
        node.input[i] = self.free_name(f"{stem}/all")
        self.emit(helper.make_node(op, [name, target], [node.input[i]]))

    def _one_part(self, name: str, axis: int, part: int, result: str) -> str:
        """Return the part of one sample of what is the same for all."""
        if name in self.constants:
            value = numpy_helper.to_array(self.constants[name])
            return self.add_constant(result, np.take(value, range(part), axis))
        bounds = [
            self.add_constant(f"{result}/{what}", np.array([number], np.int64))
            for what, number in (("start", 0), ("end", part), ("axis", axis))
        ]
        result = self.free_name(result)
        self.emit(helper.make_node("Slice", [name, *bounds], [result]))
        return result

    def _names_rows(self, node: onnx.NodeProto) -> bool:
        """Return whether positions in a value with the batch are the same for any batch."""
        return node.input[1] not in self.places and not self.follows(node.input[1])
