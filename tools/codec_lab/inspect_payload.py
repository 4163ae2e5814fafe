"""``edgefold inspect``: what a payload holds, tensor by tensor."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from models.codec.payload import decompress, frame_of, is_npz
from models.codec.sparse import coreset_frame
from models.codec.sparse.coreset_frame import read_coreset
from models.codec.transform.frame import read_frame
from models.codec.transform.stages import Part
from models.errors import PayloadError, UsageError
from models.protocol.npz import read_arrays, read_npy
from models.protocol.update import MAGIC, Extras, context_in, decode_update
from models.task.params import Vector, unflatten
from models.task.spec import TaskSpec, TensorSpec, decode_spec
from tools.given_file import file_to_write, given

if TYPE_CHECKING:
    from tools.cli import Subparsers

__all__ = ["describe", "register"]

EXAMPLES = """\
examples:
  edgefold compress birds --reduction 0.97 --out small.npz
  edgefold inspect small.npz --spec birds/spec.json
"""
MOST_BYTES = 1 << 30  # of a vector
BAR = 48  # characters of the longest bar of a histogram


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``inspect``."""
    parser = subparsers.add_parser(
        "inspect",
        help="what a payload holds, tensor by tensor",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a payload (npz or bare), or an update with it")
    parser.add_argument("--spec", type=Path, required=True, help="spec.json of the task's bundle")
    parser.add_argument(
        "--context",
        type=Path,
        metavar="FILE",
        help="what this was made in the context of: a payload, "
        "or a vector that an agent keeps (codec/context-*.npz, codec/history-*.npz)",
    )
    parser.add_argument("--wanted", type=Path, metavar="FILE.npy", help="the delta: shows errors")
    parser.add_argument(
        "--onnx", type=file_to_write, metavar="OUT.onnx", help="write it as a patch graph"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what the file holds."""
    context = wanted = None
    with given(arguments.spec):
        spec: TaskSpec = decode_spec(arguments.spec.read_bytes())
    if arguments.context:
        with given(arguments.context):
            context = _context(arguments.context.read_bytes(), spec)
    if arguments.wanted:
        with given(arguments.wanted):
            wanted = _delta(arguments.wanted.read_bytes(), spec.shared_size)
    with given(arguments.file):
        data = arguments.file.read_bytes()
        found: dict[str, Any] = {"file": str(arguments.file), "bytes": len(data)}
        if data[: len(MAGIC)] == MAGIC:
            header, data = decode_update(data)
            found["update"] = header._asdict()
            if header.extras is not None:
                found["update"]["extras"] = _said_in(header.extras)
        if context is None and (named := context_in(frame_of(data, spec.shared_size))) is not None:
            raise UsageError(
                f"{arguments.file}: made in context {named:08x} (what a release changed, or the "
                "memory of its device), which is not in it: give it with --context FILE"
            )
        found |= describe(data, spec.shared, context=context, wanted=wanted)
    if arguments.onnx:
        from models.graph.compressed.patch import patch_model

        model = patch_model(data, spec.shared, context=context)
        arguments.onnx.write_bytes(model.SerializeToString())
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def _said_in(extras: Extras) -> dict[str, Any]:
    """Return what ``extras`` say beyond the defaults."""
    said = msgspec.structs.asdict(extras)
    usual = msgspec.structs.asdict(Extras())
    return {name: value for name, value in said.items() if value != usual[name]}


def _context(data: bytes, spec: TaskSpec) -> Vector:
    """Return the vector in ``data``, or the delta where that is a payload."""
    if is_npz(data):
        arrays = list(read_arrays(data, max_bytes=MOST_BYTES).values())
        if [(a.dtype, a.shape) for a in arrays] == [(np.dtype("float32"), (spec.shared_size,))]:
            return arrays[0]
    return decompress(data, spec.shared)


def _delta(data: bytes, size: int) -> Vector:
    values = read_npy(data)
    if values.size != size or not np.isfinite(values).all():
        raise PayloadError(f"{values.dtype} {values.shape}, {size} finite numbers were expected")
    return values.astype(np.float32).reshape(-1)


def describe(
    payload: bytes,
    tensors: tuple[TensorSpec, ...],
    *,
    context: Vector | None = None,
    wanted: Vector | None = None,
) -> dict[str, Any]:
    """Return what ``payload`` holds; with ``wanted``, the delta that it was made of, its errors.

    Raises:
        PayloadError: it is none for ``tensors``.
    """
    size = sum(tensor.size for tensor in tensors)
    delta = decompress(payload, tensors, context=context)
    frame = frame_of(payload, size)
    found: dict[str, Any] = {
        "wrapping": "npz" if is_npz(payload) else "bare frame",
        "frame_bytes": len(frame),
        "parameters": size,
        "bits_per_parameter": round(8 * len(frame) / max(size, 1), 5),
    }
    parts: dict[int, Part] = {}
    if frame[:1] == bytes([coreset_frame.TAG]):
        coreset = read_coreset(frame, size)
        found |= {"frame": "coreset", "centers": [float(c) for c in coreset.centers]}
        levels = coreset.numbers
    else:
        read = read_frame(frame, tensors, context)
        named = context_in(frame)
        found |= {"frame": "transform", "step": read.step}
        found |= {"context": f"{named:08x}"} if named is not None else {}
        parts = {number: part for part in read.parts for number in part.group.tensors}
        levels = np.concatenate([_coefficients(part) for part in read.parts])
    values, counts = np.unique(np.clip(levels, -8, 8) if parts else levels, return_counts=True)
    found["histogram"] = {str(v): int(c) for v, c in zip(values, counts, strict=True)}
    found["tensors"] = []
    for number, (name, value) in enumerate(unflatten(delta, tensors).items()):
        one: dict[str, Any] = {"name": name, "shape": list(value.shape)}
        one["density"] = round(float(np.count_nonzero(value)) / max(value.size, 1), 5)
        one["values"] = int(np.unique(value).size)
        one["norm"] = float(np.linalg.norm(value))
        if number in parts:
            one |= _form(parts[number])
        if wanted is not None:
            whole = unflatten(wanted, tensors)[name]
            energy = float(np.square(whole).sum())
            one["nmse"] = round(float(np.square(whole - value).sum()) / (energy or 1.0), 5)
        found["tensors"].append(one)
    return found


def _form(part: Part) -> dict[str, Any]:
    coefficients = _coefficients(part)
    form: dict[str, Any] = {"form": part.stage, "nonzero": int(np.count_nonzero(coefficients))}
    form["coefficients"] = int(coefficients.size)
    if part.low_rank is not None:
        form["rank"] = len(part.low_rank.left)
        form["grid"] = "x".join(str(side) for side in part.grid)
    return form


def _coefficients(part: Part) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    found = [] if part.plain is None else [part.plain]
    if part.low_rank is not None:
        factors = part.low_rank
        found += [factors.left, factors.right]
        found += [] if factors.coordinates is None else [factors.coordinates]
    return np.concatenate([np.zeros(0, np.int32), *[piece.reshape(-1) for piece in found]])


def _print(found: dict[str, Any]) -> None:
    tensors, histogram = found.pop("tensors"), found.pop("histogram")
    for key, value in found.items():
        print(f"{key}: {value}")
    print(f"\n{'tensor':28}{'shape':>18}{'form':>22}{'rank':>6}{'density':>10}{'nmse':>9}")
    for one in tensors:
        shape = "x".join(str(n) for n in one["shape"]) or "scalar"
        form = f"{one.get('form', 'coreset')} {one.get('grid', '')}".strip()
        print(
            f"{one['name'][:27]:28}{shape:>18}{form:>22}{one.get('rank', ''):>6}"
            f"{one['density']:>10.4f}{one.get('nmse', ''):>9}"
        )
    print("\ncoefficient" if found.get("frame") == "transform" else "\ncenter")
    most = max(histogram.values(), default=1)
    for value, count in histogram.items():
        print(f"{value:>5} {count:>9} {'#' * max(1, round(BAR * count / most))}")
