"""One task's line of releases: begins it, folds what waits into the next one, gates it.

The decisions are pure (`broker/aggregator.py`); here they meet disk and registry. A release is an
artifact on disk first, then one transaction that records it and marks its updates: killed before
it, the fold is made again from the same updates; killed after it, it is history.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker import aggregator
from broker.aggregator import Fold, Offer, due_at, most_at_once
from broker.artifact_store import ArtifactStore
from broker.config import TaskConfig
from broker.evaluation import Score
from broker.initial_release import Bundle, initial_parameters
from broker.registry import Registry
from broker.release_records import ReleaseRecords, ReleaseRow
from broker.update_records import UpdateRecords, WaitingUpdate
from models.errors import DigestMismatchError, PayloadError, TransientError, UsageError
from models.params import Vector
from models.payload.manifest import Artifact, Kind, Manifest, encode_manifest
from models.payload.npz import read_vector, write_vector
from models.spec import TaskSpec, decode_spec

__all__ = ["Books", "Evaluate", "ReleaseLine"]

log = logging.getLogger(__name__)

Evaluate = Callable[[Vector], Score]

MOST_SUSPECTS = 200  # updates in one fold with a gate, which may try each of them alone
MOST_OVERTAKEN = 1_000_000  # releases


class Books(NamedTuple):
    """Where everything that outlives the process is written."""

    registry: Registry
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
        self._current: ReleaseRow | None = None
        self._parameters: Vector | None = None
        self._waiting: tuple[int, float] | None = None  # how many, since when; None: ask

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
        if self._current is None:
            self._parameters = initial_parameters(self._bundle)
            self._publish(self._parameters, now, because="begins")
            return
        self._check_tensors(self._current.manifest)
        self._parameters = self._load(self._current.manifest)
        before = self._current.manifest
        parameters = before.artifacts["parameters"]
        if self._manifest(before.release, before.parent, parameters, before.accuracy) != before:
            self._publish(self._parameters, now, because="has new settings")

    def _check_tensors(self, manifest: Manifest) -> None:
        learned = self._read(manifest, "spec")
        if learned is not None and decode_spec(learned).shared != self.spec.shared:
            raise UsageError(
                f"task {self.task}: the bundle's shared tensors are not those of release "
                f"{manifest.release}; give the new model another task name, or use another "
                f"[storage] directory"
            )

    def _read(self, manifest: Manifest, kind: Kind) -> bytes | None:
        try:
            return self._books.artifacts.get(manifest.artifacts[kind])
        except (OSError, DigestMismatchError):
            return None

    def _load(self, manifest: Manifest) -> Vector:
        data = self._read(manifest, "parameters")
        try:
            return read_vector(data or b"", size=self.spec.shared_size)
        except PayloadError:
            raise UsageError(
                f"task {self.task}: the parameters of release {manifest.release} are missing or "
                f"damaged on disk; restore [storage] directory from a backup, or begin anew in "
                f"another one"
            ) from None

    def overtake(self, seen: Manifest, now: float) -> None:
        """Go on above ``seen``, if devices have it and this registry does not know it.

        So it is after the registry was restored from a backup, or lost: devices do not go back to
        a lower number nor take another release of the same, and what they learned on a higher one
        would be refused for ever.

        Raises:
            PayloadError: the number is absurd.
            TransientError, OSError: the disk is full or failing; nothing was changed.
        """
        if self._current is None or self._parameters is None:
            raise ValueError(f"task {self.task} is not open")
        if seen.release < self.newest or seen == self._current.manifest:
            return
        number = seen.release + 1
        if number > self.newest + MOST_OVERTAKEN:
            raise PayloadError(f"release {number} of {self.task}, the newest here is {self.newest}")
        log.warning(
            "registry is behind its fleet task=%s newest=%d published=%d; was it restored?",
            self.task,
            self.newest,
            seen.release,
        )
        self._publish(self._parameters, now, because="overtakes", number=number)

    # Folding

    def changed(self) -> None:
        """An update was stored: look again what waits."""
        self._waiting = None

    def due_at(self, now: float) -> float | None:
        """Return when to fold next, in the seconds of ``now``; None while nothing waits."""
        if self._waiting is None:
            self._waiting = self._books.updates.waiting_summary(self.task)
        waiting, first_at = self._waiting
        return due_at(self._config.aggregation, waiting=waiting, first_at=first_at, now=now)

    def fold(self, now: float) -> list[WaitingUpdate]:
        """Fold what waits into the next release; return the updates that are settled now.

        Raises:
            TransientError, OSError: the disk is full or failing; everything waits as before.
        """
        if self._current is None or self._parameters is None:
            raise ValueError(f"task {self.task} is not open")
        policy = self._config.aggregation
        most = most_at_once(policy, self.spec.shared_size)
        if self._limit() is not None:
            most = min(most, max(policy.updates, MOST_SUSPECTS))
        waiting = self._books.updates.waiting(self.task, most)
        by_row = {update.row: update for update in waiting}
        offers = [Offer(update.row, update.base, update.samples) for update in waiting]
        result, score = self._gated(offers)
        refused = [(by_row[offer.number], reason) for offer, reason in result.refused]
        for update, reason in refused:
            log.warning(
                "update refused device=%s id=%s reason=%s",
                update.key.device,
                update.key.update_id,
                reason,
            )
        folded = [by_row[offer.number] for offer in result.folded]
        if result.parameters is None:
            with self._books.registry.transaction():
                self._settle([], refused)
        else:
            self._publish(
                result.parameters,
                now,
                because="folded",
                folded=folded,
                refused=refused,
                score=score,
            )
        self._waiting = None
        return waiting

    def _fold(self, offers: Sequence[Offer]) -> Fold:
        assert self._parameters is not None

        def payload_of(offer: Offer) -> bytes:
            self._books.on_progress()
            return self._books.updates.payload(offer.number)

        return aggregator.fold(
            self._parameters,
            offers,
            payload_of,
            self.spec.shared,
            self._config.aggregation,
            current=self.newest,
        )

    def _gated(self, offers: Sequence[Offer]) -> tuple[Fold, Score | None]:
        """Fold ``offers``; where the result is much worse than its parent, find out whose fault.

        Then each update is tried alone: those that do such harm by themselves are refused, and the
        others folded without them. If that is as bad, all are refused. A refused update goes back
        into its device's residual, so what was good in it comes again with the next one.
        """
        result = self._fold(offers)
        score = self._score(result)
        limit = self._limit()
        if not self._is_worse(score, limit):
            return result, score
        refused = list(result.refused)
        harmless = []
        for offer in result.folded:
            alone = self._score(self._fold([offer]))
            if self._is_worse(alone, limit):
                refused.append((offer, f"alone it lowers the metric to {_metric(alone):.4f}"))
            else:
                harmless.append(offer)
        if harmless and len(harmless) < len(result.folded):
            result = self._fold(harmless)
            score = self._score(result)
            refused += result.refused
            if not self._is_worse(score, limit):
                return result._replace(refused=tuple(refused)), score
        reason = f"the release made from it would have had metric {_metric(score):.4f}"
        refused += [(offer, reason) for offer in result.folded if offer in harmless]
        return Fold(None, (), tuple(refused)), None

    def _limit(self) -> float | None:
        """Return the worst metric that may be published, as larger-is-better; None: any."""
        gate = self._config.evaluation
        if gate is None or gate.max_drop is None or self._evaluate is None:
            return None
        assert self._current is not None
        if self._current.metric is None:
            return None
        return self._sign * self._current.metric - gate.max_drop

    @property
    def _sign(self) -> int:
        return -1 if self.spec.metric == "mse" else 1

    def _is_worse(self, score: Score | None, limit: float | None) -> bool:
        """Whether ``score`` is beyond ``limit``; a metric that is not a number is."""
        if score is None or limit is None:
            return False
        return not self._sign * score.metric >= limit

    def _score(self, result: Fold) -> Score | None:
        if self._evaluate is None or result.parameters is None:
            return None
        return self._evaluate(result.parameters)

    # Making a release

    def _publish(
        self,
        parameters: Vector,
        now: float,
        *,
        because: str,
        number: int | None = None,
        folded: Sequence[WaitingUpdate] = (),
        refused: Sequence[tuple[WaitingUpdate, str]] = (),
        score: Score | None = None,
    ) -> None:
        """Make ``parameters`` the next release: artifacts first, then one transaction."""
        if score is None and self._evaluate is not None:
            score = self._evaluate(parameters)
        artifact = self._books.artifacts.put(write_vector(parameters))
        accuracy = score.metric if score and self.spec.metric == "accuracy" else None
        manifest = self._manifest(number or self.newest + 1, self.newest, artifact, accuracy)
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
            self._books.releases.add(release)
            self._settle(folded, refused, release.number)
        self._current, self._parameters = release, parameters
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
        self._tidy()

    def _manifest(
        self, number: int, parent: int, parameters: Artifact, accuracy: float | None
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
            training=self._config.training_plan(number),
            codec=self._config.codec,
            accuracy=accuracy,
        )

    def _bytes_down(self, manifest: Manifest) -> int:
        held = set(self._current.manifest.artifacts.values()) if self._current else set()
        fresh = set(manifest.artifacts.values()) - held
        return len(encode_manifest(manifest)) + sum(artifact.size for artifact in fresh)

    def _settle(
        self,
        folded: Sequence[WaitingUpdate],
        refused: Sequence[tuple[WaitingUpdate, str]],
        release: int = 0,
    ) -> None:
        for update in folded:
            self._books.updates.settle(update, "folded", release=release)
        for update, reason in refused:
            self._books.updates.settle(update, "refused", reason=reason)
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


def _metric(score: Score | None) -> float:
    return score.metric if score else float("nan")
