"""What others send: codecs to compare ours with, each as bytes and what they decode to.

Sizes are those of whole payloads that a decoder could read, side information included.
"""

import heapq
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.codec.sparse.coreset import kmeans_centers, nearest
from models.codec.sparse.sparse_index import encode_positions
from models.task.params import Vector

__all__ = [
    "PEERS",
    "WITHIN",
    "Decoded",
    "Point",
    "centers_within",
    "coreset_packed",
    "eden_one_bit",
    "float16_deflated",
    "int8_deflated",
    "kmeans_huffman",
    "qsgd",
    "random_levels_within",
    "sparse_ternary",
    "ternary_within",
    "top_k_float32",
]


class Point(NamedTuple):
    """One operating point of a codec on one delta."""

    bytes: int
    nmse: float


Curve = Callable[[Vector], Iterator[Point]]


class Decoded(NamedTuple):
    """What a receiver gets."""

    delta: Vector
    size: int  # bytes


def float16_deflated(delta: Vector) -> Iterator[Point]:
    """Half precision, then zlib (zstd's gain over it on mantissas is below a percent)."""
    half = delta.astype(np.float16)
    yield _point(delta, half.astype(np.float32), len(zlib.compress(half.tobytes(), 9)))


def int8_deflated(delta: Vector) -> Iterator[Point]:
    """One scale for all values, then zlib."""
    scale = float(np.abs(delta).max()) / 127 or 1.0
    whole = np.rint(delta / scale).astype(np.int8)
    yield _point(delta, whole * np.float32(scale), 4 + len(zlib.compress(whole.tobytes(), 9)))


def top_k_float32(delta: Vector) -> Iterator[Point]:
    """The largest values as they are, each with its 32-bit index."""
    for share in _SHARES:
        positions = _largest(delta, share)
        kept = np.zeros_like(delta)
        kept[positions] = delta[positions]
        yield _point(delta, kept, 8 * positions.size)


def sparse_ternary(delta: Vector) -> Iterator[Point]:
    """STC (Sattler et al., arXiv:1903.02891): one magnitude, signs, Golomb-coded gaps."""
    for share in _SHARES:
        yield _point(delta, *_ternary(delta, share))


def kmeans_huffman(delta: Vector) -> Iterator[Point]:
    """Deep Compression (Han et al., arXiv:1510.00149): prune, share weights, Huffman codes."""
    for share in _SHARES:
        yield _point(delta, *_shared_weights(delta, share))


def coreset_packed(delta: Vector) -> Iterator[Point]:
    """Our own coreset frame: top-k, 16 exact centers of fixed width, Rice-coded gaps."""
    for share in _SHARES:
        yield _point(delta, *_coreset(delta, share, 16))


def qsgd(delta: Vector) -> Iterator[Point]:
    """QSGD (Alistarh et al., arXiv:1610.02132): random rounding, at the entropy of its levels."""
    rng = np.random.default_rng(0)
    for levels in (1, 2, 4, 8):
        for bucket in (512, 8192):
            yield _point(delta, *_random_levels(delta, levels, bucket, rng))


