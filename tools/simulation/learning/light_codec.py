"""A stand-in for the codec: quick and lossy, and its payloads are longer than one chunk."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import broker.folding.aggregator
import edge_agent.training.local_update
import edge_agent.training.trainer
from models.codec.payload import Compressed
from models.errors import PayloadError
from models.protocol.manifest import CodecPlan
from models.task.params import Vector
from models.task.spec import TensorSpec
from tools.substituted import substituted

__all__ = ["compress", "decompress", "light_codec"]

TAG = b"light"
LEVELS = 255


def compress(
    wanted: Vector, tensors: Sequence[TensorSpec], plan: CodecPlan, **options: Any
) -> bytes:
    """Return the larger half of ``wanted`` on 255 levels: quick, lossy, longer than one chunk.

    With ``plan.bytes``, as many of the largest values as these have room for, but at least one.
    """
    sizes = np.abs(wanted)
    count = wanted.size // 2
    if plan.bytes:
        count = min(plan.bytes - len(TAG) - 8 - -(-wanted.size // 8), wanted.size)
    count = max(count, 1)
    kept = sizes >= np.partition(sizes, -count)[-count]
    values = wanted[kept]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    step = (high - low) / LEVELS or 1.0
    numbers = np.rint((values - low) / step).astype(np.uint8)
    scale = np.array([low, step], "<f4").tobytes()
    return b"".join([TAG, scale, np.packbits(kept).tobytes(), numbers.tobytes()])


def _compressed(
    wanted: Vector, tensors: Sequence[TensorSpec], plan: CodecPlan, **options: Any
) -> Compressed:
    return Compressed(compress(wanted, tensors, plan), None)


def decompress(payload: bytes, tensors: Sequence[TensorSpec], *rest: Any, **options: Any) -> Vector:
    """Return what a payload of `compress` says.

    Raises:
        PayloadError: it is none.
    """
    size = sum(tensor.size for tensor in tensors)
    start, bits = len(TAG) + 8, -(-size // 8)
    if not payload.startswith(TAG) or len(payload) < start + bits:
        raise PayloadError("not a light payload")
    low, step = np.frombuffer(payload, "<f4", 2, len(TAG))
    kept = np.unpackbits(np.frombuffer(payload, np.uint8, bits, start), count=size).astype(bool)
    numbers = np.frombuffer(payload, np.uint8, -1, start + bits)
    if numbers.size != int(kept.sum()):
        raise PayloadError("a light payload that was cut off")
    delta: Vector = np.zeros(size, np.float32)
    delta[kept] = low + step * numbers.astype(np.float32)
    return delta


@contextlib.contextmanager
def light_codec() -> Iterator[None]:
    """Let the trainer and the server use the light codec: its cost is not what is simulated."""
    with substituted(
        (edge_agent.training.local_update, "compressed", _compressed),
        (edge_agent.training.local_update, "decompress", decompress),
        (edge_agent.training.trainer, "decompress", decompress),
        (broker.folding.aggregator, "decompress", decompress),
    ):
        yield
