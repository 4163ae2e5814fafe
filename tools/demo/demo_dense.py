"""The same fleet's learning once more, with dense float32 updates: what the picture compares with.

Nothing is scaled or guessed here. Every update that the fleet folded is trained again, on the same
samples in the same order of devices and releases, but from the parameters that dense updates have
led to; it is written as a whole update message with the delta in float32, read back, and folded by
the server's own rule. Only the network is left out, and each training's shuffle is its own.
"""

import hashlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from broker.config import FoldPolicy, TaskConfig
from broker.folding.aggregation_rules import Contribution, mean
from broker.folding.aggregator import rate_of
from broker.folding.staleness import damping
from broker.records.registry import DATABASE, Registry
from broker.records.update_headers import FoldedUpdate, UpdateHeaders
from broker.releases.hold_out import Evaluator, HoldOut
from edge_agent.samples.sample_store import segments
from models.learning.training_loop import train
from models.protocol.learning import LearningPlan
from models.protocol.manifest import TrainingPlan
from models.protocol.npz import read_vector, write_vector
from models.protocol.update import UpdateHeader, decode_update, encode_update
from models.task.bundle import Bundle
from models.task.params import Vector, flatten, unflatten
from tools.author.bundle.export_model import read_tensors

__all__ = [
    "HOW",
    "DenseRelease",
    "DenseRun",
    "averages_plainly",
    "folded_updates",
    "learn_densely",
    "samples_on_disk",
]

HOW = (
    "measured after the fleet's run: the same updates in the same order (device, release, samples, "
    "fold), each trained again by the same training graph from what dense updates had led to, "
    "written as a whole update message with the delta in float32, read back and folded by the "
    "server's rule; without the network, and with shuffles of its own"
)

Samples = tuple[npt.NDArray[Any], npt.NDArray[Any]]


class DenseRelease(NamedTuple):
    """A release as dense updates would have made it."""

    number: int
    accuracy: float
    bytes_up: int  # of the update messages folded into it


class DenseRun(NamedTuple):
    """All of them; not ``complete`` if the time was up before the last one."""

    releases: tuple[DenseRelease, ...]
    complete: bool
    seconds: float


def averages_plainly(task: TaskConfig) -> bool:
    """Whether a release of ``task`` is what `learn_densely` makes: a mean of deltas, added."""
    policy, learning = task.aggregation, task.learning
    is_mean = (learning.feedback, policy.rule, policy.optimizer) == ("residual", "mean", "sgd")
    return is_mean and learning.average == 0


def folded_updates(server: Path, task: str) -> list[FoldedUpdate]:
    """Return what the server in the directory ``server`` folded, in the order of its releases."""
    registry = Registry(server / DATABASE, "", read_only=True)
    try:
        return sorted(UpdateHeaders(registry).folded(task), key=lambda update: update.release)
    finally:
        registry.close()


def samples_on_disk(state: Path) -> Samples:
    """Return the training samples of the device with the state directory ``state``, as they came.

    Raises:
        OSError, ValueError: they cannot be read, or there are none.
    """
    xs, ys = [], []
    for segment in segments(state / "samples"):
        with np.load(segment.path, allow_pickle=False) as file:
            xs.append(file["x"])
            ys.append(file["y"])
    return np.concatenate(xs), np.concatenate(ys)


def learn_densely(
    bundle: Bundle,
    folded: Sequence[FoldedUpdate],
    samples: Mapping[str, Samples],
    hold_out: HoldOut,
    *,
    plan: TrainingPlan,
    policy: FoldPolicy,
    seed: int,
    most_s: float,
    on_progress: Callable[[float, str], None] = lambda share, words: None,
) -> DenseRun:
    """Train and fold ``folded`` (by release) again, for at most ``most_s`` seconds.

    ``samples`` are those of each device, in the order in which it got them: an update was trained
    on the first ``samples`` of them.

    Raises:
        UsageError: a training diverged.
    """
    began = time.monotonic()
    spec = bundle.spec
    evaluate = Evaluator(bundle.infer, spec, hold_out)
    parameters: dict[int, Vector] = {1: flatten(read_tensors(bundle), spec.shared)}
    releases = [DenseRelease(1, evaluate(parameters[1]).metric, 0)]
    done = 0
    for number, group in groupby(folded, key=lambda update: update.release):
        messages = []
        updates = list(group)
        for update in updates:
            if time.monotonic() - began > most_s:
                return DenseRun(tuple(releases), False, time.monotonic() - began)
            on_progress(done / len(folded), f"dense float32, release {number}")
            base = _at(parameters, update.base)
            messages.append(_message(bundle, update, base, samples[update.key.device], plan, seed))
            done += 1
        parameters[number] = _folded(_at(parameters, number - 1), updates, messages, policy, number)
        size = sum(len(message) for message in messages)
        releases.append(DenseRelease(number, evaluate(parameters[number]).metric, size))
    return DenseRun(tuple(releases), True, time.monotonic() - began)


def _at(parameters: Mapping[int, Vector], release: int) -> Vector:
    """Return the parameters of ``release``; of one that nothing was folded into, those before."""
    return parameters[max(number for number in parameters if number <= max(1, release))]


def _message(
    bundle: Bundle,
    update: FoldedUpdate,
    base: Vector,
    samples: Samples,
    plan: TrainingPlan,
    seed: int,
) -> bytes:
    """Train one update and return the message that it would be."""
    spec = bundle.spec
    x, y = (part[: update.samples] for part in samples)
    tensors = read_tensors(bundle) | unflatten(base, spec.shared)
    shuffle = zlib.crc32(f"{seed} {update.key.device} {update.key.sequence}".encode())
    result = train(bundle.train, spec, tensors, x, y, plan, seed=shuffle)
    payload = write_vector(flatten(result.tensors, spec.shared) - base, "delta")
    header = UpdateHeader(
        task=spec.task,
        base=update.base,
        samples=len(x),
        steps=result.steps,
        loss_first=result.loss_first,
        loss_last=result.loss_last,
        accuracy=None,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
    )
    return encode_update(header, payload)


def _folded(
    parameters: Vector,
    updates: Sequence[FoldedUpdate],
    messages: Sequence[bytes],
    policy: FoldPolicy,
    number: int,
) -> Vector:
    """Fold as `broker.folding.aggregator.fold` does, of deltas that no codec has touched."""
    heaviest = policy.max_weight * median(update.samples for update in updates)
    step = mean(
        Contribution(
            read_vector(decode_update(message)[1], size=parameters.size, name="delta"),
            weight=min(float(update.samples), heaviest),
            damping=damping(number - 1 - update.base, policy),
        )
        for update, message in zip(updates, messages, strict=True)
    )
    rate = rate_of(policy, LearningPlan(), folded=len(updates), devices=0)
    moved: Vector = parameters + np.float32(rate) * step
    return moved
