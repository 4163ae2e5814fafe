"""``edgefold compress``: a whole ONNX model in few bytes, without training.

Writes the weights as a payload (rate-distortion quantization, low rank where it pays, context
coding) and, if asked, a compact model that any onnxruntime loads as it is.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from models.codec.budget import Budget
from models.codec.chain import compress, decompress, to_npz
from models.codec.selection import top_k
from models.errors import UsageError
from models.graph.compact import SMALLEST, compact_model
from models.params import Vector, flatten, unflatten
from models.spec import Role, TensorSpec

if TYPE_CHECKING:
    from tools.cli import Subparsers

__all__ = ["register", "weights_of", "with_weights"]


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``compress``."""
    parser = subparsers.add_parser("compress", help="a whole ONNX model in few bytes")
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="write the weights' payload")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--bytes", type=int, help="of the payload, at most")
    size.add_argument("--nmse", type=float, help="squared error over squared length, at most")
    size.add_argument(
        "--reduction", type=float, default=0.95, help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--keep", type=float, default=1.0, help="share of the weights, the largest")
    parser.add_argument(
        "--restored", type=Path, metavar="OUT.onnx", help="write what it decodes to"
    )
    parser.add_argument("--compact", type=Path, metavar="OUT.onnx", help="write a codebook model")
    parser.add_argument("--centers", type=int, default=16, help="of --compact (default: 16)")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="x and y: shows accuracies")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress, and say what came out."""
    try:
        model = onnx.load(arguments.model, load_external_data=False)
    except Exception as error:  # protobuf has no public class for a file that is none
        if isinstance(error, OSError):
            raise
        raise UsageError(f"{arguments.model} is not an ONNX file: {error}") from None
    specs, weights = weights_of(model)
    if not specs:
        raise UsageError(f"{arguments.model} has no float32 weights of {SMALLEST} values or more")
    if not 0 < arguments.keep <= 1:
        raise UsageError(f"--keep {arguments.keep}: a share between 0 and 1")
    if arguments.keep < 1:
        pruned = np.zeros_like(weights)
        kept = top_k(weights, arguments.keep)
        pruned[kept] = weights[kept]
        weights_to_send = pruned
    else:
        weights_to_send = weights
    payload = compress(weights_to_send, specs, _budget(arguments, weights.nbytes))
    restored = decompress(payload, specs)
    report: dict[str, Any] = {
        "weights": int(weights.size),
        "dense_bytes": int(weights.nbytes),
        "payload_bytes": len(payload),
        "reduction": round(1 - len(payload) / weights.nbytes, 5),
        "nmse": round(float(np.square(weights - restored).sum() / np.square(weights).sum()), 5),
    }
    after = with_weights(model, specs, restored)
    if arguments.out:
        arguments.out.write_bytes(to_npz(payload))
    if arguments.restored:
        arguments.restored.write_bytes(after.SerializeToString())
    compact = None
    if arguments.compact:
        compact = compact_model(model, centers=arguments.centers).model
        arguments.compact.write_bytes(compact.SerializeToString())
        report["compact_bytes"] = arguments.compact.stat().st_size
    if arguments.data:
        report["accuracy_before"] = _accuracy(model, arguments.data)
        report["accuracy_after"] = _accuracy(after, arguments.data)
        if compact is not None:
            report["accuracy_compact"] = _accuracy(compact, arguments.data)
    for key, value in report.items():
        print(f"{key}: {value}")
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


def weights_of(model: ModelProto) -> tuple[tuple[TensorSpec, ...], Vector]:
    """Return the float32 initializers of ``SMALLEST`` values or more, and all their values."""
    specs, values = [], {}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not tensor.external_data:
            array = numpy_helper.to_array(tensor)
            if array.size >= SMALLEST and np.isfinite(array).all():
                specs.append(TensorSpec(tensor.name, tuple(array.shape), Role.SHARED))
                values[tensor.name] = array
    return tuple(specs), flatten(values, specs)


def with_weights(model: ModelProto, specs: tuple[TensorSpec, ...], weights: Vector) -> ModelProto:
    """Return a copy of ``model`` with other values in the initializers ``specs``."""
    copy = ModelProto()
    copy.CopyFrom(model)
    values = unflatten(weights, specs)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return copy


def _budget(arguments: argparse.Namespace, dense: int) -> Budget:
    if arguments.bytes is not None:
        return Budget(bytes=arguments.bytes)
    if arguments.nmse is not None:
        if not 0 < arguments.nmse <= 1:
            raise UsageError(f"--nmse {arguments.nmse}: between 0 and 1")
        return Budget(nmse=arguments.nmse)
    if not 0 < arguments.reduction < 1:
        raise UsageError(f"--reduction {arguments.reduction}: between 0 and 1")
    return Budget(bytes=round(dense * (1 - arguments.reduction)))


def _accuracy(model: ModelProto, data: Path) -> float:
    import onnxruntime as ort

    from models.payload.npz import read_arrays

    arrays = read_arrays(data.read_bytes(), max_bytes=1 << 32)
    if "x" not in arrays or "y" not in arrays:
        raise UsageError(f"{data}: no arrays x and y")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for at in range(0, len(arrays["y"]), 256):
        answers = session.run(None, {name: arrays["x"][at : at + 256]})[0]
        right += int((answers.argmax(axis=-1) == arrays["y"][at : at + 256]).sum())
    return round(right / max(len(arrays["y"]), 1), 5)
