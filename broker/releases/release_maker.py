"""Makes releases durable: artifacts first, then one transaction that records it and its updates.

Killed before the transaction, the same is made again from the same updates; after it, it is
history. Devices are told by whoever publishes what stands in the registry (`publisher.py`).
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from broker.config import TaskConfig
from broker.folding.aggregator import Fold
from broker.folding.payload_reader import PayloadReader
from broker.folding.server_step import ServerState
from broker.folding.step_estimates import ASKING
from broker.records.device_records import DeviceRecords
from broker.records.registry import Registry
from broker.records.release_records import FoldedRow, ReleaseRecords, ReleaseRow
from broker.records.update_records import UpdateRecords, WaitingUpdate
from broker.releases.asking import Ask
from broker.releases.release_patches import chained
from broker.state.artifact_store import ArtifactStore
from broker.state.device_memory import DeviceMemory, MemoryChange
from broker.state.state_store import Scalars, StateStore
from models.errors import TransientError
from models.learning.scoring import Score
from models.protocol.learning import LearningPlan
from models.protocol.manifest import Artifact, Kind, Manifest, encode_manifest
from models.protocol.npz import write_vector
from models.protocol.update_life import ReceiptEvent
from models.task.bundle import Bundle

__all__ = ["Books", "Change", "Refused", "ReleaseMaker"]

log = logging.getLogger(__name__)


class Refused(NamedTuple):
    """An update that is never folded."""

    update: WaitingUpdate
    reason: str
    reset: bool  # its device begins its memory anew


class Books(NamedTuple):
    """Where everything that outlives the process is written."""

    registry: Registry
    devices: DeviceRecords
    updates: UpdateRecords
    releases: ReleaseRecords
    artifacts: ArtifactStore
    keep_releases: int  # 0: all
    on_progress: Callable[[], None]  # called often during long work, for the watchdog


class Change(NamedTuple):
    """What makes the next release another than the newest."""

    state: ServerState  # of the next one
    scalars: Scalars  # likewise
    because: str
    patch: bytes | None = None  # from the newest parameters to the next; None: there is none
    number: int | None = None  # of the next one, where devices have releases not known here
    fold: Fold | None = None  # None: nothing was folded
    folded: Sequence[WaitingUpdate] = ()
    refused: Sequence[Refused] = ()
    memories: MemoryChange = MemoryChange()
    score: Score | None = None  # of what devices run
    trained: Score | None = None  # of the parameters, where they run the average


class ReleaseMaker:
    """Writes the releases of one task."""

    def __init__(
        self,
        bundle: Bundle,
        config: TaskConfig,
        books: Books,
        payloads: PayloadReader,
        store: StateStore,
        memory: DeviceMemory,
        *,
        chunk_size: int,
    ) -> None:
        self._bundle = bundle
        self._config = config
        self._books = books
        self._payloads = payloads
        self._store = store
        self._memory = memory
        self._chunk_size = chunk_size

    def plan(self, scalars: Scalars) -> LearningPlan | None:
        """Return what a release of now says of how it is learned from; None: what is usual."""
        policy = self._config.learning
        return policy.plan(
            average=scalars.auto_average,
            threshold=policy.threshold * (scalars.guard.share if scalars.guard else 1.0),
            alone=self._config.report.alone,
            steps=scalars.steps or ASKING,
        )

    def is_outdated(self, manifest: Manifest, state: ServerState, scalars: Scalars) -> bool:
        """Whether a release of now has other graphs or settings than ``manifest``."""
        repeat = manifest.training.repeat or not self._config.aggregation.patience
        plan = self.plan(scalars)
        averaged = state.averaged if plan and plan.average else 0
        average = manifest.artifacts.get("average") if averaged else None
        return manifest != msgspec.structs.replace(
            manifest,
            artifacts=self._artifacts(manifest.artifacts["parameters"], average),
            averaged=averaged,
            learning=plan,
            chunk_size=self._chunk_size,
            training=self._config.training_plan(manifest.release, repeat=repeat),
            codec=self._config.codec,
        )

    def make(
        self, change: Change, before: ReleaseRow | None, since: int, ask: Ask, wall: float
    ) -> tuple[ReleaseRow, int]:
        """Make ``change`` the release after ``before``.

        Return it, and the first release that published what it does; ``since`` is the first that
        published what ``before`` does.

        Raises:
            TransientError, OSError: the disk is full or failing; nothing was changed.
        """
        spec, score, books = self._bundle.spec, change.score, self._books
        state = change.state
        published = books.artifacts.put(write_vector(state.published))
        exact = books.artifacts.put(write_vector(state.exact))
        average = None
        if state.average is not None:
            average = books.artifacts.put(write_vector(state.average))
        newest = before.number if before else 0
        number = change.number or newest + 1
        first, patches = number, {}
        if before is not None and change.number is None:
            if published == before.manifest.artifacts["parameters"]:
                first, patches = since, before.manifest.patches
            elif change.patch is not None:
                patches = chained(
                    before.manifest.patches | {since: books.artifacts.put(change.patch)},
                    most=self._config.downlink.chain,
                    whole=published.size,
                    oldest=books.devices.oldest_release_in_use(spec.task),
                )
        manifest = Manifest(
            format=1,
            task=spec.task,
            release=number,
            parent=newest,
            artifacts=self._artifacts(published, average),
            chunk_size=self._chunk_size,
            training=self._config.training_plan(number, repeat=ask.everybody),
            codec=self._config.codec,
            accuracy=score.metric if score and spec.metric == "accuracy" else None,
            patches=patches,
            folded=books.releases.updates_in_releases(spec.task) + len(change.folded),
            learning=self.plan(change.scalars),
            averaged=state.averaged,
        )
        release = ReleaseRow(
            manifest=manifest,
            created=wall,
            metric=score.metric if score else None,
            loss=score.loss if score else None,
            evaluated=score.samples if score else 0,
            updates=len(change.folded),
            devices=len({update.key.device for update in change.folded}),
            bytes_received=sum(update.size for update in change.folded),
            bytes_down=_bytes_down(manifest, before),
            metric_trained=change.trained.metric if change.trained else None,
            step=change.fold.step if change.fold else None,
            age=change.fold.age if change.fold else None,
        )
        row = self._store.saved(state, change.scalars, number)
        with books.registry.transaction():
            books.releases.add(release, FoldedRow(number, exact, first), ask.samples)
            self._store.put(row)
            self._memory.commit(change.memories)
            for update in change.folded:
                books.updates.settle(update, ReceiptEvent.FOLDED, release=number)
            self._refuse(change.refused)
        log.info(
            "release task=%s number=%d %s updates=%d devices=%d refused=%d metric=%s bytes=%d",
            spec.task,
            number,
            change.because,
            release.updates,
            release.devices,
            len(change.refused),
            f"{score.metric:.4f}" if score else "-",
            release.bytes_received,
        )
        return release, first

    def refuse(self, refused: Sequence[Refused]) -> None:
        """Settle updates of which no release comes; what was written for one goes.

        Raises:
            TransientError: the disk is full or failing; they wait as before.
        """
        with self._books.registry.transaction():
            self._refuse(refused)
        if self._config.learning.has_memory:
            self.tidy()

    def _refuse(self, refused: Sequence[Refused]) -> None:
        for update, reason, reset in refused:
            if self._payloads.gave_up(update.row):
                self._books.updates.bury(update, reason)
            else:
                self._books.updates.settle(update, ReceiptEvent.REFUSED, reason=reason, reset=reset)
        self._books.updates.forget_old_headers()

    def _artifacts(self, published: Artifact, average: Artifact | None) -> dict[Kind, Artifact]:
        store = self._books.artifacts
        named: dict[Kind, Artifact] = {
            "infer": store.put(self._bundle.infer),
            "train": store.put(self._bundle.train),
            "spec": store.put(self._bundle.spec_json),
            "parameters": published,
        }
        if average is not None:
            named["average"] = average
        return named

    def tidy(self) -> None:
        """Delete artifacts that neither a release needs any more nor the state; not being able to
        is no harm.
        """
        kept = self._books.keep_releases
        kept = max(kept, 2) if kept else 0  # devices may still fetch the parent
        try:
            self._books.artifacts.keep_only(self._books.releases.artifacts_wanted(kept))
        except (OSError, TransientError) as error:
            log.warning("old artifacts stay for now: %s", error)


def _bytes_down(manifest: Manifest, before: ReleaseRow | None) -> int:
    """Return what a device downloads that has the release ``before``."""
    held = set(before.manifest.artifacts.values()) if before else set()
    fresh = set(manifest.artifacts.values()) - held
    if before and (patches := manifest.patches_from(before.number)):
        made = {manifest.artifacts[kind] for kind in ("parameters", manifest.runs)}  # from these
        fresh = fresh - made | set(patches)
    return len(encode_manifest(manifest)) + sum(artifact.size for artifact in fresh)
