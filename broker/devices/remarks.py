"""What the server has to say of a device, beside the problem that the device tells itself. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from models.protocol.messages import Status

__all__ = ["Task", "remarks"]

FIRST_RELEASE_S = 60.0  # a device that is connected has a release after that, or says what it does


class Task(NamedTuple):
    """What is known of a task here."""

    newest: int  # release
    releases: frozenset[int]
    needs: int = 0  # what devices must follow for the newest one: see `Manifest.needs`


def remarks(
    status: Status | None,
    *,
    is_there: bool,
    said_s: float,
    tasks: dict[str, Task],
    served: Sequence[str],
) -> list[str]:
    """Return what is wrong with a device as seen from here.

    ``is_there``: it was heard lately. ``said_s``: since its last status. ``served``: the tasks of
    the server that runs here, or ran last.
    """
    if status is None or not status.task:
        return []
    if status.task not in served:
        return [f"asks for task {status.task}, which is not served here (served: {_list(served)})"]
    task = tasks.get(status.task)
    if task is None:
        return []
    if status.follows < task.needs:
        runs = f"runs edgefold {status.version or 'of a version untold'}"
        return [f"{runs}, which cannot follow release {task.newest}: update it"]
    if not status.release:
        if is_there and said_s > FIRST_RELEASE_S and task.newest:
            doing = f", it is {status.state}" if status.state else ""
            return [f"has no release yet{doing}"]
        return []
    if status.release > task.newest:
        return [f"runs release {status.release}, the newest here is {task.newest}"]
    if status.release not in task.releases:
        return [f"runs release {status.release}, which was not made here"]
    return []


def _list(served: Sequence[str]) -> str:
    return ", ".join(served) or "none"
