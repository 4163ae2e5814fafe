"""What the server has to say of devices."""

import msgspec
import pytest

from broker.devices.remarks import FIRST_RELEASE_S, Task, remarks
from models.protocol.messages import Status

OLD = Status(online=True, task="birds", release=3, version="0.1.0")
TASKS = {
    "birds": Task(7, frozenset(range(1, 8)), needs=1),
    "clothes": Task(18, frozenset({1, 2, 16, 17, 18})),
    "left": Task(3, frozenset({1, 2, 3})),
}


def status(task: str, release: int, state: str = "") -> Status:
    return Status(online=True, task=task, release=release, state=state)


@pytest.mark.parametrize(
    ("told", "said_s", "expected"),
    [
        (None, 0.0, ""),
        (status("", 0), 1e6, ""),
        (status("clothes", 18), 1e6, ""),
        (status("clothes", 16), 1e6, ""),
        (status("clothes", 0), FIRST_RELEASE_S, ""),
        (status("clothes", 0), FIRST_RELEASE_S + 1, "has no release yet"),
        (status("clothes", 0, "downloading"), 100.0, "has no release yet, it is downloading"),
        (status("clothes", 120), 0.0, "runs release 120, the newest here is 18"),
        (status("clothes", 7), 0.0, "runs release 7, which was not made here"),
        (
            status("clothez", 0),
            0.0,
            "asks for task clothez, which is not served here (served: clothes, birds)",
        ),
        (OLD, 1e6, "runs edgefold 0.1.0, which cannot follow release 7: update it"),
        (
            msgspec.structs.replace(OLD, release=0, version=""),
            1e6,
            "runs edgefold of a version untold, which cannot follow release 7: update it",
        ),
        (msgspec.structs.replace(OLD, follows=1), 1e6, ""),
        (
            status("left", 3),
            0.0,
            "asks for task left, which is not served here (served: clothes, birds)",
        ),
    ],
)
def test_what_looks_wrong_from_here_is_said(
    told: Status | None, said_s: float, expected: str
) -> None:
    found = remarks(told, is_there=True, said_s=said_s, tasks=TASKS, served=("clothes", "birds"))
    assert found == ([expected] if expected else [])


def test_a_device_that_is_away_needs_no_release() -> None:
    facts = {"said_s": 1e6, "tasks": TASKS, "served": ("clothes",)}
    assert remarks(status("clothes", 0), is_there=False, **facts) == []  # type: ignore[arg-type]
