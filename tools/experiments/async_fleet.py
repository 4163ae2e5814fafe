"""An asynchronous fleet against synchronous FedAvg, and what the average that devices run is worth.

The world of FedBuff's and FedAsync's papers in small: Fashion-MNIST dealt to 30 devices by
Dirichlet(0.3), at most 2,000 images of a class; speeds log-normal, a pause after 30 % of the
trainings; 20 steps of 32, a net of 79,510 parameters, a fold of 5 updates, 2,000 updates. Accuracy
on the 10,000 test images, mean of the last five looks. The learning rate was the best of three for
both kinds at seed 10, which is not reported; nothing else was tuned on them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from broker.config import DownlinkPlan, FoldPolicy
from models.learning.measurement import evaluate
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan, TrainingPlan
from models.task.bundle import Bundle
from models.task.params import Vector, unflatten
from tools.author.bundle.create_bundle import make_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.labeled_data import Dataset
from tools.experiments import arena
from tools.experiments.arena import Arena, Member, Timing
from tools.experiments.arena_server import Plans
from tools.experiments.figures import Course, Figure, Outcome, Told, figure

__all__ = ["bundle_of_digits", "members_of", "run"]

DEVICES, FOLD, CHOSEN = 30, 5, 10
ALPHA, OF_A_CLASS, SMALLEST = 0.3, 2000, 20
UPDATES, ROUNDS, EVERY = 2000, 200, 50
GOOD = 0.80  # of accuracy: time to there is compared
TRAINING = TrainingPlan(open=True, epochs=1000, batch=32, learning_rate=0.2, max_steps=20)
LAST = 5  # looks that are averaged
PARAMETERS = 79_510
AVERAGE = LearningPlan(average=0.9)
BITS = {"small": (0.45, None), "tiny": (None, 0.03)}  # must reach, moonshot
LOST = {"small": (1.0, None), "tiny": (None, 0.3)}
WHOLE = DownlinkPlan(method="full")


class Arm(NamedTuple):
    """One way to learn."""

    label: str
    codec: CodecPlan | None
    learning: LearningPlan = AVERAGE
    is_synchronous: bool = False
    has_feedback: bool = True


ARMS = {
    "sync": Arm("synchronous FedAvg, float32", None, LearningPlan(), is_synchronous=True),
    "dense": Arm("asynchronous, float32", None),
    "small": Arm("asynchronous, 800 bytes", CodecPlan(bytes=800)),
    "tiny": Arm("asynchronous, 148 bytes", CodecPlan(bytes=148)),
    "memory": Arm(
        "asynchronous, 800 bytes, memory",
        CodecPlan(bytes=800, context="none"),
        LearningPlan(feedback="memory", average=0.9),
    ),
    "top": Arm("asynchronous, top 1 %", CodecPlan(method="coreset", keep=0.01)),
    "bare": Arm(
        "the same without error feedback",
        CodecPlan(method="coreset", keep=0.01),
        has_feedback=False,
    ),
}


def bundle_of_digits(data: Dataset, seed: int) -> Bundle:
    """Return the task: 784-100-10 by plain SGD, initialized by ``seed``."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as directory:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
        path = Path(directory) / "net.onnx"
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2, 28, 28),),
            str(path),
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
            dynamo=False,
        )
        options = TaskOptions(model=path, optimizer="sgd", momentum=0.0, scale=1 / 255)
        return make_task("fleet", data, options).bundle


def members_of(data: Dataset, timing: Timing, *, seed: int) -> list[Member]:
    """Deal the training images by Dirichlet shares of each class; draw the speeds."""
    random = np.random.default_rng([seed, 1])
    shares: list[list[np.ndarray]] = [[] for _ in range(DEVICES)]
    rows = data.train_rows
    for label in range(data.classes):
        of_class = random.permutation(rows[data.y[rows] == label])[:OF_A_CLASS]
        ends = np.cumsum(random.dirichlet([ALPHA] * DEVICES))[:-1] * len(of_class)
        for share, part in zip(shares, np.split(of_class, ends.astype(int)), strict=True):
            share.append(part)
    speeds = np.exp(random.normal(0, timing.straggler, DEVICES))
    members = []
    for share, speed in zip(shares, speeds, strict=True):
        own = np.concatenate(share)
        if len(own) < SMALLEST:
            own = np.concatenate([own, random.choice(rows, SMALLEST, replace=False)])
        members.append(Member(own, np.zeros(0, np.int64), float(speed)))
    return members


