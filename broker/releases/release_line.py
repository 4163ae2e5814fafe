"""One task's line of releases: begins it, folds what waits into the next one, gates it.

The decisions are pure (`aggregator.py`). A release is an artifact on disk first, then one
transaction that records it and marks its updates: killed before it, the fold is made again.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.config import TaskConfig
from broker.folding import aggregator
from broker.folding.aggregator import Offer, due_at, most_at_once
from broker.folding.payload_reader import PayloadReader
from broker.records.device_records import DeviceRecords
from broker.records.registry import Registry
from broker.records.release_records import FoldedRow, ReleaseRecords, ReleaseRow
from broker.records.update_records import UpdateRecords, WaitingUpdate
from broker.releases.artifact_store import ArtifactStore
from broker.releases.asking import Asking
from broker.releases.first_release import Bundle, initial_parameters
from broker.releases.gate import Candidate, Gate, gated
from broker.releases.release_patches import Step, chained, next_step
from models.errors import DigestMismatchError, PayloadError, TransientError, UsageError
from models.host.files import patiently
from models.learning.scoring import Score
from models.protocol.manifest import Artifact, Manifest, encode_manifest
from models.protocol.npz import read_vector, write_vector
from models.protocol.update_life import ReceiptEvent
from models.task.params import Vector
from models.task.spec import TaskSpec, decode_spec

__all__ = ["Books", "Evaluate", "ReleaseLine"]

log = logging.getLogger(__name__)

Evaluate = Callable[[Vector], Score]

MOST_SUSPECTS = 200  # updates in one fold with a gate, which may try each of them alone
ASKS_EVERY_S = 600.0  # between two looks at whether everybody is to be asked again
CONTEXTS_HELD = 4  # vectors in memory, for updates of so many different releases


class Books(NamedTuple):
    """Where everything that outlives the process is written."""

    registry: Registry
    devices: DeviceRecords
    updates: UpdateRecords
    releases: ReleaseRecords
    artifacts: ArtifactStore
    keep_releases: int  # 0: all
    on_progress: Callable[[], None]  # called often during long work, for the watchdog


class ReleaseLine:
    """The releases of one task. Only one server may work on them."""

    def __init__(
        self,
        bundle: Bundle,
        config: TaskConfig,
        books: Books,
        *,
        chunk_size: int,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.task = bundle.spec.task
        self.spec: TaskSpec = bundle.spec
        self._bundle = bundle
        self._config = config
        self._books = books
        self._chunk_size = chunk_size
        self._evaluate = evaluate
        self._payloads = PayloadReader(books.updates)
        self._asking = Asking(
            self.spec,
            config.aggregation,
            *(books.devices, books.updates, books.releases),
            has_evaluation=evaluate is not None,
        )
        self._current: ReleaseRow | None = None
        self._parameters: Vector | None = None  # x of `broker.releases.release_patches`
        self._published: Vector | None = None  # p, what devices hold
        self._contexts: dict[int, Vector | None] = {}  # by release
        self._since = 0  # the first release that has p
        self._waiting: tuple[int, float] | None = None  # how many, since when; None: ask
        self._folded_at: float | None = None  # when the last fold was made a release
        self._round_at = 0.0  # when everybody was asked again, in this run
        self._asked_at = 0.0  # when we looked whether everybody is to be asked again

    @property
    def newest(self) -> int:
        """The number of the newest release; 0 before `open`."""
        return self._current.number if self._current else 0

    def open(self, now: float) -> None:
        """Go on where the registry stands, or make release 1 out of the bundle's own weights.

        A changed graph or changed settings make a new release of the same weights, because a
        release never changes.

        Raises:
            UsageError: the bundle does not fit what was learned, or its files do.
            TransientError, OSError: the disk is full or failing.
        """
        self._current = self._books.releases.current(self.task)
        self._folded_at = self._books.releases.folded_at(self.task)
        if self._current is None:
            first = initial_parameters(self._bundle)
            self._publish(Step(first, first), now, because="begins")
            return
        self._check_tensors(self._current.manifest)
        before = self._current.manifest
        self._published = self._load(before)
        self._parameters = self._load_folded(before, self._published)
        same = self._manifest(
            before.release,
            before.parent,
            before.artifacts["parameters"],
            before.accuracy,
            before.patches,
            folded=before.folded,
            repeat=before.training.repeat or not self._config.aggregation.patience,
        )
        if same != before:
            step = Step(self._parameters, self._published)
            self._publish(step, now, because="has new settings")

    def _check_tensors(self, manifest: Manifest) -> None:
        learned = self._read(manifest.artifacts["spec"])
        if learned is not None and decode_spec(learned).shared != self.spec.shared:
            raise UsageError(
                f"task {self.task}: the bundle's shared tensors are not those of release "
                f"{manifest.release}; give the new model another task name, or use another "
                f"[storage] directory"
            )

    def _read(self, artifact: Artifact) -> bytes | None:
        """Return an artifact; None if it is missing or damaged.

        Raises:
            TransientError: the disk does not give it now, which says nothing of what it holds.
        """
        artifacts = self._books.artifacts
        try:
            return patiently(lambda: artifacts.get(artifact))
        except (FileNotFoundError, DigestMismatchError):
            return None
        except OSError as error:
            raise TransientError(
                f"task {self.task}: artifacts/{artifact.sha256} cannot be read: {error.strerror}; "
                "if it stays so, restore [storage] directory from a backup"
            ) from None

    def _load(self, manifest: Manifest) -> Vector:
        data = self._read(manifest.artifacts["parameters"])
        try:
            return read_vector(data or b"", size=self.spec.shared_size)
        except PayloadError:
            raise UsageError(
                f"task {self.task}: the parameters of release {manifest.release} are missing or "
                f"damaged on disk; restore [storage] directory from a backup, or begin anew in "
                f"another one"
            ) from None

    def _load_folded(self, manifest: Manifest, published: Vector) -> Vector:
        """Return the exact sum behind ``manifest``; of an older version's release, what it has."""
        self._since = manifest.release
        row = self._books.releases.folded(self.task)
        if row is None or row.release != manifest.release:
            return published
        self._since = row.since
        data = self._read(row.artifact)
        try:
            return read_vector(data or b"", size=self.spec.shared_size)
        except PayloadError:
            log.error(
                "what was folded and not yet published is lost, its file is damaged task=%s",
                self.task,
            )
            return published

    def made(self, manifest: Manifest) -> bool:
        """Whether ``manifest`` may be one of ours: the newest, or a number below it."""
        if self._current is None:
            raise ValueError(f"task {self.task} is not open")
        return manifest.release < self.newest or self._current.manifest.is_same_as(manifest)

    def overtake(self, release: int, now: float) -> None:
        """Go on above ``release``, which devices have and this registry does not know.

        So it is after the registry was restored from a backup, or lost: devices do not go back to
        a lower number nor take another release of the same, and what they learned on a higher one
        would be refused for ever.

        Raises:
            TransientError, OSError: the disk is full or failing; nothing was changed.
        """
        if self._parameters is None or self._published is None:
            raise ValueError(f"task {self.task} is not open")
        log.warning(
            "registry is behind its fleet task=%s newest=%d published=%d; was it restored?",
            *(self.task, self.newest, release),
        )
        step = Step(self._parameters, self._published)
        self._publish(step, now, because="overtakes", number=release + 1)

    # Folding

    def changed(self) -> None:
        """An update was stored: look again what waits."""
        self._waiting = None

    def due_at(self, now: float) -> float | None:
        """Return when to fold next, in the seconds of ``now``; None while nothing waits."""
        if self._waiting is None:
            self._waiting = self._books.updates.waiting_summary(self.task)
        waiting, first_at = self._waiting
        if self._round_at <= now:  # else the clock was set back
            first_at = max(first_at, self._round_at)  # what waited goes with the round
        return due_at(
            self._config.aggregation,
            waiting=waiting,
            first_at=first_at,
            now=now,
            folded_at=self._folded_at,
            is_resting=self.is_resting,
        )

    @property
    def is_resting(self) -> bool:
        """Whether only devices with new samples are asked to train."""
        return self._current is not None and not self._current.manifest.training.repeat

    def ask_again(self, now: float) -> None:
        """Ask everybody to train again if it is time for that, or there are many new samples.

        Raises:
            TransientError, OSError: the disk is full or failing; nothing was changed.
        """
        if not self.is_resting or 0 <= now - self._asked_at < ASKS_EVERY_S:
            return
        if self._current is not None and not self._current.manifest.training.open:
            return
        self._asked_at = now
        if self._asking.next_release(None, now, is_folded=False).everybody:
            assert self._parameters is not None
            assert self._published is not None
            step = Step(self._parameters, self._published)
            self._publish(step, now, because="asks everybody again")
            self._round_at = now

    def fold(self, now: float) -> list[WaitingUpdate]:
        """Fold what waits into the next release; return the updates that are settled now.

        Raises:
            TransientError, OSError: the disk is full or failing; everything waits as before.
        """
        if self._current is None or self._parameters is None:
            raise ValueError(f"task {self.task} is not open")
        policy = self._config.aggregation
        most = most_at_once(policy, self.spec.shared_size)
        gate = self._gate
        if gate.limit is not None:
            most = min(most, max(policy.updates, MOST_SUSPECTS))
        waiting = self._books.updates.waiting(self.task, most)
        by_row = {update.row: update for update in waiting}
        skipped = {base: self._skipped(base) for base in {update.base for update in waiting}}
        offers = [
            Offer(update.row, update.base, update.samples, skipped[update.base])
            for update in waiting
        ]
        result, step, score = gated(offers, self._candidate, gate)
        refused = [(by_row[offer.number], reason) for offer, reason in result.refused]
        for update, reason in refused:
            log.warning(
                "update refused device=%s id=%s reason=%s",
                update.key.device,
                update.key.update_id,
                reason,
            )
        folded = [by_row[offer.number] for offer in result.folded]
        if step is None:
            with self._books.registry.transaction():
                self._settle([], refused)
        else:
            self._publish(
                step,
                now,
                because="folded",
                folded=folded,
                refused=refused,
                score=score,
            )
        self._waiting = None
        return waiting

    def _skipped(self, base: int) -> int:
        """Return how many numbers above ``base`` no release got, because `overtake` jumped."""
        after = self._books.releases.count_after(self.task, base)
        return max(0, self.newest - base - after)

    def _candidate(self, offers: Sequence[Offer]) -> Candidate:
        """Fold ``offers``, and measure what devices would get for it."""
        assert self._parameters is not None
        assert self._published is not None

        def payload_of(offer: Offer) -> bytes:
            self._books.on_progress()
            return self._payloads.read(offer.number)

        result = aggregator.fold(
            self._parameters,
            offers,
            payload_of,
            self.spec.shared,
            self._config.aggregation,
            current=self.newest,
            context_of=self._context_of,
        )
        if result.parameters is None:
            return Candidate(result, None, None)
        self._books.on_progress()
        step = next_step(
            self._published, result.parameters, self.spec.shared, self._config.downlink
        )
        score = self._evaluate(step.published) if self._evaluate is not None else None
        return Candidate(result, step, score)

    def _context_of(self, offer: Offer) -> Vector | None:
        """Return what release ``offer.base`` changed of its parent; None if that is not known."""
        if offer.base not in self._contexts:
            if len(self._contexts) == CONTEXTS_HELD:
                self._contexts.pop(min(self._contexts))
            self._contexts[offer.base] = self._changed(offer.base)
        return self._contexts[offer.base]

    def _changed(self, number: int) -> Vector | None:
        release = self._books.releases.get(self.task, number)
        parent = self._books.releases.get(self.task, release.manifest.parent) if release else None
        if release is None or parent is None:
            return None
        try:
            now, before = (self._load(row.manifest) for row in (release, parent))
        except UsageError:  # too old to be kept, or damaged
            return None
        return now - before

    @property
    def _gate(self) -> Gate:
        """Return what the next release must not fall short of."""
        gate, metric = self._config.evaluation, self._current.metric if self._current else None
        sign = -1 if self.spec.metric == "mse" else 1
        if gate is None or gate.max_drop is None or self._evaluate is None or metric is None:
            return Gate(sign, None)
        return Gate(sign, sign * metric - gate.max_drop)

    # Making a release

    def _publish(
        self,
        step: Step,
        now: float,
        *,
        because: str,
        number: int | None = None,
        folded: Sequence[WaitingUpdate] = (),
        refused: Sequence[tuple[WaitingUpdate, str]] = (),
        score: Score | None = None,
    ) -> None:
        """Make ``step`` the next release: artifacts first, then one transaction."""
        if score is None and self._evaluate is not None:
            score = self._evaluate(step.published)
        was_resting = self.is_resting
        store = self._books.artifacts
        artifact = store.put(write_vector(step.published))
        exact = store.put(write_vector(step.folded))
        accuracy = score.metric if score and self.spec.metric == "accuracy" else None
        metric = score.metric if score else None
        ask = self._asking.next_release(metric, now, is_folded=bool(folded))
        follows = number is None  # else devices have releases that are not known here
        number = number or self.newest + 1
        since, patches = number, {}
        if self._current is not None and follows:
            before = self._current.manifest
            if artifact == before.artifacts["parameters"]:
                since, patches = self._since, before.patches
            elif step.patch is not None:
                patches = chained(
                    before.patches | {self._since: store.put(step.patch)},
                    most=self._config.downlink.chain,
                    whole=artifact.size,
                    oldest=self._books.devices.oldest_release_in_use(self.task),
                )
        manifest = self._manifest(
            number,
            self.newest,
            artifact,
            accuracy,
            patches,
            folded=self._books.releases.updates_in_releases(self.task) + len(folded),
            repeat=ask.everybody,
        )
        release = ReleaseRow(
            manifest=manifest,
            created=now,
            metric=score.metric if score else None,
            loss=score.loss if score else None,
            evaluated=score.samples if score else 0,
            updates=len(folded),
            devices=len({update.key.device for update in folded}),
            bytes_received=sum(update.size for update in folded),
            bytes_down=self._bytes_down(manifest),
        )
        with self._books.registry.transaction():
            self._books.releases.add(release, FoldedRow(number, exact, since), ask.samples)
            self._settle(folded, refused, release.number)
        self._current, self._since = release, since
        self._parameters, self._published = step.folded, step.published
        if folded:
            self._folded_at = now
        log.info(
            "release task=%s number=%d %s updates=%d devices=%d refused=%d metric=%s bytes=%d",
            self.task,
            release.number,
            because,
            release.updates,
            release.devices,
            len(refused),
            f"{score.metric:.4f}" if score else "-",
            release.bytes_received,
        )
        if ask.everybody is was_resting:
            whom = "everybody" if ask.everybody else "only devices with new samples"
            log.info("training asks %s task=%s release=%d", whom, self.task, release.number)
        self._tidy()

    def _manifest(
        self,
        number: int,
        parent: int,
        parameters: Artifact,
        accuracy: float | None,
        patches: dict[int, Artifact],
        *,
        folded: int,
        repeat: bool,
    ) -> Manifest:
        store = self._books.artifacts
        return Manifest(
            format=1,
            task=self.task,
            release=number,
            parent=parent,
            artifacts={
                "infer": store.put(self._bundle.infer),
                "train": store.put(self._bundle.train),
                "spec": store.put(self._bundle.spec_json),
                "parameters": parameters,
            },
            chunk_size=self._chunk_size,
            training=self._config.training_plan(number, repeat=repeat),
            codec=self._config.codec,
            accuracy=accuracy,
            patches=patches,
            folded=folded,
        )

    def _bytes_down(self, manifest: Manifest) -> int:
        held = set(self._current.manifest.artifacts.values()) if self._current else set()
        fresh = set(manifest.artifacts.values()) - held
        if self._current and (patches := manifest.patches_from(self.newest)):
            fresh = fresh - {manifest.artifacts["parameters"]} | set(patches)
        return len(encode_manifest(manifest)) + sum(artifact.size for artifact in fresh)

    def _settle(
        self,
        folded: Sequence[WaitingUpdate],
        refused: Sequence[tuple[WaitingUpdate, str]],
        release: int = 0,
    ) -> None:
        for update in folded:
            self._books.updates.settle(update, ReceiptEvent.FOLDED, release=release)
        for update, reason in refused:
            if self._payloads.gave_up(update.row):
                self._books.updates.bury(update, reason)
            else:
                self._books.updates.settle(update, ReceiptEvent.REFUSED, reason=reason)
        self._books.updates.forget_old_headers()

    def _tidy(self) -> None:
        """Delete artifacts that no release needs any more; not being able to is no harm."""
        if not self._books.keep_releases:
            return
        kept = max(self._books.keep_releases, 2)  # devices may still fetch the parent
        try:
            self._books.artifacts.keep_only(self._books.releases.artifacts_wanted(kept))
        except (OSError, TransientError) as error:
            log.warning("old artifacts stay for now: %s", error)
