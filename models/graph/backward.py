"""What a gradient rule may ask for while the backward half of a graph is built. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence

from models.errors import UsageError
from models.graph.graph_builder import Array, GraphBuilder, Node, Shape

__all__ = ["Backward", "Gradients", "Rule"]

Gradients = Sequence[str | None]  # one per input of a node; None: zero, or nobody wants it


class Backward:
    """The graph under construction, and what is known of the forward values.

    ``graph`` receives the nodes. A rule reads shapes of *forward* values here; the gradient of a
    value has the value's own shape.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        shapes: Mapping[str, Shape],
        constants: Mapping[str, Array],
        wanted: Collection[str],
    ) -> None:
        self.graph = graph
        self._gradients: dict[str, str] = {}
        self._shapes = shapes
        self._constants = constants
        self._wanted = wanted
        self._producers = {name: node for node in graph.nodes for name in node.output}

    def wants(self, name: str) -> bool:
        """Return whether the gradient of this forward value is needed."""
        return name in self._wanted

    def gradient(self, name: str) -> str | None:
        """Return the gradient of this forward value, as far as it has been collected."""
        return self._gradients.get(name)

    def collect(self, name: str, gradient: str) -> None:
        """Add ``gradient`` to what is already known of the gradient of a forward value."""
        known = self._gradients.get(name)
        self._gradients[name] = gradient if known is None else self.graph.add(known, gradient)

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def extra_output(self, node: Node, index: int) -> str:
        """Return an optional output of a forward node, asking the node for it if necessary."""
        name = next(filter(None, node.outputs))
        proto = self._producers[name]
        while len(proto.output) <= index:
            proto.output.append("")
        if not proto.output[index]:
            proto.output[index] = self.graph.fresh(f"{name}_{index}")
        return str(proto.output[index])

    def asked_for_nan(self, name: str) -> str | None:
        """Return the forward value that tells where ``name`` is NaN, if the net computes it."""
        return next(
            (n.output[0] for n in self.graph.nodes if n.op_type == "IsNaN" and n.input[0] == name),
            None,
        )

    def shape(self, name: str) -> Shape:
        """Return the shape of a forward value, None for the dimension that follows the batch.

        Raises:
            UsageError: shape inference could not tell.
        """
        if name not in self._shapes:
            raise UsageError(
                f"the shape of value {name!r} cannot be worked out ahead of time, and its gradient "
                "needs it; export the model with a fixed input shape"
            )
        return self._shapes[name]

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def value(self, name: str, node: Node) -> Array:
        """Return the value of a constant forward input of ``node``.

        Raises:
            UsageError: it is computed at run time.
        """
        if name not in self._constants:
            raise UsageError(
                f"node {node.name!r} ({node.op}): its input {name!r} must be a constant"
            )
        return self._constants[name]

    def shape_input(self, name: str) -> str:
        """Return an int64 tensor with the shape of a forward value: constant where possible."""
        shape = self.shape(name)
        if None not in shape:
            return self.graph.ints([d for d in shape if d is not None])
        return self.graph.emit("Shape", name)

    def reshape_like(self, gradient: str, name: str) -> str:
        """Reshape ``gradient`` to the shape of the forward value ``name``."""
        shape = self.shape(name)
        if sum(d is None for d in shape) <= 1 and 0 not in shape:
            return self.graph.reshape(gradient, shape)
        return self.graph.emit("Reshape", gradient, self.shape_input(name))

    def unbroadcast(self, gradient: str, from_shape: Shape, name: str) -> str:
        """Sum ``gradient``, of shape ``from_shape``, down to the shape of forward value ``name``.

        The inverse of ONNX' multidirectional broadcasting: added leading axes vanish, and axes
        stretched from 1 are summed back to 1.
        """
        shape = self.shape(name)
        lead = len(from_shape) - len(shape)
        gradient = self.graph.reduce_sum(gradient, list(range(lead)))
        stretched = [
            axis for axis, d in enumerate(shape) if d == 1 and from_shape[lead + axis] != 1
        ]
        return self.graph.reduce_sum(gradient, stretched, keepdims=True)


# (…, forward node, gradient of its first output that has one) -> gradients of its inputs
Rule = Callable[[Backward, Node, str], Gradients]
