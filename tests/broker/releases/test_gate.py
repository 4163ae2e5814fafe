"""The gate decides by numbers alone."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from server_world import World, good_direction, linear_spec

from broker.folding.aggregator import Fold, Offer
from broker.releases.gate import Candidate, Gate, gated
from models.learning.scoring import Score
from models.task.spec import Role


def score(metric: float) -> Score:
    return Score(metric, 1.0, 100)


@pytest.mark.parametrize(
    ("metric", "published", "tolerance", "candidate", "stops"),
    [
        ("accuracy", 0.9, 0.1, 0.8, False),
        ("accuracy", 0.9, 0.1, 0.79, True),
        ("accuracy", 0.9, 0.1, math.nan, True),
        ("accuracy", 0.9, None, 0.1, False),
        ("accuracy", None, 0.1, 0.1, False),
        ("mse", 1.0, 0.5, 1.5, False),
        ("mse", 1.0, 0.5, 1.6, True),
        ("mse", 1.0, 0.5, 0.1, False),
    ],
)
def test_a_release_may_be_worse_by_the_tolerance_and_no_more(
    metric: str, published: float | None, tolerance: float | None, candidate: float, stops: bool
) -> None:
    gate = Gate(metric, published, tolerance)
    assert gate.stops(score(candidate)) is stops
    assert gate.is_closed is (published is not None and tolerance is not None)
    assert not gate.stops(None), "what is not measured is not judged"


def test_who_does_harm_alone_is_refused_and_the_others_are_folded() -> None:
    offers = [Offer(number, 1, 10) for number in range(4)]

    def candidate(some: list[Offer]) -> Candidate:
        is_bad = any(offer.number == 2 for offer in some)
        return Candidate(Fold(None, tuple(some), ()), None, score(0.1 if is_bad else 0.9))

    found = gated(offers, candidate, Gate("accuracy", 0.9, 0.1))  # type: ignore[arg-type]
    assert [offer.number for offer in found.fold.folded] == [0, 1, 3]
    assert [offer.number for offer, *_ in found.fold.refused] == [2]


def test_an_average_hides_nothing_from_the_gate() -> None:
    """What devices train from is compared with what they trained from."""
    gate = Gate("accuracy", 0.9, 0.05, trained=0.85)
    assert not gate.stops(score(0.9), score(0.81))
    assert gate.too_bad(score(0.9), score(0.1)) == score(0.1)
    assert gate.too_bad(score(0.1), score(0.9)) == score(0.1)
    assert not gate.stops(score(0.86)), "the average is new: p alone is there"


def test_parameters_that_are_ruined_do_not_get_past_the_gate_behind_their_average(
    make_world: Callable[..., World], hold_out: Path
) -> None:
    world = make_world(
        f'[task.aggregation]\nupdates = 1\n[task.evaluation]\ndata = "{hold_out}"\n'
        "max_drop = 0.05\n",
        spec=linear_spec(own=Role.FROZEN),
    )
    device = world.device()
    for number in range(20):
        device.send_delta(good_direction() / 8, base=number + 1)
        world.run()
    assert world.manifest().averaged == 20
    harmful = device.send_delta(-5 * good_direction(), base=21)
    world.run()
    assert device.receipts[harmful].state == "refused"
    assert "alone it lowers the metric to 0.0" in device.receipts[harmful].reason
