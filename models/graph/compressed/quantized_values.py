"""Few different values as ONNX nodes: a codebook, and for each place the number of its value.

Numbers are uint4 or uint8, positions are gaps of one byte made absolute by CumSum: what stock
onnxruntime runs from opset 21 on (Gather wants int32, CumSum rejects uint8: hence the casts).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.codec.transform.entropy import Integers
from models.task.params import Tensor

__all__ = ["ValueNodes"]

SPARSE_BELOW = 1 / 3  # a named value takes 1.5 bytes or more, a place in a dense table half a byte
LONGEST_GAP = 255


class ValueNodes:
    """Collects nodes and initializers; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._made = 0

    def constant(self, values: npt.NDArray[Any]) -> str:
        name = self._name("constant")
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or self._name(operator.lower())
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def reshape(self, value: str, shape: tuple[int, ...]) -> str:
        return self.add("Reshape", value, self.constant(np.array(shape, np.int64)), allowzero=1)

    def table(self, numbers: Integers, codebook: Tensor, output: str = "") -> str:
        """Return ``codebook[numbers]``, in the shape of ``numbers``."""
        if codebook.size <= 16:
            name = self._name("numbers")
            flat = numbers.reshape(-1).astype(np.uint8)
            padded = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
            packed = (padded[0::2] | padded[1::2] << 4).tobytes()  # the low nibble first
            self.initializers.append(
                helper.make_tensor(name, TensorProto.UINT4, numbers.shape, packed, raw=True)
            )
        else:
            kind = np.uint8 if codebook.size <= 256 else np.int32
            name = self.constant(numbers.astype(kind))
        where = self.add("Cast", name, to=TensorProto.INT32)
        return self.add("Gather", self.constant(codebook), where, axis=0, output=output)

    def values(self, values: Tensor) -> str:
        """Return ``values`` in their shape, sparse or dense, whichever is smaller."""
        flat = values.reshape(-1)
        positions = np.flatnonzero(flat)
        if positions.size < SPARSE_BELOW * flat.size:
            return self.reshape(self._sparse(flat, positions), values.shape)
        codebook, numbers = np.unique(flat, return_inverse=True)
        return self.table(numbers.reshape(values.shape), codebook)

    def _sparse(self, flat: Tensor, positions: Integers) -> str:
        zeros = self.add("ConstantOfShape", self.constant(np.array([flat.size], np.int64)))
        if positions.size == 0:
            return zeros
        gaps = np.diff(positions, prepend=-1)
        bridges = (gaps - 1) // LONGEST_GAP  # entries of value zero that make a long gap short
        ends = np.cumsum(bridges + 1) - 1
        steps = np.full(int(ends[-1]) + 1, LONGEST_GAP, np.uint8)
        steps[ends] = gaps - bridges * LONGEST_GAP
        updates = np.zeros(steps.size, np.float32)
        updates[ends] = flat[positions]
        codebook, numbers = np.unique(updates, return_inverse=True)
        one = self.constant(np.array(1, np.int32))
        wide = self.add("Cast", self.constant(steps), to=TensorProto.INT32)
        axis = self.constant(np.array(0, np.int32))
        where = self.add("Sub", self.add("CumSum", wide, axis), one)
        named = self.table(numbers.reshape(-1), codebook)
        return self.add("ScatterElements", zeros, where, named, axis=0, reduction="add")

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"patch/{kind}_{self._made}"
