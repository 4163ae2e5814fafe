"""Adaptive local steps against every fixed number of them: Wang et al., IEEE JSAC 37(6), 2019.

Their smooth SVM, five nodes, 15 simulated seconds, on Fashion-MNIST in place of MNIST
(`tools.experiments.svm_nodes`). The times of steps and rounds and what ends a run are those of the
authors' published program; the choice of steps is the fleet's own (`local_steps`,
`step_estimates`). One deviation: delta comes from what the nodes send anyway.
"""

import math
from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

import msgspec
import numpy as np

from broker.folding.step_estimates import (
    CAUTION,
    Fade,
    Report,
    Spread,
    StepEstimates,
    steps_plan,
    with_fold,
)
from edge_agent.training.local_steps import Cost, best_steps, steps_by_fade
from tools.experiments.figures import Figure, Outcome, Told, figure
from tools.experiments.svm_nodes import (
    ETA,
    Doubles,
    Node,
    Word,
    World,
    accuracy_of,
    deal,
    loss_of,
    world,
)

__all__ = [
    "CASES",
    "COLUMNS",
    "FIXED",
    "Control",
    "Course",
    "outcome",
    "play",
    "run",
]


CASES = (1, 2, 3, 4)
FIXED = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100)
SECONDS = 15.0
STEP_S, STEP_SPREAD_S = 0.013015156, 0.006946299  # normal, as the authors measured them
ROUND_S, ROUND_SPREAD_S = 0.131604348, 0.053873234
SHORTEST_S = 1e-10
PHI_BY_HAND = 0.025
MOST = 100
MUST_REACH = 1.02
MOONSHOT = 1.00


class Course(NamedTuple):
    """What came of one run."""

    loss: float  # of the best model as the run itself could tell, on all training samples
    accuracy: float  # of the same, on the test samples
    steps: tuple[int, ...]  # tau of each round
    seconds: float  # simulated


class Control(NamedTuple):
    """How the steps of a round are chosen."""

    fixed: int = 0  # 0: as they pay
    phi: float | None = None  # None: found by itself
    caution: float = CAUTION  # where it is; 1: as the theorem has it
    by_fade: bool = False  # without phi: `steps_by_fade`


COLUMNS = {
    "phi by hand": Control(phi=PHI_BY_HAND),
    "phi automatic": Control(),
    "phi of the theorem": Control(caution=1.0),
    "by fade": Control(by_fade=True),
}


class _Choice:
    """The server's side: what it has learned, and the number of steps that follows."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._known, self._fade = StepEstimates(), Fade()
        self._ended: Doubles | None = None  # the mean gradient where the last round ended
        self._ended_after = 0

    def heard(self, sizes: Sequence[int], words: Sequence[Word], begun: Doubles, tau: int) -> None:
        """Learn from a round. As published, estimates are of the last round alone (decay 0)."""
        spread = Spread()
        for size, word in zip(sizes, words, strict=True):
            spread.add(word.w - begun, weight=size, eta=ETA, steps=tau)
        reports = [
            Report(size, word.seen.rho, word.seen.beta, tau)
            for size, word in zip(sizes, words, strict=True)
        ]
        self._known = with_fold(self._known, reports, spread.delta2, decay=0.0)
        if self._ended is not None:
            began = _mean(sizes, [word.gradient for word in words])
            self._fade = self._fade.seen(self._ended, began, self._ended_after)
        self._ended = _mean(sizes, [word.ended for word in words])
        self._ended_after = tau

    def steps(self, tau: int, step_s: float, round_s: float, moved2: float) -> int:
        """Return how many steps the next round shall have, after one of ``tau``."""
        control = self._control
        costs = [Cost("seconds", step_s, round_s, SECONDS)]
        if control.fixed:
            return control.fixed
        if control.by_fade:
            fade = self._fade.value
            return tau if fade is None else steps_by_fade(fade, costs, tau, MOST)
        plan = steps_plan(self._known, eta=ETA, moved2=moved2, phi=control.phi, most=MOST)
        if plan is None:
            return tau
        if control.phi is None:
            plan = msgspec.structs.replace(plan, phi=plan.phi * control.caution / CAUTION)
        return best_steps(plan, costs, ETA, tau)


def _mean(sizes: Sequence[int], vectors: Sequence[Doubles]) -> Doubles:
    total: Doubles = sum((n * v for n, v in zip(sizes, vectors, strict=True)), 0 * vectors[0])
    return total / sum(sizes)


def play(case: int, control: Control, seed: int, data: World | None = None) -> Course:
    """Return one run of `SECONDS` simulated seconds, as the authors' program makes one."""
    train, test = data or world()
    times = np.random.default_rng([seed, case, 1])
    nodes = [
        Node(train, rows, np.random.default_rng([seed, case, 2, n]), estimates=not control.fixed)
        for n, rows in enumerate(deal(case, train.classes))
    ]
    sizes = [node.size for node in nodes]
    choice = _Choice(control)
    w = begun = np.zeros(train.x.shape[1])
    best = _Best()
    tau, spent, taus = control.fixed or 1, 0.0, []
    step_s = round_s = 0.0
    is_evaluation = is_last = False
    while True:
        words = [node.round(w, tau, best.w) for node in nodes]
        best = best.after(w, sizes, words)
        previous, w = w, _mean(sizes, [word.w for word in words])
        if not control.fixed:
            choice.heard(sizes, words, previous, tau)
        chosen = tau
        if step_s:
            moved = w - begun
            chosen = choice.steps(tau, step_s, round_s, float(moved @ moved))
        taus.append(tau)
        if is_last:
            break
        step_s = _time(times, STEP_S, STEP_SPREAD_S, tau)
        round_s = _time(times, ROUND_S, ROUND_SPREAD_S, 1)
        spent += step_s * tau + round_s
        if is_evaluation:
            tau, is_last = 1, True
        elif spent + step_s * (chosen + 1) + 2 * round_s < SECONDS:
            tau = chosen
        else:  # as many as fit, and one round more to know the last model's loss
            left = int((SECONDS - spent - 2 * round_s - step_s) / step_s)
            tau, is_evaluation = max(1, min(left, chosen)), True
    assert best.w is not None
    return Course(loss_of(best.w, train), accuracy_of(best.w, test), tuple(taus), spent)


