"""What `status` says of how a task learns."""

from collections.abc import Callable

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
