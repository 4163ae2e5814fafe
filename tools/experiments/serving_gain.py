"""``edgefold reproduce serve``: devices that run what they tuned, where that is better.

Twenty devices of Fashion-MNIST learn together, each on 300 samples, by synchronous averaging
through the product's training graph; what is released is the average of the server's model
(`models.codec.average`). After each training a device compares the release with what came of the
training on the half of its hold-out that decides, and the other half, which nothing was chosen by,
tells how good what it runs is (`edge_agent.personal.model_choice`); over the last ten rounds.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_agent.personal.model_choice import Serves, comparison, decides, serves_after
from models.codec.average import averaged
from models.learning.measurement import evaluate_each
from models.learning.onnx_session import open_session
from models.learning.scoring import Doubles
from models.learning.training_loop import Stepper, train_by, training_rows
from models.protocol.manifest import TrainingPlan
from models.task.bundle import Bundle
from models.task.params import Vector, unflatten
from tools.author.bundle.create_bundle import make_task
from tools.author.bundle.export_model import read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.labeled_data import Dataset, Rows
from tools.experiments.figures import Figure, Outcome, Told, figure

__all__ = ["run"]

DEVICES = 20
ROUNDS = 80
MEASURED = 10  # of these, the last ones
TRAIN, HOLD_OUT = 300, 75  # samples of a device: a fifth is held out, as an agent does
PLAN = TrainingPlan(open=True, epochs=1, batch=32, learning_rate=0.02)
DECAY = 0.9
WORLDS = ("two classes a device", "Dirichlet(0.3)", "all alike")


class _Device(NamedTuple):
    train: Rows
    hold_out: Rows


class _Course(NamedTuple):
    """Accuracies on the reporting half, one for each device, mean over the measured rounds."""

    released: list[float]
    served: list[float]
    tuned: list[float]
    share_tuned: float  # of devices and rounds in which tuned ran


def run(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """Return the figures of all worlds, over ``seeds``.

    Raises:
        UsageError: Fashion-MNIST is not installed.
    """
    data = load_dataset("fashion-mnist")
    bundle = make_task("serving", data, TaskOptions(net="mlp", scale=1 / 255)).bundle
    found: dict[str, list[_Course]] = {}
    done, count = 0, len(WORLDS) * len(seeds)
    for world in WORLDS:
        for seed in seeds:
            told(done / count, f"{world}, seed {seed}")
            rounds, measured = (6, 2) if is_small else (ROUNDS, MEASURED)
            found.setdefault(world, []).append(_play(data, bundle, world, seed, rounds, measured))
            done += 1
    return Outcome((*_figures(found, seeds), _never_worse(found, seeds)))


def _figures(found: dict[str, list[_Course]], seeds: Sequence[int]) -> list[Figure]:
    figures = []
    for world, courses in found.items():
        two = world == WORLDS[0]
        gains = [_mean(one.served) - _mean(one.released) for one in courses]
        worst = min(s - r for one in courses for s, r in zip(one.served, one.released, strict=True))
        figures += [
            figure(f"serve {world}", what, [_mean(each) for each in by_seed], seeds=seeds)
            for what, by_seed in (
                ("accuracy, the release alone", [one.released for one in courses]),
                ("accuracy, what was tuned alone", [one.tuned for one in courses]),
                ("accuracy, serve = auto", [one.served for one in courses]),
            )
        ]
        figures.append(
            figure(
                f"serve {world}",
                "gain over the release",
                gains,
                seeds=seeds,
                must_reach=0.10 if two else -0.01,
                note=f"{world}: tuned ran in {_mean([one.share_tuned for one in courses]):.0%} of "
                f"device rounds; worst single device {worst:+.3f} ({HOLD_OUT // 2} samples report)",
            )
        )
    return figures


def _never_worse(found: dict[str, list[_Course]], seeds: Sequence[int]) -> Figure:
    worst = [
        min(_mean(course.served) - _mean(course.released) for course in of_a_seed)
        for of_a_seed in zip(*found.values(), strict=True)
    ]
    return figure(
        "serve in the worst world",
        "gain over the release",
        worst,
        seeds=seeds,
        must_reach=-0.01,
        note=f"worst of all worlds and seeds: {min(worst):+.4f}, mean of {DEVICES} devices",
    )


def _play(
    data: Dataset, bundle: Bundle, world: str, seed: int, rounds: int, measured: int
) -> _Course:
    rng = np.random.default_rng([seed, WORLDS.index(world)])
    devices = [_Device(rows[HOLD_OUT:], rows[:HOLD_OUT]) for rows in _dealt(data, world, rng)]
    spec = bundle.spec
    session = open_session(bundle.train)
    rows = [training_rows(spec, data.x[d.train], data.y[d.train], PLAN) for d in devices]
    stepper = Stepper(session, spec, read_tensors(bundle), rows[0].batch, PLAN)
    published = stepper.flat()
    average: Vector | None = None
    runs: list[Serves] = ["released"] * len(devices)
    sums = np.zeros((3, len(devices)))
    tuned_ran = 0
    for number in range(1, rounds + 1):
        average = averaged(average, published, number, decay=DECAY)
        total = np.zeros(published.size)
        for index, device in enumerate(devices):
            stepper.reset(published)
            train_by(stepper, rows[index], PLAN, seed=int(rng.integers(1 << 32)))
            tuned = stepper.flat()
            total += tuned
            if number <= rounds - measured:
                continue
            own, theirs = (_hits(data, bundle, v, device.hold_out) for v in (tuned, average))
            chosen = np.array([decides(n) for n in range(len(device.hold_out))])
            gains = (own - theirs)[chosen].tolist()
            runs[index] = serves_after(comparison(gains), runs[index])
            served = own if runs[index] == "tuned" else theirs
            tuned_ran += runs[index] == "tuned"
            sums[:, index] += [each[~chosen].mean() for each in (theirs, served, own)]
        published = (total / len(devices)).astype(np.float32)
    released, served_, own_ = (sums / measured).tolist()
    return _Course(released, served_, own_, tuned_ran / (measured * len(devices)))


def _hits(data: Dataset, bundle: Bundle, flat: Vector, rows: Rows) -> Doubles:
    tensors = unflatten(flat, bundle.spec.trainable)
    return evaluate_each(bundle.infer, bundle.spec, tensors, data.x[rows], data.y[rows], batch=128)


def _dealt(data: Dataset, world: str, rng: np.random.Generator) -> list[Rows]:
    """Return the rows of each device, in any order; no row twice."""
    size = TRAIN + HOLD_OUT
    left = {
        label: rng.permutation(np.flatnonzero(~data.test & (data.y == label))).tolist()
        for label in range(10)
    }
    dealt = []
    for number in range(DEVICES):
        if world == WORLDS[0]:
            first = number % 10
            second = (first + 1 + int(rng.integers(9))) % 10
            shares = np.zeros(10)
            shares[[first, second]] = 0.5
        elif world == WORLDS[1]:
            shares = rng.dirichlet(np.full(10, 0.3))
        else:
            shares = np.full(10, 0.1)
        counts = np.floor(shares * size).astype(int)
        counts[int(np.argmax(shares))] += size - counts.sum()
        rows = [left[label].pop() for label in range(10) for _ in range(counts[label])]
        dealt.append(rng.permutation(np.array(rows)))
    return dealt


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)