def run(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """Return the figures of all arms."""
    data = load_dataset("fashion-mnist")
    names = ("sync", "small") if is_small else tuple(ARMS)
    courses: dict[str, list[arena.Course]] = {name: [] for name in names}
    for number, seed in enumerate(seeds):
        for place, name in enumerate(names):
            share = (number + place / len(names)) / len(seeds)
            told(share, f"seed {seed}: {ARMS[name].label}")
            courses[name].append(_played(data, ARMS[name], seed=seed, is_small=is_small))
    return Outcome(_figures(courses, seeds), _pictured(courses))


def _played(data: Dataset, arm: Arm, *, seed: int, is_small: bool) -> arena.Course:
    timing = Timing()
    bundle = bundle_of_digits(data, seed)
    plans = Plans(
        TRAINING,
        learning=arm.learning,
        codec=arm.codec,
        policy=FoldPolicy(updates=FOLD, rule="mean"),
        downlink=WHOLE if arm.codec is None else DownlinkPlan(),
        has_feedback=arm.has_feedback,
    )
    fleet = Arena(bundle, data.x, data.y, members_of(data, timing, seed=seed), plans)
    rows = data.test_rows[: 1000 if is_small else None]
    measure = partial(_accuracy, bundle, data.x[rows], data.y[rows])
    if arm.is_synchronous:
        rounds = 5 if is_small else ROUNDS
        return fleet.play_rounds(
            timing, rounds=rounds, chosen=CHOSEN, seed=seed, every=5, measure=measure
        )
    updates = 100 if is_small else UPDATES
    return fleet.play(timing, updates=updates, seed=seed, every=EVERY, measure=measure)


def _accuracy(bundle: Bundle, x: np.ndarray, y: np.ndarray, vector: Vector) -> float:
    tensors = unflatten(vector, bundle.spec.shared)
    return evaluate(bundle.infer, bundle.spec, tensors, x, y, batch=1000).metric


def _figures(courses: dict[str, list[arena.Course]], seeds: Sequence[int]) -> tuple[Figure, ...]:
    sync = courses["sync"]
    found = []

    def add(name: str, metric: str, values: Sequence[float], **bounds: Any) -> None:
        found.append(figure(name, metric, values, seeds=seeds, **bounds))

    for name, own in courses.items():
        label = ARMS[name].label
        last = [100 * course.last() for course in own]
        sent = float(np.mean([course.bytes_up[-1] / course.updates[-1] for course in own]))
        add(label, "accuracy", last, bytes_sent=sent)
        if name == "sync":
            continue
        bits = [8 * course.bytes_up[-1] / course.updates[-1] / PARAMETERS for course in own]
        must, moon = BITS.get(name, (None, None))
        add(label, "bit/parameter, headers", bits, must_reach=must, moonshot=moon, direction="most")
        lost = [100 * (a.last() - b.last()) for a, b in zip(sync, own, strict=True)]
        must, moon = LOST.get(name, (None, None))
        metric = "points under synchronous"
        add(label, metric, lost, must_reach=must, moonshot=moon, direction="most")
        sooner = [a.seconds_to(GOOD) / b.seconds_to(GOOD) for a, b in zip(sync, own, strict=True)]
        must = 8.0 if name in ("dense", "small") else None
        add(label, f"times sooner at {100 * GOOD:.0f} %", sooner, must_reach=must)
        gain = [
            100 * (course.last() - float(np.mean(course.trained_from[-LAST:]))) for course in own
        ]
        must = 1.5 if name in ("dense", "small") else None
        add(label, "points that the average gives", gain, must_reach=must)
    if "bare" in courses:
        owed = [
            100 * (a.last() - b.last())
            for a, b in zip(courses["top"], courses["bare"], strict=True)
        ]
        add("error feedback at top 1 %", "points that it gives", owed, must_reach=1.0)
    return tuple(found)


def _pictured(courses: dict[str, list[arena.Course]]) -> tuple[Course, ...]:
    """Return the courses of the first seed."""
    return tuple(
        Course(ARMS[name].label, own[0].bytes_up, own[0].seconds, own[0].runs)
        for name, own in courses.items()
    )
