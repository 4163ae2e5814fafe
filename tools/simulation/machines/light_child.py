"""A child process of a simulated agent: its work is done at once, when its time has come."""

from collections.abc import Callable

from models.errors import EdgefoldError
from tools.simulation.machines.machine import Machine

__all__ = ["LightChild"]


class LightChild:
    """Does ``work`` in one go after ``takes_s``; may die before its ``dies_after``-th operation."""

    def __init__(
        self, machine: Machine, work: Callable[[], None], *, takes_s: float, dies_after: int
    ) -> None:
        self._machine = machine
        self._work = work
        self._done_at = machine.timeline.now + takes_s
        self._dies_after = dies_after  # 0: it does not
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and self._machine.timeline.now >= self._done_at:
            self._code = self._run()
        return self._code

    def kill(self) -> None:
        self._code = -9 if self._code is None else self._code

    def _run(self) -> int:
        machine, disk = self._machine, self._machine.disk
        own = disk.before_io
        left = [self._dies_after]

        def before_io(what: str) -> None:
            own(what)
            left[0] -= 1
            if left[0] == 0:
                machine.observer.say(machine.name, f"child dies before: {machine.inside(what)}")
                raise _ChildDied

        disk.before_io = before_io
        try:
            self._work()
        except _ChildDied:
            return -9
        except (OSError, EdgefoldError):
            return 1
        finally:
            disk.before_io = own
        return 0


class _ChildDied(BaseException):
    """The child process is gone; the agent is not."""
