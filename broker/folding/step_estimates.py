"""What the fleet knows for choosing local steps: running means of what devices saw. Pure.

Wang et al., IEEE JSAC 37(6), 2019, sections V and VI, for devices that come when they can:
exponential means in place of one barrier's values, delta from the updates in place of gradients
that nobody sends, phi from how far the model has come in place of a search by hand.
"""

import math
from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.protocol.learning import StepsPlan

__all__ = [
    "ASKING",
    "CAUTION",
    "Fade",
    "Report",
    "Spread",
    "StepEstimates",
    "steps_plan",
    "with_fold",
]

Floats = npt.NDArray[Any]  # float32 or float64, shape (d,)
DECAY = 0.9  # of the means, for each fold
PLAUSIBLE = 10.0  # times what is known: one odd device cannot say more than that at once
LARGEST = 1e30  # as `StepsPlan` has it
# What a release says before anything is known: devices look, and do as many steps as usual.
ASKING = StepsPlan(rho=0.0, beta=0.0, delta=0.0, phi=0.0, reference=0.0)
# Of the theorem's phi. In its h every drift counts as if all of them pointed one way and grew
# fastest, so that phi itself ends at one step a round whatever a round costs (docs/papers.md). The
# authors' phi of their SVM, 0.025, times |w - w(0)|^2 at the end of its runs is 0.0105.
CAUTION = 0.01


class Report(NamedTuple):
    """What one folded update says of its training."""

    samples: float  # its weight
    rho: float | None = None
    beta: float | None = None
    effective: float = 0.0  # steps, momentum counted; 0: it does not say


class StepEstimates(NamedTuple):
    """The means, durable with the server's state. ``delta`` is kept as its square."""

    rho: float = 0.0
    beta: float = 0.0
    delta2: float = 0.0
    reference: float = 0.0
    heard: int = 0  # folds in rho and beta
    spread: int = 0  # in delta2
    counted: int = 0  # in the reference


class Spread:
    """delta^2 of one fold: how much the devices' gradients differ, one update in memory at a time.

    With g_i = -d_i / (eta tau_i), the mean gradient of a training::

        delta^2 = sum w_i |g_i|^2 / sum w_i - |sum w_i g_i / sum w_i|^2

    By Jensen's inequality its root is at least the paper's mean of |g_i - g|. A lossy payload and
    what it owes from before are in d_i: an estimate.
    """

    def __init__(self) -> None:
        self._total: Floats = np.zeros(0)
        self._squares = self._weight = 0.0
        self._count = 0

    def add(self, delta: Floats, *, weight: float, eta: float, steps: float) -> None:
        """Count an update of ``steps`` effective steps at rate ``eta``; none that moved nothing.

        Fewer than one is nothing that a training could have done.
        """
        scale = eta * max(steps, 1.0) if steps > 0 else 0.0
        if not (weight > 0 and scale > 0):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # `delta2` looks
            gradient = delta.astype(np.float64) / -scale
            self._total = weight * gradient + (self._total if self._count else 0.0)
            self._squares += weight * float(gradient @ gradient)
        self._weight += weight
        self._count += 1

    @property
    def delta2(self) -> float | None:
        """delta^2; None: of fewer than two updates, or not finite."""
        if self._count < 2:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            mean = self._total / self._weight
            found = self._squares / self._weight - float(mean @ mean)
        return max(found, 0.0) if math.isfinite(found) else None


class Fade(NamedTuple):
    """How fast local steps lose their worth: a running mean of two products.

    With E the mean of the gradients where devices ended, tau steps on, and S the mean of those
    where they began next, each device's on one batch, local steps at their end bring <E, S>/<S, S>
    of what steps of everybody together bring there. As 1/(1 + fade tau), which is the mean of
    exponential fading over curvatures that are exponentially distributed::

        fade = mean <S - E, S> / mean (tau <E, S>)
    """

    lost: float = 0.0
    kept: float = 0.0  # times tau
    folds: int = 0

    def seen(self, ended: Floats, began: Floats, tau: float, *, decay: float = DECAY) -> "Fade":
        """Return this after a fold: E and S of shape (d,), or any linear image of both."""
        share = _share(self.folds, decay)
        kept = float(ended @ began)
        lost = float(began @ began) - kept
        if not (math.isfinite(kept) and math.isfinite(lost)):
            return self
        return Fade(
            self.lost + share * (lost - self.lost),
            self.kept + share * (tau * kept - self.kept),
            self.folds + 1,
        )

    @property
    def value(self) -> float | None:
        """fade >= 0, at most `LARGEST`; None before the first fold."""
        if not self.folds:
            return None
        if self.kept <= 0:  # the last steps lead back
            return LARGEST if self.lost > 0 else 0.0
        return min(max(self.lost / self.kept, 0.0), LARGEST)


