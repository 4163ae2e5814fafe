"""The life of a thing as one table: states, events, and what is durable in each. Pure.

As in h11's `_state.py`, nothing else decides how a state changes: who keeps one asks the table,
and the diagram in the documentation is drawn from it.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Life", "Step"]

State = TypeVar("State", bound=StrEnum)
Happening = TypeVar("Happening", bound=StrEnum)


class Step(NamedTuple, Generic[State, Happening]):
    """A row of a table: ``event`` in ``state`` leads to ``then``."""

    state: State
    event: Happening
    then: State


class Life(Generic[State, Happening]):
    """A table of steps, the first of which leaves the state in which every such thing begins.

    ``durable`` says of each state what is on disk while it lasts.
    """

    def __init__(
        self, steps: Sequence[Step[State, Happening]], *, durable: dict[State, str]
    ) -> None:
        self.steps = tuple(steps)
        self.durable = durable
        self.first = self.steps[0].state
        self._then = {(step.state, step.event): step.then for step in self.steps}
        assert len(self._then) == len(self.steps), "an event in a state leads to one other"
        states = {state for step in self.steps for state in (step.state, step.then)}
        assert states == set(durable)

    def after(self, state: State, event: Happening) -> State:
        """Return the state after ``event``.

        Raises:
            RuntimeError: that cannot happen in this state; the caller has lost its way.
        """
        try:
            return self._then[state, event]
        except KeyError:
            raise RuntimeError(f"{event.value!r} cannot happen to what is {state.value}") from None

    def allows(self, state: State, event: Happening) -> bool:
        """Return whether ``event`` can happen in ``state``."""
        return (state, event) in self._then

    def ends(self) -> frozenset[State]:
        """Return the states that nothing leaves."""
        return frozenset(self.durable) - {step.state for step in self.steps}

    def diagram(self) -> str:
        """Return it as a Mermaid state diagram, as the documentation shows it."""
        ends = [state for state in self.durable if state in self.ends()]
        return "\n".join(
            (
                "stateDiagram-v2",
                f"    [*] --> {self.first.value}",
                *(f"    {s.state.value} --> {s.then.value}: {s.event.value}" for s in self.steps),
                *(f"    {state.value} --> [*]" for state in ends),
            )
        )
