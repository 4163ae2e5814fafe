"""A stand-in for learning: quick, exact about what was learned, and otherwise the real trainer.

Every device knows a target vector and moves toward it; the fleet's optimum is the mean of all
targets. Only the arithmetic of training, evaluation and codec is replaced: job, residual, refunds
and result files are those of `edge_agent.trainer`.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import broker.aggregator
import edge_agent.trainer
from broker.initial_release import Bundle
from edge_agent.training_job import RESULT, Job, decode_job
from edge_agent.training_loop import Evaluation, TrainingResult
from models.durable import atomic_write
from models.errors import PayloadError
from models.params import Tensor, Vector, flatten, unflatten
from models.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec

__all__ = [
    "Learned",
    "bundle",
    "carry_out",
    "decompress",
    "light_codec",
    "mean",
    "sample_file",
    "substituted",
    "target_of",
]

PACE = 0.3  # of the way to its target that a device goes in one training
NOISE = 0.02
Learned = Callable[[Job, Vector], None]


def light_spec(task: str, size: int) -> TaskSpec:
    """Return the contract of a task with ``size`` parameters in two tensors."""
    first = size // 3
    return TaskSpec(
        format=1,
        task=task,
        net="light",
        tensors=(
            TensorSpec("w", (first,), Role.SHARED),
            TensorSpec("v", (size - first,), Role.SHARED),
        ),
        x=ArraySpec("float32", (1,)),
        y=ArraySpec("int64", ()),
        classes=2,
        loss="cross_entropy",
        metric="accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="logits",
        slots=(),
    )


def bundle(task: str, size: int) -> Bundle:
    """Return a bundle whose model starts at zero; its graphs are for names and digests only."""
    import onnx

    spec = light_spec(task, size)
    names = [(tensor.name, tensor.shape) for tensor in spec.shared]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["logits"])],
        "light",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 1])],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in names],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    return Bundle(spec, bytes(model.SerializeToString()), b"light training", encode_spec(spec))


def target_of(seed: int, device: int, size: int) -> Vector:
    """Return where training on ``device`` leads; its mean over devices is the fleet's optimum."""
    common = np.random.default_rng([seed, 1]).standard_normal(size)
    own = np.random.default_rng([seed, 2, device]).standard_normal(size)
    return (common + 0.5 * own).astype(np.float32)


def sample_file(count: int) -> bytes:
    """Return an npz with ``count`` samples of the light task."""
    file = io.BytesIO()
    np.savez(file, x=np.zeros((count, 1), np.float32), y=np.arange(count) % 2)
    return file.getvalue()


def carry_out(path: Path, target: Vector, learned: Learned) -> None:
    """Do the job in ``path`` as the trainer child would; tell ``learned`` what was learned.

    Raises:
        OSError, EdgefoldError: as `edge_agent.trainer.carry_out`.
    """
    job = decode_job(path.read_bytes())

    def train(
        model: bytes,
        spec: TaskSpec,
        tensors: Mapping[str, Tensor],
        x: Any,
        y: Any,
        plan: Any,
        **options: Any,
    ) -> TrainingResult:
        base = flatten(tensors, spec.shared)
        noise = np.random.default_rng(job.seed).standard_normal(base.size) * NOISE
        new = (base + PACE * (target - base) + noise).astype(np.float32)
        learned(job, new - base)
        loss = float(np.mean((target - base) ** 2))
        return TrainingResult(
            tensors=unflatten(new, spec.shared),
            steps=4,
            loss_first=loss,
            loss_last=loss * (1 - PACE) ** 2,
            ms_per_step=10.0,
        )

    def evaluate(
        model: bytes, spec: TaskSpec, tensors: Mapping[str, Tensor], x: Any, y: Any, **options: Any
    ) -> Evaluation:
        loss = float(np.mean((target - flatten(tensors, spec.shared)) ** 2))
        return Evaluation(metric=1 / (1 + loss), loss=loss, count=len(x))

    with substituted(
        (edge_agent.trainer, "train", train),
        (edge_agent.trainer, "evaluate", evaluate),
        (sys, "stderr", io.StringIO()),  # what a child says goes into its log
    ):
        result = edge_agent.trainer.carry_out(job, path.parent)
    constant = msgspec.structs.replace(result, seconds=1.0, peak_rss_mb=50.0)  # as reproducible
    atomic_write(path.parent / RESULT, msgspec.json.encode(constant))


@contextlib.contextmanager
def substituted(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Replace attributes (owner, name, value) for a while."""
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(saved):
            setattr(owner, name, value)


TAG = b"light"
LEVELS = 255


def compress(wanted: Vector, tensors: Sequence[TensorSpec], *rest: Any, **options: Any) -> bytes:
    """Return the larger half of ``wanted`` on 255 levels: quick, lossy, longer than one chunk."""
    kept = np.abs(wanted) >= np.median(np.abs(wanted))
    values = wanted[kept]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    step = (high - low) / LEVELS or 1.0
    numbers = np.rint((values - low) / step).astype(np.uint8)
    scale = np.array([low, step], "<f4").tobytes()
    return b"".join([TAG, scale, np.packbits(kept).tobytes(), numbers.tobytes()])


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


def residual_after(
    wanted: Vector, payload: bytes, tensors: Sequence[TensorSpec], *rest: Any, **options: Any
) -> Vector:
    """Return what ``payload`` leaves out of ``wanted``."""
    return wanted - decompress(payload, tensors)


@contextlib.contextmanager
def light_codec() -> Iterator[None]:
    """Let the trainer and the server use the light codec: its cost is not what is simulated."""
    with substituted(
        (edge_agent.trainer, "compress", compress),
        (edge_agent.trainer, "decompress", decompress),
        (edge_agent.trainer, "residual_after", residual_after),
        (broker.aggregator, "decompress", decompress),
    ):
        yield


def mean(vectors: Sequence[Vector]) -> Vector:
    middle: Vector = np.mean(vectors, axis=0).astype(np.float32)
    return middle
