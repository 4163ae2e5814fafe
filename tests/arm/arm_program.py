"""Run by a foreign processor: the golden vectors, and its onnxruntime over payloads.

Prints one JSON object. Needs what a device has (numpy, onnxruntime, msgspec) and onnx.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from models.codec.average import averaged
from models.codec.payload import decompress
from models.graph.compressed.compact import compact_model
from models.graph.compressed.patch import patch_model
from models.task.params import flatten
from models.task.spec import Role, TensorSpec

VECTORS = Path(sys.argv[1])


def run(model: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def golden_digests() -> dict[str, str]:
    """Return the digest of what each golden payload decodes to here."""
    digests = {}
    for golden in golden_file["payloads"]:
        delta = decoded(golden)
        digests[golden["file"]] = hashlib.sha256(delta.astype("<f4").tobytes()).hexdigest()
    return digests


def decoded(golden: dict[str, str]) -> np.ndarray:
    return decompress(payload_of(golden["file"]), tensors, context=context_of(golden))


def payload_of(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def context_of(golden: dict[str, str]) -> np.ndarray | None:
    name = golden["context"]
    return decompress(payload_of(name), tensors) if name else None


def averages_that_differ() -> list[int]:
    """Return which golden averages move to other bits here."""
    golden = np.load(VECTORS / "averages.npz")
    moves = json.loads((VECTORS / "averages.json").read_text("utf-8"))["moves"]
    found = [
        averaged(golden["average"], golden["published"], move["number"], decay=move["decay"])
        for move in moves
    ]
    return [n for n, v in enumerate(found) if v.tobytes() != golden[f"moved_{n}"].tobytes()]


def patch_errors() -> dict[str, float]:
    """Return how far each patch graph is from adding what numpy decodes, at most."""
    rng = np.random.default_rng(0)
    old = {t.name: np.asarray(rng.normal(size=t.shape), np.float32) for t in tensors}
    errors = {}
    for golden in golden_file["payloads"]:
        model = patch_model(payload_of(golden["file"]), tensors, context=context_of(golden))
        new = run(model.SerializeToString(), old)
        found = flatten({t.name: new[f"new/{t.name}"] for t in tensors}, tensors)
        errors[golden["file"]] = float(
            np.abs(found - (flatten(old, tensors) + decoded(golden))).max()
        )
    return errors


def compact_errors() -> dict[str, float]:
    """Return how far a compact model's answer is from its codebook's in numpy."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(64, 32)).astype(np.float32)
    x = rng.normal(size=(5, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    errors = {}
    for centers in (16, 256):
        compacted = compact_model(model, centers=centers)
        answer = run(compacted.model.SerializeToString(), {"x": x})["y"]
        missed = float(np.square(answer - x @ weights).sum() / np.square(x @ weights).sum())
        errors[str(centers)] = missed
    return errors


golden_file = json.loads((VECTORS / "payloads.json").read_text("utf-8"))
tensors = [TensorSpec(t["name"], tuple(t["shape"]), Role.SHARED) for t in golden_file["tensors"]]
print(
    json.dumps(
        {
            "machine": platform.machine(),
            "onnxruntime": ort.__version__,
            "digests": golden_digests(),
            "averages_that_differ": averages_that_differ(),
            "patches": patch_errors(),
            "compact": compact_errors(),
        }
    )
)
