"""What `status` says of how a task learns."""

from collections.abc import Callable

import msgspec
import pytest
from server_world import World, good_direction

from broker.reports.learning_report import learning_line

MakeWorld = Callable[..., World]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ('steps = "auto"\naverage = 0', "no average, optimizer sgd, steps auto (mean 5, 5-5)"),
        ("steps = 40\naverage = 0", "no average, optimizer sgd, steps 40"),
        ('steps = "epochs"\naverage = 0', ""),
        ('steps = "auto"', "average 0.9, optimizer sgd, steps auto (mean 5, 5-5)"),
    ],
)
def test_local_steps_are_told_also_where_nothing_else_is_unusual(
    make_world: MakeWorld, settings: str, line: str
) -> None:
    world = make_world(f"[task.aggregation]\nupdates = 1\n[task.learning]\n{settings}\n")
    (task,) = world.report().tasks
    assert "mean" not in learning_line(task.learning, is_share=True), "nobody has trained yet"
    world.device().send_delta(good_direction())
    world.run()
    (task,) = world.report().tasks
    assert learning_line(task.learning, is_share=True) == (line and f"learning: residual, {line}")


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.018, "a 1.8 points over p"), (-0.05, "a 5.0 points under p"), (0.0, "a 0.0 points over p")],
)
def test_an_average_is_told_on_the_side_where_it_is(
    make_world: MakeWorld, gain: float, words: str
) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    (task,) = world.report().tasks
    line = learning_line(msgspec.structs.replace(task.learning, gain=gain), is_share=True)
    assert words in line
