"""Mistakes that the simulator must find: each replaces a piece of the product for a while.

They are what people write when nobody cuts their power; none of them shows on a good day.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import broker.folding.aggregator
import broker.releases.fold_gate
import edge_agent.updates.outbox
import models.host.durable
from broker.devices.forgetting import Forgetting
from broker.folding.aggregator import Fold
from broker.folding.server_step import ServerState
from broker.receiving.incoming import ArrivedChunk
from broker.receiving.update_inbox import UpdateInbox
from broker.reception import Reception
from broker.records.device_records import DeviceRecords
from broker.records.partial_records import PartialRecords
from broker.records.release_records import ReleaseRecords
from broker.records.settled_ranges import SettledRanges
from broker.records.update_records import UpdateKey
from broker.releases.release_patches import Step
from broker.releases.release_vectors import ReleaseVectors
from broker.state.artifact_store import ArtifactStore
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.own_folds import OwnFolds
from models.errors import PayloadError
from models.life import Life
from models.protocol.manifest import Manifest
from models.protocol.messages import Receipt
from models.protocol.update_life import ON_DEVICE, OutboxState
from models.task.params import Vector
from tools.simulation.scenario.fault_plan import PLANS
from tools.simulation.scenario.fleet_settings import Settings
from tools.substituted import substituted

__all__ = ["BUGS", "HARSH", "Bug"]

HARSH = Settings(plan=PLANS["harsh"])


class Bug(NamedTuple):
    """A mistake, and what the simulator must say of it."""

    planted: Callable[[], AbstractContextManager[None]]
    breaks: str  # a pattern: the promise, so that a process which merely dies of it does not count
    settings: Settings = HARSH


@contextmanager
def ack_before_commit() -> Iterator[None]:
    """The server acknowledges what came before it is committed."""
    take_in = Reception.take_in

    def hasty(self: Reception, now: float, wall: float) -> None:
        for incoming in self.held:
            self.link.acknowledge(incoming.message)
        take_in(self, now, wall)

    with substituted((Reception, "take_in", hasty)):
        yield


@contextmanager
def no_dedupe() -> Iterator[None]:
    """The server takes an update that comes again after it was settled for a new one."""
    take_chunk = UpdateInbox.take_chunk

    def forgetful(self: UpdateInbox, chunk: ArrivedChunk, tasks: Any, wall: float) -> Any:
        key = UpdateKey.parse(chunk.device, chunk.update_id)
        if self._updates.receipt(key).state in ("folded", "refused"):
            named = "WHERE device = ? AND installation = ? AND"
            registry = self._updates._registry
            registry.execute(f"DELETE FROM updates {named} sequence = ?", *key)
            registry.execute(
                f"DELETE FROM settled {named} first <= ? AND last >= ?", *key, key.sequence
            )
        return take_chunk(self, chunk, tasks, wall)

    with substituted((UpdateInbox, "take_chunk", forgetful)):
        yield


def no_refund() -> AbstractContextManager[None]:
    """A refused or evicted update is thrown away."""
    steps = [
        step._replace(then=OutboxState.DROPPED) if step.then is OutboxState.REFUNDED else step
        for step in ON_DEVICE.steps
    ]
    return substituted(
        (edge_agent.updates.outbox, "ON_DEVICE", Life(steps, durable=ON_DEVICE.durable))
    )


@contextmanager
def rename_without_fsync() -> Iterator[None]:
    """A file is written and renamed, and nothing is synced."""

    def careless(path: str, pieces: Any) -> None:
        draft = f"{path}.draft"
        with open(draft, "wb") as file:
            for piece in pieces:  # noqa: FURB122
                file.write(piece)
        os.replace(draft, path)  # noqa: PTH105

    with substituted((models.host.durable, "atomic_write_pieces", careless)):
        yield


@contextmanager
def lost_residual() -> Iterator[None]:
    """The codec's state is written after the update's transaction, in one of its own."""
    commit = Outbox.commit

    def in_two(self: Outbox, trained: Any, **options: Any) -> Any:
        before = self.codec()
        made = commit(self, trained._replace(residual=before.residual), **options)
        self.file.rows("UPDATE codec SET residual = ?", trained.residual)
        return made

    with substituted((Outbox, "commit", in_two)):
        yield


@contextmanager
def receipt_before_commit() -> Iterator[None]:
    """The receipt is published while the transaction is still open."""
    take_chunk = UpdateInbox.take_chunk

    def hasty(self: Any, chunk: Any, tasks: Any, wall: float) -> Receipt | None:
        receipt = take_chunk(self, chunk, tasks, wall)
        if receipt is not None:
            reception = _receptions[-1]
            reception.receipts.add(chunk.device, receipt)
            reception.receipts.pump(reception.link)
        return receipt

    _receptions: list[Reception] = []
    take_in = Reception.take_in

    def remembered(self: Reception, now: float, wall: float) -> None:
        _receptions[:] = [self]
        take_in(self, now, wall)

    with substituted((UpdateInbox, "take_chunk", hasty), (Reception, "take_in", remembered)):
        yield


@contextmanager
def chunk_bitmap_off_by_one() -> Iterator[None]:
    """The chunks that are missing are counted from one instead of zero."""
    missing = PartialRecords.missing

    def shifted(self: PartialRecords, key: Any, partial: Any) -> tuple[int, ...]:
        return tuple(number + 1 for number in missing(self, key, partial))

    with substituted((PartialRecords, "missing", shifted)):
        yield


@contextmanager
def ranges_not_kept() -> Iterator[None]:
    """What was settled is known as long as its header is, and no longer."""
    with substituted((SettledRanges, "add", lambda self, key, state, release: None)):
        yield


@contextmanager
def forgotten_with_its_updates() -> Iterator[None]:
    """Who forgets a device forgets what became of its updates."""
    forget = Forgetting.forget

    def thorough(self: Forgetting, device: str) -> None:
        forget(self, device)
        self._registry.execute("DELETE FROM settled WHERE device = ?", device)
        self._registry.execute("DELETE FROM updates WHERE device = ? AND state != 'stored'", device)

    with substituted((Forgetting, "forget", thorough)):
        yield


def gone_for_good() -> AbstractContextManager[None]:
    """A device that was forgotten is not heard any more."""
    introduce = DeviceRecords.introduce

    def deaf(self: DeviceRecords, device: str) -> None:
        if self.is_forgotten(device):
            raise PayloadError(f"device {device} was forgotten")
        introduce(self, device)

    return substituted((DeviceRecords, "introduce", deaf))


def _folds(change: Callable[[Vector, Vector], Vector]) -> AbstractContextManager[None]:
    """Let ``change(before, after)`` be what comes of a fold."""
    fold = broker.folding.aggregator.fold

    def wrong(state: ServerState, *rest: Any, **options: Any) -> Fold:
        found = fold(state, *rest, **options)
        if found.state is None:
            return found
        changed = change(state.exact, found.state.exact)
        return found._replace(state=found.state._replace(exact=changed))

    return substituted((broker.folding.aggregator, "fold", wrong))


def folded_twice() -> AbstractContextManager[None]:
    """What updates say is added twice, and settled once."""
    return _folds(lambda before, after: after + (after - before))


def folded_into_nothing() -> AbstractContextManager[None]:
    """Updates are settled as folded, and what they say is thrown away."""
    return _folds(lambda before, after: before)


def folded_sum_forgotten() -> AbstractContextManager[None]:
    """A restart goes on from what devices hold: what no patch said yet is gone."""
    load = ReleaseVectors.load_exact

    def forgetful(self: ReleaseVectors, manifest: Manifest, published: Vector) -> Vector:
        load(self, manifest, published)
        return published

    return substituted((ReleaseVectors, "load_exact", forgetful))


def nothing_published() -> AbstractContextManager[None]:
    """What was folded never gets to the devices."""
    return substituted(
        (
            broker.releases.fold_gate,
            "next_step",
            lambda published, exact, *rest: Step(exact, published),
        )
    )


def artifacts_kept() -> AbstractContextManager[None]:
    """Artifacts that no release needs any more stay for ever."""
    return substituted((ArtifactStore, "keep_only", lambda self, wanted: 0))


def own_updates_are_news() -> AbstractContextManager[None]:
    """A device takes what it taught the fleet itself for what others did."""
    return substituted((OwnFolds, "count", lambda self, *, after, until: 0))


@contextmanager
def pace_forgotten() -> Iterator[None]:
    """A restart forgets when the last training began."""
    commit = Outbox.commit

    def forgetful(self: Outbox, trained: Any, *, facts: Any, **options: Any) -> Any:
        kept = {name: value for name, value in facts.items() if name != "training_began"}
        return commit(self, trained, facts=kept, **options)

    with substituted((Outbox, "commit", forgetful)):
        yield


def count_begins_anew() -> AbstractContextManager[None]:
    """A manifest tells how many updates are in its own fold, instead of in all."""
    return substituted((ReleaseRecords, "updates_in_releases", lambda self, task=None: 0))


BUGS = {
    "ack_before_commit": Bug(ack_before_commit, "acknowledged and is not kept|before it was comm"),
    "no_dedupe": Bug(no_dedupe, "and now is folded again"),
    "no_refund": Bug(  # with something to refund
        no_refund, "differs from learned", HARSH._replace(max_staleness=1, fold_updates=1)
    ),
    "rename_without_fsync": Bug(
        rename_without_fsync, "the parameters of release .* missing or damaged|residual is lost"
    ),
    "lost_residual": Bug(lost_residual, "differs from learned"),
    "receipt_before_commit": Bug(receipt_before_commit, "receipt left before its transaction"),
    "ranges_not_kept": Bug(
        ranges_not_kept, "was folded, and nobody knows it|receipt said folded, is"
    ),
    "forgotten_with_its_updates": Bug(
        forgotten_with_its_updates, "and now is folded again|nobody knows it|receipt said"
    ),
    "gone_for_good": Bug(gone_for_good, "acknowledged and is not kept|did not come back"),
    "folded_twice": Bug(folded_twice, "is not its parent and"),
    "folded_into_nothing": Bug(folded_into_nothing, "is not its parent and"),
    "folded_sum_forgotten": Bug(folded_sum_forgotten, "is not its parent and"),
    "nothing_published": Bug(nothing_published, "no nearer to what was folded"),
    "artifacts_kept": Bug(
        artifacts_kept, "bytes on disk", HARSH._replace(fold_updates=1, hours=4.0)
    ),
    "own_updates_are_news": Bug(own_updates_are_news, "trains on release .* without a reason"),
    "pace_forgotten": Bug(
        pace_forgotten, "s after the last training", HARSH._replace(min_minutes=30.0, hours=3.0)
    ),
    "count_begins_anew": Bug(count_begins_anew, "updates are in it"),
    "chunk_bitmap_off_by_one": Bug(chunk_bitmap_off_by_one, "stuck: .* waiting"),
}