class _Best(NamedTuple):
    """The model of the least loss, as far as minibatches tell."""

    w: Doubles | None = None
    loss: float = math.inf

    def after(self, w: Doubles, sizes: Sequence[int], words: Sequence[Word]) -> "_Best":
        """Return the better one of this and ``w``, whose losses ``words`` tell on one batch."""
        total = sum(sizes)
        here = sum(n * word.loss for n, word in zip(sizes, words, strict=True)) / total
        there = self.loss
        if self.w is not None:
            there = sum(n * (word.best_loss or 0.0) for n, word in zip(sizes, words, strict=True))
            there /= total
        return _Best(w, here) if here < there else _Best(self.w, there)


def _time(times: np.random.Generator, middle: float, spread: float, count: int) -> float:
    return float(np.maximum(times.normal(middle, spread, count), SHORTEST_S).mean())


class Found(NamedTuple):
    """All runs of one case."""

    fixed: dict[str, list[Course]]
    chosen: dict[str, list[Course]]

    @property
    def best(self) -> tuple[str, float]:
        """The best fixed number of steps and its loss, mean over the seeds."""
        losses = {tau: mean(c.loss for c in courses) for tau, courses in self.fixed.items()}
        tau = min(losses, key=losses.__getitem__)
        return tau, losses[tau]


def run(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
    """Return a figure for each case and column, and for the order of the cases.

    The smaller form has every third of the fixed baselines and cases 1 and 4.
    """
    if is_small:
        return outcome(seeds, told, cases=(1, 4), fixed=FIXED[::3])
    return outcome(seeds, told)


def outcome(
    seeds: Sequence[int],
    told: Told,
    *,
    cases: Sequence[int] = CASES,
    fixed: Sequence[int] = FIXED,
    data: World | None = None,
) -> Outcome:
    """Return the figures of `run`, on ``data`` (None: Fashion-MNIST).

    Raises:
        UsageError: Fashion-MNIST is not installed.
    """
    data = data or world()
    controls = {str(tau): Control(fixed=tau) for tau in fixed} | COLUMNS
    jobs = [(case, seed, name) for case in cases for seed in seeds for name in controls]
    found: dict[int, Found] = {case: Found({}, {}) for case in cases}
    for number, (case, seed, name) in enumerate(jobs):
        told(number / len(jobs), f"case {case}, seed {seed}, {name}")
        course = play(case, controls[name], seed, data)
        into = found[case].chosen if name in COLUMNS else found[case].fixed
        into.setdefault(name, []).append(course)
    figures = [_ratio(case, name, found[case], seeds) for name in COLUMNS for case in cases]
    if set(cases) == set(CASES):
        figures += [_order(name, found, seeds) for name in COLUMNS]
    return Outcome(tuple(figures))


def _ratio(case: int, name: str, found: Found, seeds: Sequence[int]) -> Figure:
    tau, best = found.best
    courses = found.chosen[name]
    is_judged = name != OF_THE_THEOREM
    return figure(
        f"case {case}, {name}",
        "loss over that of the best fixed tau",
        [course.loss / best for course in courses],
        seeds=seeds,
        must_reach=MUST_REACH if is_judged else None,
        moonshot=MOONSHOT if is_judged else None,
        direction="most",
        seconds=mean(course.seconds for course in courses),
        note=(
            f"case {case}, {name}: loss {mean(c.loss for c in courses):.4f}, accuracy "
            f"{mean(c.accuracy for c in courses):.3f}, mean tau {mean(map(_tau, courses)):.1f}; "
            f"best fixed tau {tau}, {best:.4f}"
        ),
    )


def _order(name: str, found: dict[int, Found], seeds: Sequence[int]) -> Figure:
    """Return whether devices that differ more make fewer local steps."""

    def margin(place: int) -> float:
        taus = {case: _tau(one.chosen[name][place]) for case, one in found.items()}
        return min(taus[1] / taus[2], taus[3] / taus[2], taus[2] / taus[4])

    return figure(
        f"order of the cases, {name}",
        "mean tau: least of (1)/(2), (3)/(2), (2)/(4)",
        [margin(place) for place in range(len(seeds))],
        seeds=seeds,
        must_reach=1.0 if name in ("phi by hand", "phi automatic") else None,
        note=NOTES[name],
    )


OF_THE_THEOREM = "phi of the theorem"
NOTES = {
    "phi by hand": "phi by hand: 0.025, the authors'; their curves could not be verified",
    "phi automatic": f"phi automatic: {CAUTION:g} of the theorem's, the same for every problem",
    OF_THE_THEOREM: "phi of the theorem: too large, since its h has all drifts point one way",
    "by fade": "by fade: ours, no phi: as many steps as the last ones are still worth",
}


def _tau(course: Course) -> float:
    return mean(course.steps)
