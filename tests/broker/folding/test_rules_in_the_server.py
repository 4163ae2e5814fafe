"""Rules that want more of the server than deltas, through a whole server."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
from server_world import World, good_direction

MakeWorld = Callable[..., World]
MIXED = "[task.aggregation]\nupdates = 1\nrule = 'mix'\nlearning_rate = 0.5\n"


def test_mix_goes_toward_the_model_of_the_device(make_world: MakeWorld) -> None:
    world = make_world(MIXED + "staleness = 'polynomial'\n")
    world.run()
    d = good_direction()
    first = world.parameters()
    world.device().send_delta(d)
    world.run()
    second = world.parameters()
    np.testing.assert_allclose(second, first + d / 2, atol=1e-5)
    world.device().send_delta(d, base=1)  # (1 + 1) ** -0.5 of a half
    world.run()
    share = 0.5 / np.sqrt(2)
    expected = (1 - share) * second + share * (first + d)
    np.testing.assert_allclose(world.parameters(), expected, atol=1e-5)


def test_mix_takes_what_waits_after_an_outage_into_one_release(make_world: MakeWorld) -> None:
    world = make_world(MIXED)
    world.run()
    first, d = world.parameters(), good_direction()
    for name in ("dev-1", "dev-2", "dev-3"):
        world.device(name).send_delta(d)
    world.run()
    assert world.manifest().release == 2
    np.testing.assert_allclose(world.parameters(), first + (1 - 0.5**3) * d, atol=1e-5)


def test_mix_after_a_restart_has_the_parameters_of_old_releases(make_world: MakeWorld) -> None:
    world = make_world(MIXED + "staleness = 'constant'\n")
    world.run()
    first, d = world.parameters(), good_direction()
    for _ in range(3):
        world.device().send_delta(d)
        world.run()
    before = world.parameters()
    world.restart()
    late = world.device().send_delta(d, base=1)
    world.run()
    assert world.device().state(late) == "folded"
    np.testing.assert_allclose(world.parameters(), (before + first + d) / 2, atol=1e-5)


@pytest.mark.parametrize(("count", "is_said"), [(2, True), (3, False)])
def test_the_log_says_when_there_are_too_few_for_multi_krum(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, count: int, is_said: bool
) -> None:
    caplog.set_level(logging.INFO)
    world = make_world(f"[task.aggregation]\nupdates = {count}\nrule = 'multi_krum'\n")
    for number in range(count):
        world.device(f"dev-{number}").send_delta(good_direction())
    world.run()
    assert world.manifest().release == 2
    said = "too few updates for the rule"
    found = [line for line in caplog.messages if said in line]
    assert bool(found) == is_said
    assert all("rule=multi_krum folded_by=clipped_mean" in line for line in found)
