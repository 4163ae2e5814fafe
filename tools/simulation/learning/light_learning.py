"""What devices of a simulated fleet learn, and a stand-in for it: quick, and exact about it.

Every device knows a target vector and moves toward it; the fleet's optimum is the mean of all
targets. Only the arithmetic of training, evaluation and codec is replaced: job, residual, refunds
and result files are those of `edge_agent.training.trainer`.
"""

import contextlib
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

import edge_agent.training.trainer
import models.codec.payload
from edge_agent.training.training_job import RESULT, Job, decode_job
from models.host.durable import atomic_write
from models.learning.scoring import Doubles, Score
from models.learning.training_loop import TrainingResult
from models.protocol.manifest import TrainingPlan
from models.protocol.update import Extras
from models.task.bundle import Bundle, bundle_of
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec
from tools.simulation.learning.light_codec import decompress, light_codec
from tools.substituted import substituted

__all__ = [
    "Learned",
    "Learning",
    "LightLearning",
    "carry_out",
    "job_of",
    "plan_steps",
    "sample_file",
]

PACE = 0.085  # of the way to its target that a device goes in one step
NOISE = 0.02
SAMPLES = 16  # in a file
Learned = Callable[[Job, Vector], None]
job_of = lru_cache(64)(decode_job)  # who begins a training and who does it read the same bytes


class Learning(Protocol):
    """What the devices of a fleet learn, and from what."""

    bundle: Bundle

    def codec(self) -> AbstractContextManager[None]:
        """Within it, trainer and server use the codec that goes with this."""

    def samples(self, device: int, number: int) -> bytes | None:
        """Return the file that ``device`` gets as its ``number``-th (from 0); None: no more."""

    def train(self, device: int, job: Path, learned: Learned) -> None:
        """Do the job in ``job`` as the trainer child of ``device`` would.

        Raises:
            OSError, EdgefoldError: as `edge_agent.training.trainer.carry_out`.
        """

    def evaluate(self, parameters: Vector) -> Score:
        """Return how good ``parameters`` are for the fleet as a whole."""

    def decompress(self, payload: bytes, *, context: Vector | None) -> Vector:
        """Return what ``payload`` says."""


class LightLearning:
    """Every device goes toward a target; the fleet's optimum is the mean of all targets.

    ``has_codec`` False: payloads are those of the product's codec.
    """

    def __init__(
        self, task: str, size: int, *, seed: int, devices: int, has_codec: bool = True
    ) -> None:
        self.bundle = bundle(task, size)
        self._targets = [target_of(seed, number, size) for number in range(devices)]
        self._optimum = mean(self._targets)
        self._file = sample_file(SAMPLES)
        self._has_codec = has_codec

    def codec(self) -> AbstractContextManager[None]:
        return light_codec() if self._has_codec else contextlib.nullcontext()

    def samples(self, device: int, number: int) -> bytes | None:
        return self._file

    def train(self, device: int, job: Path, learned: Learned) -> None:
        target = self._targets[device]

        def train(
            model: bytes,
            spec: TaskSpec,
            tensors: Mapping[str, Tensor],
            x: Any,
            y: Any,
            plan: TrainingPlan,
            *,
            seed: int,
            **options: Any,
        ) -> TrainingResult:
            base = flatten(tensors, spec.shared)
            steps = plan_steps(plan, len(x))
            pace = 1 - (1 - PACE) ** steps
            noise = np.random.default_rng(seed).standard_normal(base.size) * NOISE
            new = (base + pace * (target - base) + noise).astype(np.float32)
            gap = target - base
            loss = float(gap @ gap) / gap.size
            return TrainingResult(
                tensors=unflatten(new, spec.shared),
                steps=steps,
                loss_first=loss,
                loss_last=loss * (1 - pace) ** 2,
                ms_per_step=10.0,
            )

        def evaluate(
            model: bytes,
            spec: TaskSpec,
            tensors: Mapping[str, Tensor],
            x: Any,
            y: Any,
            **options: Any,
        ) -> Doubles:
            gap = target - flatten(tensors, spec.shared)
            loss = float(gap @ gap) / gap.size
            return np.full(len(x), 1 / (1 + loss))

        def looked_back(
            probe: None, base: Vector, delta: Vector, *rows: Any, steps: int, seed: int
        ) -> Extras:
            """As the probe would see a loss of |target - w|^2 / d."""
            slope = float(np.linalg.norm(target - base)) * 2 / base.size
            return Extras(rho=slope, beta=2 / base.size, gradient_norm=slope, effective=steps)

        carry_out(
            job,
            train,
            evaluate,
            learned,
            others={
                "looked_back": looked_back,
                "Probe": lambda *rest: None,
                "open_session": lambda *rest, **options: None,
            },
        )

    def evaluate(self, parameters: Vector) -> Score:
        loss = float(np.mean((parameters - self._optimum) ** 2))
        return Score(metric=1 / (1 + loss), loss=loss, samples=len(self._targets))

    def decompress(self, payload: bytes, *, context: Vector | None) -> Vector:
        decode = decompress if self._has_codec else models.codec.payload.decompress
        return decode(payload, self.bundle.spec.shared, context=context)


