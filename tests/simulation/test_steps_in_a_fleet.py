"""Adaptive local steps in a fleet: what devices saw is known to all, and survives bad days."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

import broker.releases.release_maker
from broker.folding.step_estimates import ASKING
from broker.releases.release_maker import Change
from models.protocol.manifest import Manifest
from tools.simulation.fleet_world import prepared
from tools.simulation.scenario.fault_plan import PLANS
from tools.simulation.scenario.fleet_settings import Settings
from tools.substituted import substituted

pytestmark = pytest.mark.slow
AUTO = Settings(devices=3, hours=2, policy=(("learning.steps", "auto"),), plan=PLANS["harsh"])


@contextmanager
def watched(made: list[tuple[Manifest, Change]]) -> Iterator[None]:
    own = broker.releases.release_maker.ReleaseMaker.make

    def make(self: object, change: Change, *rest: object) -> object:
        found = own(self, change, *rest)  # type: ignore[arg-type]
        made.append((found[0].manifest, change))
        return found

    with substituted((broker.releases.release_maker.ReleaseMaker, "make", make)):
        yield


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_estimates_and_the_plan_made_of_them_survive_kills_of_the_server(seed: int) -> None:
    """Each fold goes on from what the release before had, and its promises hold as ever."""
    made: list[tuple[Manifest, Change]] = []
    with watched(made), prepared(seed, AUTO) as world:
        world.live()
        world.heal()
        world.close_books()
        assert world.ledger.violations == []
        assert world.ledger.counts["trainings"] > 5
    assert made[0][0].plan.steps == ASKING, "before anything is known, devices are asked to look"
    heard = [change.scalars.estimates for _, change in made if change.scalars.estimates]
    assert len(heard) > 3
    for before, after in pairwise(heard):
        assert after.counted - before.counted in (0, 1), "nothing was forgotten, nothing twice"
    last = made[-1][0].plan.steps
    assert last is not None
    assert last.phi > 0
    assert last.reference == heard[-1].reference
