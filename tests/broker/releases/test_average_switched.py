"""The average is switched on, off and to another decay between two runs of a server."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from server_world import World, good_direction

from models.protocol.manifest import Manifest

MakeWorld = Callable[..., World]


def with_average(world: World, decay: float) -> Manifest:
    """Return the newest release after a restart with ``decay`` and one fold."""
    task = world.config.task[0]
    world.restart(learning=msgspec.structs.replace(task.learning, average=decay))
    world.run()
    world.device().send_delta(good_direction() * 0.1, base=world.manifest().release)
    world.run(61.0)
    return world.manifest()


@pytest.mark.parametrize("feedback", ["residual", "memory"])
def test_it_goes_and_comes_and_is_about_what_is_published(
    make_world: MakeWorld, feedback: str
) -> None:
    world = make_world(
        f'[task.aggregation]\nupdates = 1\n[task.learning]\naverage = 0.9\nfeedback = "{feedback}"'
    )
    first = with_average(world, 0.9)
    assert (first.averaged, first.runs) == (1, "average")
    off = with_average(world, 0.0)
    assert (off.averaged, off.runs, "average" in off.artifacts) == (0, "parameters", False)
    on = with_average(world, 0.8)
    assert (on.averaged, on.plan.average) == (1, 0.8)
    assert on.artifacts["average"] == on.artifacts["parameters"], "it begins at what is published"
    other = with_average(world, 0.5)
    assert (other.averaged, other.plan.average) == (2, 0.5)
    assert other.artifacts["average"] != other.artifacts["parameters"]


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "sgd"])
def test_another_optimizer_begins_with_moments_of_zero(make_world: MakeWorld, name: str) -> None:
    world = make_world('[task.aggregation]\nupdates = 1\noptimizer = "momentum"\n')
    world.device().send_delta(good_direction() * 0.1, base=1)
    world.run(61.0)
    policy = world.config.task[0].aggregation
    world.restart(aggregation=msgspec.structs.replace(policy, optimizer=name))
    world.run()
    held = world.server.lanes["leaves"].line.vectors.held
    assert (held.velocity is None) == (name != "momentum")
    assert held.second is None
    world.device().send_delta(good_direction() * 0.1, base=world.manifest().release)
    world.run(61.0)
    after = world.server.lanes["leaves"].line.vectors.held
    assert np.isfinite(after.exact).all()
    assert (after.second is not None) == (name in ("adam", "yogi"))
