"""The transform frame: a delta at one step size, each group in the form that is cheapest. Pure.

Layout (docs/payload.md): the tag, in a context its digest (32 bits), the step (16 bits), the
reconstruction offsets (byte), the entropy code (for each group its form and its coefficients),
the signs, the escapes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.codec.transform.low_rank import Spectrum, spectrum_of
from models.codec.transform.matrices import Group, groups_of, to_frequencies
from models.codec.transform.quantize import MatrixReader, Offsets, Writer, step_code, step_of
from models.codec.transform.shared_basis import Context, Held
from models.codec.transform.stages import Part, Prepared, read_part, write_cheapest
from models.errors import PayloadError
from models.protocol.update import IN_CONTEXT, context_in
from models.task.params import Tensor, Vector
from models.task.spec import TensorSpec

__all__ = [
    "PRICE",
    "TAG",
    "Draft",
    "Frame",
    "Preparation",
    "decode_frame",
    "draft_frame",
    "prepare",
    "read_frame",
    "step_in",
]

TAG = 0xE2  # in a context: `models.protocol.update.IN_CONTEXT`

PRICE = 0.12  # of a bit, in squared steps: where error and bytes trade as the step does
_TAME = 2.0**-20, 2.0**20  # largest magnitudes whose squares float32 holds well


class Preparation(NamedTuple):
    """A delta that is ready to be encoded, at any step."""

    groups: tuple[Prepared, ...]
    energy: float  # sum of squares, of the values divided by ``unit``
    unit: float  # a power of two
    context: int | None  # its digest

    @property
    def size(self) -> int:
        return sum(one.group.size for one in self.groups)


class Draft(NamedTuple):
    """A delta at one step, not yet written out."""

    code: int  # of the step
    writer: Writer
    error: float  # squared, over that of the delta: close to the NMSE
    ranks: tuple[int, ...]  # of each group; 0: not two factors
    context: int | None

    @property
    def bytes_expected(self) -> float:
        return (4 if self.context is None else 8) + self.writer.bytes_expected

    def finish(self) -> bytes:
        """Return the frame."""
        head = bytes([TAG])
        if self.context is not None:
            head = bytes([IN_CONTEXT]) + self.context.to_bytes(4, "little")
        offsets = self.writer.offsets()
        head += self.code.to_bytes(2, "little") + bytes([offsets.code])
        return head + self.writer.finish()


def prepare(
    wanted: Vector,
    tensors: Sequence[TensorSpec],
    *,
    context: Held = None,
    importance: Sequence[float] | None = None,
) -> Preparation:
    """Look at a delta: singular values, the grid on which it is smoothest, the context's basis.

    ``importance``: how much an error in each tensor weighs, for instance the mean of its Fisher
    diagonal over that of all; 1 for all without.
    """
    largest = float(np.abs(wanted).max(initial=0.0))
    unit = 1.0
    if largest and not _TAME[0] < largest < _TAME[1]:
        exponent = int(np.frexp(largest)[1])
        unit = 2.0**exponent
        wanted = np.ldexp(wanted, -exponent)
    groups = []
    held = Context.of(context)
    for group in groups_of(tensors):
        matrix = group.take(wanted)
        energy = float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))
        spectrum = spectrum_of(matrix) if group.rows > 1 and energy > 0 else None
        grid = _smoothest_grid(group, matrix, spectrum) if spectrum else 0
        basis = None
        if held is not None and spectrum is not None:
            basis = held.basis(group, group.grids[grid])
        weight = _importance(group, tensors, importance)
        groups.append(Prepared(group, matrix, energy, weight, spectrum, grid, basis))
    digest = None if held is None else held.digest
    return Preparation(tuple(groups), sum(one.energy for one in groups), unit, digest)


def draft_frame(
    delta: Preparation, step: float, price: float = PRICE, *, near: Draft | None = None
) -> Draft:
    """Choose forms and coefficients at ``step``, in units of the delta's values.

    ``near``: a draft at another step, whose ranks save trying much higher ones.
    """
    code = step_code(step)
    step = step_of(code) / delta.unit
    writer = Writer()
    error = 0.0
    ranks = []
    for number, prepared in enumerate(delta.groups):
        one = prepared
        if near is not None and near.ranks[number]:
            finer = max(1.0, step_of(near.code) / delta.unit / step)
            one = one._replace(most_rank=math.ceil(near.ranks[number] * finer) + 1)
        fit = write_cheapest(writer, one, step, price)
        writer = fit.writer
        error += fit.error * step * step
        ranks.append(fit.rank)
    return Draft(code, writer, error / (delta.energy or 1.0), tuple(ranks), delta.context)


class Frame(NamedTuple):
    """A frame, taken apart."""

    step: float
    offsets: Offsets
    context: int | None
    parts: tuple[Part, ...]


def read_frame(frame: bytes, tensors: Sequence[TensorSpec], context: Held = None) -> Frame:
    """Take a frame apart.

    Raises:
        PayloadError: it is none for ``tensors``, or was made in another context.
    """
    named = context_in(frame)
    at = 1 if named is None else 5
    if len(frame) < at + 3 or frame[0] != (TAG if named is None else IN_CONTEXT):
        raise PayloadError("payload: not a transform frame")
    held = None if named is None else Context.of(context)
    if named is not None and (held is None or named != held.digest):
        raise PayloadError("payload: made in a context that is not the one held here")
    step = step_of(int.from_bytes(frame[at : at + 2], "little"))
    offsets = Offsets.of(frame[at + 2])
    reader = MatrixReader(frame[at + 3 :])
    parts = tuple(read_part(reader, group, held) for group in groups_of(tensors))
    reader.finish()
    return Frame(step, offsets, named, parts)


def step_in(frame: bytes) -> float | None:
    """Return the step of a frame, in units of the delta's values; None: it is none of ours."""
    at = 1 if context_in(frame) is None else 5
    if len(frame) < at + 3 or frame[0] not in (TAG, IN_CONTEXT):
        return None
    try:
        return step_of(int.from_bytes(frame[at : at + 2], "little"))
    except PayloadError:
        return None


def decode_frame(frame: bytes, tensors: Sequence[TensorSpec], context: Held = None) -> Vector:
    """Return the delta in ``frame``: float32, finite, the same bits on every machine.

    Raises:
        PayloadError: it is none for ``tensors``, or was made in another context.
    """
    read = read_frame(frame, tensors, context)
    delta: Vector = np.zeros(sum(tensor.size for tensor in tensors), np.float32)
    for part in read.parts:
        part.group.put(delta, part.value(read.step, read.offsets))
    return delta


def _smoothest_grid(group: Group, matrix: Tensor, spectrum: Spectrum) -> int:
    """Return the number of the grid whose transform leaves the fewest bits in the first rows."""
    if len(group.grids) == 1:
        return 0
    top = spectrum.vectors[:, :8].T.astype(np.float32) @ matrix
    rows = top.astype(np.float64)
    noise = float(np.sqrt((rows**2).mean()))
    bits = [
        float(np.log2(1 + np.abs(to_frequencies(rows, grid)) / noise).sum()) for grid in group.grids
    ]
    return int(np.argmin(bits))


def _importance(
    group: Group, tensors: Sequence[TensorSpec], importance: Sequence[float] | None
) -> float:
    if importance is None:
        return 1.0
    weights = [importance[number] for number in group.tensors]
    sizes = [tensors[number].size for number in group.tensors]
    return min(max(float(np.average(weights, weights=sizes)), 0.25), 4.0)
