"""A table that others published: Fashion-MNIST on 10 clients that differ, as Flower's niid_bench.

After Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos", arXiv:2102.02079, as that
baseline sets it up: the LeNet-like net, all 60,000 images, 10 clients in each of 50 rounds, 10
local epochs, batch 64, SGD 0.01 with momentum 0.9 and weight decay 1e-5, the mean by samples; the
accuracy of the best round on the 10,000 test images (so the test set chooses the round, as
published; the last rounds' mean stands beside it). Once as published, dense and synchronous, and
once as the product does it: coded, asynchronous, 30 % of the trainings followed by a long pause.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from broker.config import DownlinkPlan, FoldPolicy
from models.learning.measurement import evaluate
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan, TrainingPlan
from models.task.bundle import Bundle
from models.task.params import Vector, unflatten
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.labeled_data import Dataset, Rows
from tools.experiments import arena
from tools.experiments.arena import Arena, Member, Timing
from tools.experiments.arena_server import Plans
from tools.experiments.figures import Course, Figure, Outcome, Told, figure

__all__ = ["CELLS", "Scale", "run_cells", "run_full", "run_others", "run_short"]

CLIENTS = 10
LEAST = 10  # samples of a client; with fewer, all is dealt again
LAST = 5  # rounds that are averaged
UPDATES_A_FOLD = 5  # of the product: half of the clients
BYTES, FEW_BYTES = 1500, 350  # of an update, at most
WEIGHTS_AS_THEY_ARE = 1e6  # FedAvg bounds no client's weight
TIMING = Timing(straggler=0.0)  # boards of one kind, told when to train: no speed of their own


class Scale(NamedTuple):
    """How long the experiment is."""

    rounds: int
    epochs: int
    samples: int | None  # to train on, of all clients together; None: all
    tested: int | None


FULL = Scale(50, 10, None, None)
SHORT = Scale(50, 2, 15_000, None)
SMALL = Scale(3, 1, 2_000, 1_000)


class Cell(NamedTuple):
    """How the classes are dealt, and what was published of it."""

    label: str
    deal: Callable[[Dataset, Rows, np.random.Generator], list[Rows]]
    published: float  # of FedAvg, %
    must_reach: float | None = None


class Arm(NamedTuple):
    """One way to learn."""

    label: str
    update_bytes: int | None = None  # None: dense, and synchronous

    def plans(self, scale: Scale) -> Plans:
        training = TrainingPlan(open=True, epochs=scale.epochs, batch=64, learning_rate=0.01)
        if self.update_bytes is None:
            policy = FoldPolicy(updates=CLIENTS, learning_rate=1.0, max_weight=WEIGHTS_AS_THEY_ARE)
            whole = DownlinkPlan(method="full")
            return Plans(training, codec=None, policy=policy, downlink=whole)
        return Plans(
            training,
            learning=LearningPlan(average=0.9),
            codec=CodecPlan(bytes=self.update_bytes),
            policy=FoldPolicy(updates=UPDATES_A_FOLD),
        )


ARMS = (
    Arm("as published"),
    Arm(f"product, {BYTES} bytes", BYTES),
    Arm(f"product, {FEW_BYTES} bytes", FEW_BYTES),
)


def alike(data: Dataset, rows: Rows, random: np.random.Generator) -> list[Rows]:
    """Deal the rows by chance, equally many to each client."""
    return np.array_split(random.permutation(rows), CLIENTS)


def by_dirichlet(
    data: Dataset, rows: Rows, random: np.random.Generator, *, alpha: float = 0.5
) -> list[Rows]:
    """Deal each class by Dirichlet proportions; who has a tenth of all gets no more.

    As niid_bench does: the proportion of such a client is 0 for the classes that are left, and all
    is dealt again until each client has some.
    """
    while True:
        shares: list[list[Rows]] = [[] for _ in range(CLIENTS)]
        for label in range(data.classes):
            held = np.array([sum(map(len, share)) for share in shares])
            proportions = random.dirichlet(np.full(CLIENTS, alpha))
            proportions = np.where(held < len(rows) / CLIENTS, proportions, 0.0)
            of_class = random.permutation(rows[data.y[rows] == label])
            ends = np.cumsum(proportions / proportions.sum())[:-1] * len(of_class)
            for share, part in zip(shares, np.split(of_class, ends.astype(int)), strict=True):
                share.append(part)
        dealt = [np.concatenate(share) for share in shares]
        if min(map(len, dealt)) >= LEAST:
            return dealt


def by_labels(data: Dataset, rows: Rows, random: np.random.Generator, *, count: int) -> list[Rows]:
    """Give client i the class i and others by chance, ``count`` in all; holders share equally."""
    classes = data.classes
    holders: list[list[int]] = [[] for _ in range(classes)]
    for client in range(CLIENTS):
        first = client % classes
        others = np.setdiff1d(np.arange(classes), [first])
        for label in (first, *random.choice(others, count - 1, replace=False)):
            holders[int(label)].append(client)
    shares: list[list[Rows]] = [[] for _ in range(CLIENTS)]
    for label, clients in enumerate(holders):
        of_class = random.permutation(rows[data.y[rows] == label])
        for client, part in zip(clients, np.array_split(of_class, len(clients)), strict=True):
            shares[client].append(part)
    return [np.concatenate(share) for share in shares]


CELLS = {
    "iid": Cell("IID", alike, 89.23),
    "dirichlet": Cell("Dirichlet(0.5)", by_dirichlet, 88.09, must_reach=87.6),
    "one": Cell("1 label a client", partial(by_labels, count=1), 28.39),
    "two": Cell("2 labels a client", partial(by_labels, count=2), 78.10),
    "three": Cell("3 labels a client", partial(by_labels, count=3), 82.43),
}


def run_short(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """Dirichlet(0.5) on a quarter of the images with 2 local epochs: ten minutes a seed."""
    return run_cells(("dirichlet",), SHORT, seeds, is_small, told)


def run_full(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """Dirichlet(0.5) as long as published: hours a seed."""
    return run_cells(("dirichlet",), FULL, seeds, is_small, told)


def run_others(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """The other four cells as long as published."""
    return run_cells(("iid", "one", "two", "three"), FULL, seeds, is_small, told)


def run_cells(
    names: Sequence[str], scale: Scale, seeds: Sequence[int], is_small: bool, told: Told
) -> Outcome:
    """Return the figures of the cells ``names`` in all arms; ``is_small``: to see that it runs."""
    scale = SMALL if is_small else scale
    data = load_dataset("fashion-mnist")
    figures: list[Figure] = []
    courses: list[Course] = []
    plays = len(names) * len(seeds) * len(ARMS)
    done = 0
    for name in names:
        found: list[list[arena.Course]] = [[] for _ in ARMS]
        for seed in seeds:
            for arm, own in zip(ARMS, found, strict=True):
                words = f"{CELLS[name].label}, seed {seed}: {arm.label}"

                def on_look(looks: int, words: str = words, done: int = done) -> None:
                    told((done + looks / scale.rounds) / plays, f"{words}, round {looks}")

                own.append(_played(data, CELLS[name], arm, scale, seed, on_look))
                done += 1
        figures += _figures(CELLS[name], found, seeds, is_full=scale == FULL)
        courses += [
            Course(f"{CELLS[name].label}, {arm.label}", c.bytes_up, c.seconds, c.runs)
            for arm, (c, *_) in zip(ARMS, found, strict=True)
        ]
    return Outcome(tuple(figures), tuple(courses))


def _played(
    data: Dataset, cell: Cell, arm: Arm, scale: Scale, seed: int, on_look: Callable[[int], None]
) -> arena.Course:
    random = np.random.default_rng([seed, 1])
    rows = random.permutation(data.train_rows)[: scale.samples]
    members = [Member(share, np.zeros(0, np.int64), 1.0) for share in cell.deal(data, rows, random)]
    bundle = create_task("niid", data, TaskOptions(net="lenet", weight_decay=1e-5, seed=seed))
    fleet = Arena(bundle, data.x, data.y, members, arm.plans(scale))
    tested = data.test_rows[: scale.tested]
    measure = partial(_accuracy, bundle, data.x[tested], data.y[tested])
    if arm.update_bytes is None:
        return fleet.play_rounds(
            TIMING,
            rounds=scale.rounds,
            chosen=CLIENTS,
            seed=seed,
            every=1,
            measure=measure,
            on_look=on_look,
        )
    return fleet.play(
        TIMING,
        updates=CLIENTS * scale.rounds,
        seed=seed,
        every=CLIENTS,
        measure=measure,
        on_look=lambda updates: on_look(updates // CLIENTS),
    )


def _accuracy(bundle: Bundle, x: np.ndarray, y: np.ndarray, vector: Vector) -> float:
    tensors = unflatten(vector, bundle.spec.shared)
    return evaluate(bundle.infer, bundle.spec, tensors, x, y, batch=500).metric


def _figures(
    cell: Cell,
    found: Sequence[Sequence[arena.Course]],
    seeds: Sequence[int],
    *,
    is_full: bool,
) -> list[Figure]:
    """Return the figures of one cell. What is published is compared only at its own length."""
    figures = []
    dense = found[0]
    note = "" if is_full else "shortened: nothing was published at this length"
    for arm, own in zip(ARMS, found, strict=True):
        is_dense, is_few = arm.update_bytes is None, arm.update_bytes == FEW_BYTES
        name = f"{cell.label}, {arm.label}"
        best = [100 * max(course.runs) for course in own]
        add = partial(figure, name, seeds=seeds, note=note)
        figures.append(
            add(
                "best accuracy",
                best,
                published=cell.published if is_full and is_dense else None,
                must_reach=cell.must_reach if is_full and is_dense else None,
                moonshot=88.4 if is_full and is_few and cell.must_reach else None,
                bytes_sent=float(np.mean([c.bytes_up[-1] / c.updates[-1] for c in own])),
            )
        )
        last = [100 * course.last(LAST) for course in own]
        figures.append(add(f"accuracy, last {LAST} rounds", last))
        if is_dense:
            continue
        lost = [100 * (max(a.runs) - max(b.runs)) for a, b in zip(dense, own, strict=True)]
        must = 0.5 if cell.must_reach and not is_few else None
        figures.append(add("points under dense", lost, must_reach=must, direction="most"))
        for what, read in (("up", _up), ("both ways", _both)):
            share = [100 * read(b) / read(a) for a, b in zip(dense, own, strict=True)]
            figures.append(
                add(
                    f"% of the dense bytes, {what}",
                    share,
                    must_reach=2.0 if not is_few else None,
                    moonshot=0.3 if is_few and what == "up" else None,
                    direction="most",
                )
            )
    return figures


def _up(course: arena.Course) -> int:
    return course.bytes_up[-1]


def _both(course: arena.Course) -> int:
    return course.bytes_up[-1] + course.bytes_down[-1]
