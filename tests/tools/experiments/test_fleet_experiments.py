"""The experiments with whole fleets, shortened: they run, and tell what they say they do."""

import pytest

from tools.experiments import async_fleet, local_norms
from tools.experiments.figures import Outcome

pytestmark = pytest.mark.slow


def figures_of(outcome: Outcome) -> dict[tuple[str, str], float]:
    return {(figure.name, figure.metric): figure.ours for figure in outcome.figures}


def test_an_asynchronous_fleet_sends_a_hundredth_and_is_where_a_round_is_sooner() -> None:
    said: list[str] = []
    outcome = async_fleet.run((0,), True, lambda share, words: said.append(words))
    found = figures_of(outcome)
    assert 0 < found["asynchronous, 800 bytes", "bit/parameter, headers"] < 0.2
    assert {"accuracy", "points under synchronous", "points that the average gives"} <= {
        metric for _, metric in found
    }
    assert [course.label for course in outcome.courses] == [
        "synchronous FedAvg, float32",
        "asynchronous, 800 bytes",
    ]
    synchronous, asynchronous = outcome.courses
    per_update = [course.bytes_sent[0] for course in outcome.courses]
    assert per_update[0] > 50 * per_update[1]
    assert asynchronous.seconds[-1] / 100 < synchronous.seconds[-1] / 50, "nobody waits for others"
    assert len(said) == 2


def test_norms_of_ones_own_are_not_sent_and_every_device_is_measured() -> None:
    outcome = local_norms.run((0,), True, lambda share, words: None)
    found = figures_of(outcome)
    for name in ("FedAvg, frozen norms", "FedAvg", "FedBN"):
        before = found[f"{name}, before a local pass", "mean accuracy"]
        after = found[f"{name}, after a local pass", "mean accuracy"]
        assert 0 <= found[f"{name}, before a local pass", "worst decile"] <= before <= 100
        assert after > before, "one pass on two classes teaches a device much"
    sent = {course.label: course.bytes_sent[-1] for course in outcome.courses}
    assert sent["FedBN"] < sent["FedAvg"]