def plan_steps(plan: TrainingPlan, samples: int) -> int:
    """Return how many steps a training by ``plan`` makes, as `training_loop.py` does."""
    batches = math.ceil(samples / min(plan.batch, max(samples, 1)))
    return max(1, min(plan.max_steps, round(plan.epochs * batches)))


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
    return bundle_of(spec, bytes(model.SerializeToString()), b"light training")


def target_of(seed: int, device: int, size: int) -> Vector:
    """Return where training on ``device`` leads; its mean over devices is the fleet's optimum."""
    common = np.random.default_rng([seed, 1]).standard_normal(size)
    own = np.random.default_rng([seed, 2, device]).standard_normal(size)
    return (common + 0.5 * own).astype(np.float32)


@lru_cache(4)
def sample_file(count: int) -> bytes:
    """Return an npz with ``count`` samples of the light task."""
    file = io.BytesIO()
    np.savez(file, x=np.zeros((count, 1), np.float32), y=np.arange(count) % 2)
    return file.getvalue()


def carry_out(
    path: Path,
    train: Callable[..., TrainingResult],
    evaluate: Callable[..., Doubles],
    learned: Learned,
    *,
    ms_per_step: float = 10.0,
    others: Mapping[str, Callable[..., object]] | None = None,
) -> None:
    """Do the job in ``path`` as the trainer child would; tell ``learned`` what was learned.

    ``others``: names of the trainer that stand for something else.

    Whatever the clock of this machine had to say of it is replaced, so that a run can be repeated.

    Raises:
        OSError, EdgefoldError: as `edge_agent.training.trainer.carry_out`.
    """
    job = job_of(path.read_bytes())
    reference = job.how.steps.reference if job.how.steps and job.sends else 0.0
    deltas: list[Vector] = []

    def watched(
        model: bytes, spec: TaskSpec, tensors: Mapping[str, Tensor], *rest: Any, **options: Any
    ) -> TrainingResult:
        found = train(model, spec, tensors, *rest, **options)
        if job.do == "train":
            deltas.append(flatten(found.tensors, spec.shared) - flatten(tensors, spec.shared))
            if not reference:
                learned(job, deltas[0])
        return found

    with substituted(
        (edge_agent.training.trainer, "train", watched),
        (edge_agent.training.trainer, "evaluate_each", evaluate),
        (sys, "stderr", io.StringIO()),  # what a child says goes into its log
        *((edge_agent.training.trainer, name, value) for name, value in (others or {}).items()),
    ):
        result = edge_agent.training.trainer.carry_out(job, path.parent)
    extras = result.extras
    if extras and extras.seconds:
        extras = msgspec.structs.replace(extras, seconds=1.0, ms_per_step=ms_per_step)
    constant = msgspec.structs.replace(
        result, seconds=1.0, peak_rss_mb=50.0, ms_per_step=ms_per_step, extras=extras
    )
    if reference and extras and deltas:  # as many steps as usual
        learned(job, deltas[0] * np.float32(reference / extras.effective))
    atomic_write(path.parent / RESULT, msgspec.json.encode(constant))


def mean(vectors: Sequence[Vector]) -> Vector:
    middle: Vector = np.mean(vectors, axis=0).astype(np.float32)
    return middle
