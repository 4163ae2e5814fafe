"""How far payloads are from what theory allows, tensor by tensor."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.codec.transform.entropy import Doubles
from models.codec.transform.frame import PRICE, Preparation, draft_frame, prepare, read_frame
from models.codec.transform.quantize import Writer, step_of
from models.codec.transform.stages import write_cheapest
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["bound_report", "scalar_bytes"]

_DEAD_ZONES = (0.5, 0.6, 0.7)  # of a step: below it a value becomes zero
_STEPS = np.geomspace(0.03, 24, 45)  # times the root mean square


def bound_report(
    delta: Vector, tensors: Sequence[TensorSpec], *, times: float = 4.0
) -> dict[str, Any]:
    """Return the payload of ``delta`` at a step of ``times`` its root mean square, against bounds.

    ``ideal_bytes`` is the length of an ideal code under the codec's own adaptive model: what is
    above it is container, rounding and the end of the entropy coder. Of each group of tensors:
    its form, rank, share of those bits and error, and what an optimal scalar quantizer with an
    ideal memoryless coder (`scalar_bytes`) takes for the same error.
    """
    prepared = prepare(delta, tensors)
    step = times * math.sqrt(float(np.square(delta.astype(np.float64)).mean()))
    draft = draft_frame(prepared, step)
    frame = draft.finish()
    bits = _bits_of_groups(prepared, step_of(draft.code) / prepared.unit)
    read = read_frame(frame, tensors)
    groups = []
    for part, spent in zip(read.parts, bits, strict=True):
        wanted = part.group.take(delta).astype(np.float64).reshape(-1)
        found = part.value(read.step, read.offsets).astype(np.float64).reshape(-1)
        energy = float(wanted @ wanted)
        error = float(np.square(wanted - found).sum()) / (energy or 1.0)
        scalar = scalar_bytes(wanted, error) if energy else 0.0
        groups.append(
            {
                "tensors": [tensors[number].name for number in part.group.tensors],
                "values": part.group.size,
                "form": part.stage,
                "rank": 0 if part.low_rank is None else len(part.low_rank.left),
                "ideal_bytes": round(spent / 8, 1),
                "bits_per_value": round(spent / part.group.size, 4),
                "nmse": round(error, 4),
                "scalar_bytes": None if scalar is None else round(scalar, 1),
            }
        )
    ideal = draft.writer.bits / 8
    return {
        "bytes": len(frame),
        "ideal_bytes": round(ideal, 1),
        "above_ideal": round(len(frame) / ideal - 1, 4) if ideal else 0.0,
        "groups": groups,
    }


def scalar_bytes(values: Doubles, nmse: float) -> float | None:
    """Return the least bytes for ``nmse`` of uniform quantizers with a dead zone.

    Their entropy is that of the values' own histogram, reconstruction points are centroids:
    within a few percent of the best scalar quantizer at any rate. None: none errs so much.
    """
    energy = float(values @ values)
    magnitudes = np.abs(values)
    root = math.sqrt(energy / values.size)
    best: float | None = None
    for dead in _DEAD_ZONES:
        points = [_quantized(values, magnitudes, root * times, dead) for times in _STEPS]
        errors = np.array([error / energy for error, _ in points])
        sizes = np.array([bits / 8 for _, bits in points])
        order = np.argsort(errors)
        if errors[order[0]] <= nmse <= errors[order[-1]]:
            found = float(np.interp(nmse, errors[order], sizes[order]))
            best = found if best is None else min(best, found)
    return 0.0 if nmse >= 1 else best


def _quantized(
    values: Doubles, magnitudes: Doubles, step: float, dead: float
) -> tuple[float, float]:
    """Return squared error and bits."""
    whole = np.floor(magnitudes / step + (1 - dead)) * np.sign(values)
    _, places, counts = np.unique(whole, return_inverse=True, return_counts=True)
    sums = np.bincount(places.reshape(-1), weights=values)
    error = float(values @ values - (np.square(sums) / counts).sum())
    return error, float((counts * np.log2(values.size / counts)).sum())


def _bits_of_groups(prepared: Preparation, step: float) -> list[float]:
    writer, spent = Writer(), []
    for one in prepared.groups:
        before = writer.bits
        writer = write_cheapest(writer, one, step, PRICE).writer
        spent.append(writer.bits - before)
    return spent