def with_fold(
    known: StepEstimates,
    reports: Iterable[Report],
    delta2: float | None,
    *,
    decay: float = DECAY,
) -> StepEstimates:
    """Return the estimates after a fold of updates that say ``reports`` and spread by ``delta2``.

    The means of the first folds weigh them alike. What nobody says stays as it is. No device counts
    for more than `PLAUSIBLE` times the usual one, however many samples it says it has.
    """
    heard = [report for report in reports if report.samples > 0]
    heaviest = PLAUSIBLE * median([report.samples for report in heard] or [1])
    heard = [report._replace(samples=min(report.samples, heaviest)) for report in heard]
    rho = _mean([(r.rho, r.samples) for r in heard], known.rho if known.heard else None)
    beta = _mean([(r.beta, r.samples) for r in heard], known.beta if known.heard else None)
    steps: list[tuple[float | None, float]] = [(r.effective or None, r.samples) for r in heard]
    reference = _mean(steps, known.reference if known.counted else None)
    if rho is not None and beta is not None:
        share = _share(known.heard, decay)
        known = known._replace(
            rho=known.rho + share * (rho - known.rho),
            beta=known.beta + share * (beta - known.beta),
            heard=known.heard + 1,
        )
    if delta2 is not None:
        share = _share(known.spread, decay)
        if known.delta2:
            delta2 = min(delta2, PLAUSIBLE * known.delta2)
        known = known._replace(
            delta2=known.delta2 + share * (delta2 - known.delta2),
            spread=known.spread + 1,
        )
    if reference is not None:
        share = _share(known.counted, decay)
        known = known._replace(
            reference=known.reference + share * (reference - known.reference),
            counted=known.counted + 1,
        )
    return known


def _share(before: int, decay: float) -> float:
    return max(1 - decay, 1 / (before + 1))


def _mean(pairs: list[tuple[float | None, float]], known: float | None) -> float | None:
    """Return the weighted mean of what is there; None: nothing is.

    No value counts as more than is plausible, next to what is known and to the others.
    """
    said = [(value, weight) for value, weight in pairs if value is not None]
    if not said:
        return None
    usual = [one for one in (known, median([value for value, _ in said])) if one]
    most = PLAUSIBLE * min(usual) if usual else LARGEST
    total = sum(min(value, most) * weight for value, weight in said)
    return total / sum(weight for _, weight in said)


def steps_plan(
    known: StepEstimates,
    *,
    eta: float,
    moved2: float,
    phi: float | None = None,
    most: int = 100,
) -> StepsPlan | None:
    """Return what a release tells its devices; None: too little is known yet.

    ``moved2``: |p_n - p_1|^2, how far the release is from the first one. The paper's theorem has
    phi = omega (1 - eta beta / 2) with omega = 1/|w(0) - w*|^2, and its experiments a phi that was
    searched by hand. Without ``phi`` it is `CAUTION` times the theorem's, and the way so far stands
    for the whole way.
    """
    if not (known.heard and known.spread and known.counted):
        return None
    if phi is None:
        if not moved2 > 0:
            return None
        phi = CAUTION * max(1 - eta * known.beta / 2, 0.0) / moved2
    numbers = (known.rho, known.beta, math.sqrt(known.delta2), phi, known.reference)
    if not all(0 <= number <= LARGEST for number in numbers) or not phi:
        return None
    rho, beta, delta, phi, reference = numbers
    return StepsPlan(rho=rho, beta=beta, delta=delta, phi=phi, reference=reference, most=most)
