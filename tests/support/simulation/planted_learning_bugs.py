"""Mistakes with memories, moments and averages that the simulator must find, each by its law."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from planted_bugs import HARSH, Bug

import edge_agent.training.local_update
import edge_agent.updates.outbox
from broker.folding.memory_fold import Memory, MemoryFold
from broker.releases.release_maker import Change, ReleaseMaker
from broker.state.state_store import StateStore
from edge_agent.training.job_results import JobResults
from edge_agent.updates.outbox import Outbox
from models.codec.average import averaged
from models.codec.feedback import Carried, carried_after
from models.life import Life
from models.protocol.update_life import WITH_MEMORY, OutboxEvent, OutboxState
from tools.simulation.scenario.fleet_settings import Settings
from tools.substituted import substituted

__all__ = ["LEARNING_BUGS"]


def learning(**settings: object) -> Settings:
    """Return harsh days of a fleet with these settings of ``[[task]]``."""
    policy = tuple((name.replace("__", "."), value) for name, value in settings.items())
    return HARSH._replace(policy=policy)


MEMORY = learning(learning__feedback="memory")
GD_SEC = learning(learning__feedback="gd-sec")


@contextmanager
def history_at_commit() -> Iterator[None]:
    """A device moves its memory when it has trained, not when the server has answered."""
    commit = Outbox.commit

    def hasty(self: Outbox, trained: Any, **options: Any) -> Any:
        made = commit(self, trained, **options)
        if made.seq and trained.next_history:
            self.file.rows("UPDATE codec SET history = ?", trained.next_history)
        return made

    with substituted((Outbox, "commit", hasty)):
        yield


@contextmanager
def replaced_after_it_left() -> Iterator[None]:
    """A newer update takes the place of one that the server may hold."""
    steps = [*WITH_MEMORY.steps]
    for state in (OutboxState.SENDING, OutboxState.SENT, OutboxState.STORED):
        queued = next(
            step
            for step in steps
            if (step.state, step.event) == (OutboxState.QUEUED, OutboxEvent.OVERTAKEN)
        )
        steps.append(queued._replace(state=state))
    life = Life(steps, durable=WITH_MEMORY.durable)
    with substituted(
        (edge_agent.updates.outbox, "WITH_MEMORY", life),
        (Outbox, "must_wait", lambda self, feedback: False),
        (Outbox, "may_leave", lambda self, entry: True),
    ):
        yield


@contextmanager
def share_kept_at_a_reset() -> Iterator[None]:
    """What a device had in the sum stays there when it begins anew."""
    take = MemoryFold.take

    def forgetful(self: MemoryFold, said: Any, memory: Memory | None, **options: Any) -> Memory:
        if memory is not None and not options["made_against"]:
            # As if nothing had been: but the count is right, so that nobody sums anew.
            zeros = Memory(np.zeros_like(memory.history), memory.samples)
            return take(self, said, zeros, **options)
        return take(self, said, memory, **options)

    with substituted((MemoryFold, "take", forgetful)):
        yield


@contextmanager
def said_twice_in_the_sum() -> Iterator[None]:
    """An update is added twice to the sum of memories."""
    take = MemoryFold.take

    def generous(self: MemoryFold, said: Any, memory: Memory | None, **options: Any) -> Memory:
        kept = take(self, said, memory, **options)
        self._sum += kept.samples * options["recursion"].beta * said.astype(np.float64)
        return kept

    with substituted((MemoryFold, "take", generous)):
        yield


@contextmanager
def velocity_forgotten() -> Iterator[None]:
    """A restart forgets the optimizer's moments."""
    load = StateStore.load

    def forgetful(self: StateStore, *arguments: Any) -> Any:
        state, scalars = load(self, *arguments)
        return state._replace(velocity=None, second=None), scalars

    with substituted((StateStore, "load", forgetful)):
        yield


@contextmanager
def average_moved_by_settings() -> Iterator[None]:
    """Each release moves the average, also one in which nothing was learned."""
    make = ReleaseMaker.make

    def restless(self: ReleaseMaker, change: Change, before: Any, *rest: Any) -> Any:
        state = change.state
        if before is not None and not change.folded and state.averaged:
            number = state.averaged + 1
            average = averaged(state.average, state.published, number, decay=0.9)
            change = change._replace(state=state._replace(average=average, averaged=number))
        return make(self, change, before, *rest)

    with substituted((ReleaseMaker, "make", restless)):
        yield


@contextmanager
def owed_thrown_away() -> Iterator[None]:
    """GD-SEC's device forgets what a payload left out."""

    def careless(asked: Any, said: Any, carried: Carried, recursion: Any) -> Carried:
        return carried_after(asked, said, carried, recursion)._replace(owed=None)

    with substituted((edge_agent.training.local_update, "carried_after", careless)):
        yield


@contextmanager
def own_model_tidied_away() -> Iterator[None]:
    """Nobody tells who tidies up that the model which a device tuned is in use."""
    tidy = JobResults.tidy

    def thorough(self: JobResults) -> None:
        tidy(self)
        for path in Path(self._folders.codec).glob("tuned-*"):
            path.unlink()

    with substituted((JobResults, "tidy", thorough)):
        yield


RESTING = HARSH._replace(
    patience=1, hours=3.0, policy=(("learning.average", 0.9), ("aggregation.min_gain", 0.9))
)
LEARNING_BUGS = {
    "history_at_commit": Bug(history_at_commit, "is not the server's", MEMORY),
    "replaced_after_it_left": Bug(
        replaced_after_it_left, "is not the server's|against one memory are unanswered", MEMORY
    ),
    "share_kept_at_a_reset": Bug(share_kept_at_a_reset, "the sum of memories is", MEMORY),
    "said_twice_in_the_sum": Bug(
        said_twice_in_the_sum, "the sum of memories is|is not its parent and", MEMORY
    ),
    "velocity_forgotten": Bug(
        velocity_forgotten,
        "is not its parent and",
        learning(aggregation__optimizer="momentum"),
    ),
    "average_moved_by_settings": Bug(average_moved_by_settings, "its average was moved", RESTING),
    "own_model_tidied_away": Bug(own_model_tidied_away, "its own model is lost"),
    "owed_thrown_away": Bug(owed_thrown_away, "owed and folded differ", GD_SEC),
}
