"""How much one training does: the server's plan, this board's limits, what a step is worth. Pure.

The choice of steps is the control algorithm of Wang, Tuor, Salonidis, Leung, Makaya, He, Chan,
"Adaptive Federated Learning in Resource Constrained Edge Computing Systems", IEEE JSAC 37(6), 2019,
section VI, with costs of several resources. One deviation: theirs has all nodes take one number of
steps, here each device takes its own, and `effective_steps` makes what they learn comparable.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from edge_agent.spending.allowance import RESOURCES, DailyLimits, Spent
from edge_agent.updates.outbox_facts import OutboxFacts
from models.protocol.learning import StepsPlan
from models.protocol.manifest import TrainingPlan

__all__ = [
    "Cost",
    "Smoothness",
    "all_by_itself",
    "best_steps",
    "chosen_steps",
    "costs_of",
    "effective_steps",
    "scarcest",
    "smoothness",
    "steps_by_fade",
    "within_budget",
]

MOST_EPOCHS = 1000.0  # of a plan; its steps are what counts
HORIZON_DAYS = 7  # whose budgets a choice of steps looks at
SHARE = 0.5  # of the allowed time: the estimate is of another day's load and temperature
GROWTH = 10  # gamma: at most so many times the steps of the training before
FREE_STEPS = 1000  # what a budget that nothing limits is good for, in the time of steps alone
SMALLEST_BETA = 1e-5
SMALLEST_DISTANCE = 1e-10  # below, a quotient by it says nothing


def all_by_itself(plan: TrainingPlan, *, steps: int) -> TrainingPlan:
    """Return ``plan`` for ``steps`` of a model that has only this device's part in it.

    Whatever epochs they are; no proximal term pulls it back to where it stood.
    """
    steps = max(1, min(steps, plan.max_steps))
    return msgspec.structs.replace(plan, epochs=1000.0, max_steps=steps, mu=0.0)


def within_budget(
    plan: TrainingPlan, *, samples: int, max_batch: int, max_seconds: float, ms_per_step: float
) -> TrainingPlan:
    """Return ``plan`` with its batch and steps cut to what this board may spend.

    ``ms_per_step`` was measured in the last training with a batch of the plan's size, 0 if there
    was none. The number of samples seen stays the plan's where only the batch shrinks.
    """
    batch = max(1, min(plan.batch, max_batch, samples))
    steps = max(1, math.ceil(plan.epochs * math.ceil(samples / batch)))
    steps = min(steps, plan.max_steps)
    affordable = SHARE * max_seconds * 1000
    if steps * ms_per_step > affordable:
        steps = max(1, int(affordable / ms_per_step))
    return msgspec.structs.replace(plan, batch=batch, max_steps=steps)


class Cost(NamedTuple):
    """What training costs of one resource, in its own unit: seconds, bytes, joules."""

    resource: str  # for people
    step: float  # c: of each local step
    round: float  # b: of each training beside its steps
    budget: float = math.inf  # R: what may be spent; infinite: nothing limits it


def best_steps(plan: StepsPlan, costs: Sequence[Cost], eta: float, previous: int) -> int:
    """Return how many local steps, at least 1, let the loss end lowest within all budgets.

    It minimizes G(tau), their bound on how far the loss ends from the least one::

        h(tau) = delta/beta ((eta beta + 1)^tau - 1) - eta delta tau
        T(tau) = min_m (R_m - c_m - b_m) tau / (c_m tau + b_m)
        G(tau) = 1/(2 eta phi T) + sqrt(1/(4 eta^2 phi^2 T^2) + rho h/(eta phi tau)) + rho h

    ``eta`` is the learning rate, ``previous`` the steps of the training before (0: there was none),
    ten times which are the most. Where no budget is limited, the first resource has what
    `FREE_STEPS` steps cost of it, so that the price of a round still counts. Where a budget does
    not reach for one round of one step, one step it is.
    """
    limited = _limited(costs)
    most = min(GROWTH * previous, plan.most) if previous else plan.most
    bounds = ((_bound(plan, limited, eta, tau), tau) for tau in range(1, most + 1))
    bound, tau = min(bounds, default=(math.inf, 1))
    return tau if bound < math.inf else 1


def chosen_steps(
    training: TrainingPlan, steps: StepsPlan | None, costs: Sequence[Cost], *, previous: int
) -> TrainingPlan:
    """Return ``training`` with the steps that are worth it, however many epochs those are.

    At most its ``max_steps``. As it is where nobody asks for a choice, nothing is known yet
    (``steps.phi`` 0), or this device never trained (``previous`` 0).
    """
    if steps is None or not steps.phi or not previous:
        return training
    tau = best_steps(steps, costs, training.learning_rate, previous)
    return msgspec.structs.replace(
        training, epochs=MOST_EPOCHS, max_steps=min(tau, training.max_steps)
    )


def steps_by_fade(fade: float, costs: Sequence[Cost], previous: int, most: int = 100) -> int:
    """Return how many local steps, at least 1, buy the most progress for all budgets.

    Ours, and in experiments so far: no phi, no bound. Of what a step of everybody together would
    bring, the s-th local step brings 1/(1 + ``fade`` s) (`broker.folding.step_estimates.Fade`), so
    tau of them bring L(tau) = ln(1 + fade tau)/fade, and the budgets buy min_m R_m L/(c_m tau +
    b_m). ``fade`` 0: local steps are as good as any. ``costs``, ``previous``: see `best_steps`.
    """
    limited = _limited(costs)

    def progress(tau: int) -> float:
        worth = math.log1p(fade * tau) / fade if fade > 0 else float(tau)
        each = [(cost.step * tau + cost.round) / cost.budget for cost in limited if cost.budget > 0]
        return worth / (max(each, default=0.0) or 1.0)

    most = min(GROWTH * previous, most) if previous else most
    return max(range(1, most + 1), key=progress)


def scarcest(costs: Sequence[Cost], steps: int) -> str:
    """Return the resource that ends training first at so many steps each; "": none is limited."""
    limited = [cost for cost in costs if math.isfinite(cost.budget)]
    if not limited:
        return ""
    return min(limited, key=lambda cost: _total_steps(cost, steps)).resource


def _limited(costs: Sequence[Cost]) -> list[Cost]:
    """Return the costs that a budget limits; if there are none, the first with `_free_budget`."""
    limited = [cost for cost in costs if math.isfinite(cost.budget)]
    return limited or [cost._replace(budget=_free_budget(cost)) for cost in costs[:1]]


def _free_budget(cost: Cost) -> float:
    return (FREE_STEPS + 1) * cost.step + cost.round


def _total_steps(cost: Cost, tau: int) -> float:
    """Return T of one resource: how many local steps its budget buys, ``tau`` in each round."""
    each = cost.step * tau + cost.round
    return (cost.budget - cost.step - cost.round) * tau / each if each > 0 else math.inf


def _bound(plan: StepsPlan, costs: Sequence[Cost], eta: float, tau: int) -> float:
    """Return G(tau); infinite where nothing can be said."""
    total = min((_total_steps(cost, tau) for cost in costs), default=math.inf)
    if total <= 0 or eta <= 0 or plan.phi <= 0:
        return math.inf
    beta = max(plan.beta, SMALLEST_BETA)
    try:
        growth = math.expm1(tau * math.log1p(eta * beta))
    except OverflowError:
        return math.inf
    drift = plan.rho * max(0.0, plan.delta / beta * growth - eta * plan.delta * tau)
    slow = 1 / (2 * eta * plan.phi * total)
    return slow + math.sqrt(slow * slow + drift / (eta * plan.phi * tau)) + drift


def effective_steps(tau: int, mu: float) -> float:
    """Return how many plain gradient steps ``tau`` steps with momentum ``mu`` amount to.

    Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
    Federated Optimization" (FedNova), arXiv:2007.07481, section 4: the sum of the weights that the
    gradients get. ``mu`` in [0, 1); 0 for plain steps, and for Adam, whose steps do not pile up.
    """
    if not 0 <= mu < 1:
        raise ValueError(f"momentum {mu}")
    return (tau - mu * (1 - mu**tau) / (1 - mu)) / (1 - mu)


def costs_of(facts: OutboxFacts, limits: DailyLimits) -> list[Cost]:
    """Return what training costs here, as measured last, against the budgets of `HORIZON_DAYS`."""
    costs = []
    for resource in RESOURCES:
        step = Spent(seconds=facts.ms_per_step / 1000).of(resource, limits)
        round_ = Spent(facts.round_seconds, facts.round_bytes).of(resource, limits)
        daily = limits.of(resource)
        budget = HORIZON_DAYS * daily if daily else math.inf
        costs.append(Cost(resource, step, round_, budget))
    return costs


class Smoothness(NamedTuple):
    """What one training saw of rho and beta; None: it moved too little to tell."""

    rho: float | None
    beta: float | None


def smoothness(loss_change: float, gradient_change: float, distance: float) -> Smoothness:
    """Return rho_i = |F(w_i) - F(w)| / |w_i - w| and beta_i = |g(w_i) - g(w)| / |w_i - w|.

    ``gradient_change`` and ``distance`` are lengths. None where they are not finite.
    """
    if not SMALLEST_DISTANCE < distance < math.inf:
        return Smoothness(None, None)
    rho, beta = abs(loss_change) / distance, gradient_change / distance
    return Smoothness(
        rho if math.isfinite(rho) else None,
        max(beta, SMALLEST_BETA) if math.isfinite(beta) else None,
    )