def eden_one_bit(delta: Vector) -> Iterator[Point]:
    """EDEN/DRIVE (Vargaftik et al., arXiv:2108.08842): random rotation, signs, unbiased scale."""
    size = 1 << (delta.size - 1).bit_length()
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), size)
    padded = np.zeros(size, np.float32)
    padded[: delta.size] = delta
    rotated = _hadamard(padded * signs)
    scale = float(rotated @ rotated) / float(np.abs(rotated).sum())
    for factor in (scale, float(np.abs(rotated).mean())):  # unbiased, and of the least error
        decoded = _hadamard(np.sign(rotated) * np.float32(factor)) * signs
        yield _point(delta, decoded[: delta.size], size // 8 + 4)


def ternary_within(wanted: Vector, most: int) -> Decoded:
    """STC with as many signs as fit into ``most`` bytes."""
    return _most_that_fits(lambda share: _ternary(wanted, share), wanted.size, most)


def centers_within(wanted: Vector, most: int) -> Decoded:
    """Top-k on shared centers in at most ``most`` bytes, in the cheaper of two forms.

    16 centers and Huffman codes (Deep Compression), whose tables cost 336 bytes, or 4 centers of
    fixed width and Rice-coded gaps.
    """
    forms = (
        _most_that_fits(lambda share: _coreset(wanted, share, 4), wanted.size, most),
        _most_that_fits(lambda share: _shared_weights(wanted, share), wanted.size, most),
    )
    return min(forms, key=lambda found: float(np.square(wanted - found.delta).sum()))


def random_levels_within(wanted: Vector, most: int) -> Decoded:
    """QSGD in at most ``most`` bytes: one level, and buckets as small as the bytes allow.

    Scaled to the least error (one number, in the norms): error feedback with the unbiased scale
    diverges, since what is missing is then longer than what was wanted.
    """
    rng = np.random.default_rng(wanted.size)
    for bucket in _BUCKETS:
        found = _random_levels(wanted, 1, min(bucket, wanted.size), rng)
        if found.size <= most or bucket >= wanted.size:
            break
    if found.size > most:
        return Decoded(np.zeros_like(wanted), 0)
    energy = float(found.delta @ found.delta)
    scale = float(wanted @ found.delta) / energy if energy else 0.0
    return Decoded(found.delta * np.float32(scale), found.size)


WITHIN: dict[str, Callable[[Vector, int], Decoded]] = {
    "STC": ternary_within,
    "top-k, centers": centers_within,
    "QSGD": random_levels_within,
}

PEERS: dict[str, Curve] = {
    "float16 + deflate": float16_deflated,
    "int8 + deflate": int8_deflated,
    "top-k float32": top_k_float32,
    "STC": sparse_ternary,
    "k-means + Huffman": kmeans_huffman,
    "coreset frame": coreset_packed,
    "QSGD": qsgd,
    "EDEN 1 bit": eden_one_bit,
}

_BUCKETS = tuple(1 << power for power in range(9, 31))  # values
_HALVINGS = 12  # of the range of shares, on a logarithmic scale
_SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def _most_that_fits(form: Callable[[float], Decoded], size: int, most: int) -> Decoded:
    """Return ``form`` at the largest share whose bytes are at most ``most``; nothing, if none."""
    best = Decoded(np.zeros(size, np.float32), 0)
    low, high = math.log(1 / size), math.log(0.5)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = form(math.exp(middle))
        if found.size <= most:
            best, low = found, middle
        else:
            high = middle
    return best


def _ternary(delta: Vector, share: float) -> Decoded:
    positions = _largest(delta, share)
    mean = np.float32(np.abs(delta[positions]).mean())
    kept = np.zeros_like(delta)
    kept[positions] = np.sign(delta[positions]) * mean
    ratio = 1 - positions.size / delta.size
    golomb = max(0, 1 + math.floor(math.log2(math.log((5**0.5 - 1) / 2) / math.log(ratio))))
    gaps = np.diff(positions, prepend=-1) - 1
    bits = int((gaps >> golomb).sum()) + positions.size * (1 + golomb + 1)
    return Decoded(kept, 4 + 1 + (bits + 7) // 8)


def _shared_weights(delta: Vector, share: float) -> Decoded:
    positions = _largest(delta, share)
    centers = kmeans_centers(delta[positions], 16)
    numbers = nearest(delta[positions], centers)
    kept = np.zeros_like(delta)
    kept[positions] = centers[numbers]
    gaps = np.diff(positions, prepend=-1) - 1
    fillers = gaps // 255
    symbols = np.concatenate([gaps % 255, np.full(int(fillers.sum()), 255)])
    size = 4 * centers.size + 16 + 256
    return Decoded(kept, size + (_huffman_bits(numbers) + _huffman_bits(symbols) + 7) // 8)


def _coreset(delta: Vector, share: float, count: int) -> Decoded:
    positions = _largest(delta, share)
    centers = kmeans_centers(delta[positions], count)
    kept = np.zeros_like(delta)
    kept[positions] = centers[nearest(delta[positions], centers)]
    index = encode_positions(positions, delta.size)
    numbers = (positions.size * (centers.size - 1).bit_length() + 7) // 8
    return Decoded(kept, 5 + 4 * centers.size + len(index) + numbers)


def _random_levels(delta: Vector, levels: int, bucket: int, rng: np.random.Generator) -> Decoded:
    padded = np.zeros(-(-delta.size // bucket) * bucket, np.float32)
    padded[: delta.size] = delta
    rows = padded.reshape(-1, bucket)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled = np.abs(rows) / np.maximum(norms, 1e-30) * levels
    whole = np.floor(scaled + rng.random(rows.shape)) * np.sign(rows)
    decoded = (whole * norms / levels).reshape(-1)[: delta.size].astype(np.float32)
    return Decoded(decoded, 4 * len(rows) + math.ceil(_entropy_bits(whole) / 8))


def _point(delta: Vector, decoded: Vector, size: int) -> Point:
    missed = float(np.square((delta - decoded).astype(np.float64)).sum())
    return Point(size, missed / float(np.square(delta.astype(np.float64)).sum()))


def _largest(delta: Vector, share: float) -> npt.NDArray[np.int64]:
    count = max(1, int(share * delta.size))
    found = np.argpartition(np.abs(delta), delta.size - count)[delta.size - count :]
    return np.sort(found)


def _entropy_bits(symbols: npt.NDArray[Any]) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum())


def _huffman_bits(symbols: npt.NDArray[np.int64]) -> int:
    """Return the length of ``symbols`` in their own Huffman code."""
    heap = [int(count) for count in np.unique(symbols, return_counts=True)[1]]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined
        heapq.heappush(heap, joined)
    return bits


def _hadamard(values: Vector) -> Vector:
    """Return the orthonormal Walsh-Hadamard transform of 2**n values."""
    work = values.astype(np.float32)
    half = 1
    while half < work.size:
        pairs = work.reshape(-1, 2, half)
        work = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        half *= 2
    scaled: Vector = work / np.float32(math.sqrt(work.size))
    return scaled
