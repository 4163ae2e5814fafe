"""Personal batch norm against averaged batch norm on devices that know two classes each.

FedBN (Li et al., ICLR 2021) and FedAvg on the personal benchmark of LotteryFL and FedLTN (papers in
docs/papers.md): 20 devices with 20 images of each of two classes of Fashion-MNIST, 10 of them in
each of 30 synchronous rounds. Accuracies are each device's own, on test images of its two classes,
before and after one more local pass: where every device may run what it tuned itself, the first
alone would flatter.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from broker.config import DownlinkPlan, FoldPolicy
from models.protocol.manifest import TrainingPlan
from models.task.bundle import Bundle
from models.task.params import Vector
from tools.author.bundle.create_bundle import make_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.labeled_data import Dataset
from tools.experiments import arena
from tools.experiments.arena import Arena, Member, Timing
from tools.experiments.arena_server import Plans
from tools.experiments.figures import Course, Outcome, Told, figure

__all__ = ["run"]

DEVICES, CHOSEN, ROUNDS = 20, 10, 30
CLASSES, OF_EACH, TESTED = 2, 20, 200  # classes of a device; images of each to train, to test
# Those of LotteryFL's repository, which FedLTN builds on.
PLAN = TrainingPlan(open=True, epochs=10, batch=32, learning_rate=0.01)
MOMENTUM = 0.5
LOOKS = 10  # at the course
Norms = Literal["personal", "shared", "frozen"]
LABELS: dict[Norms, str] = {
    "frozen": "FedAvg, frozen norms",
    "shared": "FedAvg",
    "personal": "FedBN",
}
NORMS = tuple(LABELS)


class Accuracies(NamedTuple):
    """Of each device, on its own test images."""

    before: list[float]
    after: list[float]  # one more local pass
    course: arena.Course  # of the mean, before


def run(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """Return the figures: FedBN beside FedAvg, mean and worst decile."""
    data = load_dataset("fashion-mnist")
    rounds = 6 if is_small else ROUNDS
    found: dict[Norms, list[Accuracies]] = {norms: [] for norms in NORMS}
    for number, seed in enumerate(seeds):
        for place, norms in enumerate(NORMS):
            share = (number + place / len(NORMS)) / len(seeds)
            told(share, f"{norms} norms, seed {seed}")
            found[norms].append(_played(data, norms, seed=seed, rounds=rounds))
    figures = []
    for norms, name in LABELS.items():
        for when in ("before", "after"):
            values = [getattr(one, when) for one in found[norms]]
            for metric, take in (("mean accuracy", np.mean), ("worst decile", _worst_decile)):
                figures.append(
                    figure(
                        f"{name}, {when} a local pass",
                        metric,
                        [100 * float(take(value)) for value in values],
                        seeds=seeds,
                    )
                )
    for metric, take, least in (
        ("mean accuracy", np.mean, 1.0),
        ("worst decile", _worst_decile, 4.0),
    ):
        gains = [
            100 * float(take(own.before) - take(shared.before))
            for own, shared in zip(found["personal"], found["shared"], strict=True)
        ]
        figures.append(
            figure("FedBN over FedAvg", f"points of {metric}", gains, seeds=seeds, must_reach=least)
        )
    courses = tuple(
        Course(name, seen.bytes_up, seen.seconds, seen.runs)
        for norms, name in LABELS.items()
        for seen in [found[norms][0].course]
    )
    return Outcome(tuple(figures), courses, "mean accuracy, each device's own")


def _played(data: Dataset, norms: Norms, *, seed: int, rounds: int) -> Accuracies:
    bundle = _bundle(data, norms, seed)
    random = np.random.default_rng([seed, 3])
    members, tests = [], []
    for _ in range(DEVICES):
        classes = random.choice(data.classes, CLASSES, replace=False)
        train = [_drawn(data, data.train_rows, label, OF_EACH, random) for label in classes]
        test = [_drawn(data, data.test_rows, label, TESTED, random) for label in classes]
        members.append(Member(np.concatenate(train), np.zeros(0, np.int64), 1.0))
        tests.append(np.concatenate(test))
    plans = Plans(PLAN, codec=None, policy=FoldPolicy(), downlink=DownlinkPlan(method="full"))
    fleet = Arena(bundle, data.x, data.y, members, plans)

    def own(vector: Vector) -> list[float]:
        """Return how good a model is to each device, with its own norms where it has such."""
        return [
            fleet.score(fleet.tensors(device, vector), data.x[rows], data.y[rows]).metric
            for device, rows in zip(fleet.devices, tests, strict=True)
        ]

    course = fleet.play_rounds(
        Timing(),
        rounds=rounds,
        chosen=CHOSEN,
        seed=seed,
        every=max(1, rounds // LOOKS),
        measure=lambda vector: float(np.mean(own(vector))),
    )
    newest = fleet.server.newest
    before, after = own(newest.published), []
    for device, rows in zip(fleet.devices, tests, strict=True):
        fleet.train(device, newest, seed=seed)
        after.append(fleet.score(device.tuned, data.x[rows], data.y[rows]).metric)
    return Accuracies(before, after, course)


def _bundle(data: Dataset, norms: Norms, seed: int) -> Bundle:
    options = TaskOptions(net="cnn_norm", seed=seed, norms=norms, momentum=MOMENTUM)
    return make_task("norms", data, options).bundle


def _drawn(data: Dataset, rows: Any, label: int, count: int, random: np.random.Generator) -> Any:
    of_class = rows[data.y[rows] == label]
    return random.choice(of_class, count, replace=False)


def _worst_decile(values: Sequence[float]) -> float:
    """Return the mean of the worst tenth."""
    worst = sorted(values)[: max(1, len(values) // 10)]
    return float(np.mean(worst))
