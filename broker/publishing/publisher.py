"""What every device may fetch: manifests and artifact chunks, as retained messages.

The broker is a cache. What should be in it follows from the registry's newest releases; what we
believe to be in it stands in the registry too, so that old artifacts are cleared even if we were
killed in between. Publishing goes on as the link's window allows, and never blocks: blobs first,
then the manifest that promises them, then what can be cleared.
"""

import logging
from collections.abc import Mapping, Sequence

from broker.publishing.asked_again import AskedAgain
from broker.publishing.packing import Packing
from broker.publishing.retained import (
    ChunkPiece,
    ManifestPiece,
    Piece,
    Retained,
    pieces_of,
    retained,
)
from broker.records.published_records import PublishedRecords, PublishedRow
from broker.records.registry import Registry
from broker.records.release_records import ReleaseRecords
from broker.state.artifact_store import ArtifactStore
from models.errors import TransientError, UsageError
from models.protocol.manifest import Manifest
from models.protocol.topics import Topics
from models.transport.link import BrokerLimits, Link
from models.transport.refusals import TOO_LARGE, Refusals

__all__ = ["Publisher"]

log = logging.getLogger(__name__)

REFUSED_PAUSE_S = 30.0  # after the broker did not want one of ours


class Publisher:
    """Keeps the broker's retained messages as the registry says they should be."""

    def __init__(
        self,
        topics: Topics,
        registry: Registry,
        releases: ReleaseRecords,
        artifacts: ArtifactStore,
        tasks: Sequence[str],
    ) -> None:
        self._topics = topics
        self._records = PublishedRecords(registry)
        self._releases = releases
        self._artifacts = artifacts
        self._tasks = tasks
        self._retained = Retained({}, (), frozenset(), {})
        self._packing = Packing()
        self._asked = AskedAgain()
        self._queue: dict[Piece, None] = {}  # an ordered set
        self._in_flight: dict[int, Piece] = {}
        self._open: dict[str, set[Piece]] = {}  # by name: what is not known to be published
        self._paused_until = 0.0
        self._refusals = Refusals()
        self._unfit = ""  # what the broker does not take for its size
        self.is_outdated = False  # what is queued: `plan` is to be called

    @property
    def problem(self) -> str:
        """What the broker does not take of us, for people; "" if nothing."""
        refused = self._refusals.sentence("this server", "it")
        return "; ".join(filter(None, (self._unfit, refused, self._asked.dropped)))

    @property
    def backlog(self) -> int:
        """How many messages are still to be handed to the broker."""
        return len(self._queue) + len(self._asked.queue)

    @property
    def is_idle(self) -> bool:
        """Whether the broker took all that there is to publish."""
        return not self.backlog and not self._in_flight

    def connected(self, limits: BrokerLimits) -> None:
        """Keep to what the broker takes that answers now."""
        if self._packing.connected(limits, self._retained.largest) or self._unfit:
            self.is_outdated = True

    def plan(self) -> None:
        """Compare the registry's releases with what the broker has; queue the difference.

        Raises:
            TransientError: the disk is full or failing; nothing was changed.
        """
        there = {row.name: row for row in self._records.rows()}
        plan = retained(self._newest(there), there)
        rows, mended = plan.rows, self._artifacts.mended
        stale = [name for name in there if name not in plan.on_offer]
        with self._records.transaction():
            for name in plan.wanted:
                if name in mended:
                    rows[name] = rows[name]._replace(done=False)
                if rows[name] != there.get(name):
                    self._records.will_publish(rows[name])
            for name in stale:  # half cleared is not published any more
                rows[name] = rows[name]._replace(done=False)
                self._records.will_publish(rows[name])
        mended.clear()
        self._retained = plan
        self.is_outdated, self._unfit = False, ""
        self._asked.planned(plan)
        flying = set(self._in_flight.values())
        self._queue, self._open = {}, {}
        for name in plan.wanted:
            if not rows[name].done:
                pieces = pieces_of(rows[name])
                self._open[name] = set(pieces)
                self._queue |= {piece: None for piece in pieces if piece not in flying}
        for name in stale:
            pieces = pieces_of(rows[name], clear=True)
            self._open[name] = set(pieces)
            self._queue |= dict.fromkeys(pieces)

    def _newest(self, there: Mapping[str, PublishedRow]) -> list[tuple[Manifest, Manifest | None]]:
        """Return the newest release of each task, as the broker takes it, and its parent."""
        found: list[tuple[Manifest, Manifest | None]] = []
        for task in self._tasks:
            if current := self._releases.current(task):
                manifest = self._packing.fitted(current.manifest, there)
                parent = self._releases.get(task, manifest.parent)
                found.append((manifest, parent.manifest if parent else None))
        return found

    def broker_was_wiped(self) -> None:
        """Publish everything again: the broker has no session of ours, so maybe nothing else."""
        try:
            with self._records.transaction():
                self._records.was_wiped()
            self.plan()
        except TransientError as error:  # what is known suffices to go on
            log.warning("publishing again without noting it: %s", error)
            for name in sorted(self._retained.on_offer & self._retained.rows.keys()):
                self._queue |= dict.fromkeys(pieces_of(self._retained.rows[name]))

    def ask_chunks(self, blobs: Mapping[str, Sequence[int]], now: float) -> int:
        """Publish these chunks again, for a device that waits for them; return how many are ours.

        Chunks of artifacts that are not retained any more are left out: a manifest that names
        others is on its way to whoever asks.
        """
        found = 0
        for sha256, numbers in blobs.items():
            row = self._retained.rows.get(sha256)
            if row is None or sha256 not in self._retained.on_offer:
                continue
            if not self._packing.takes(row.chunk_size):
                continue  # of the release before: the new one is cut as the broker takes it
            wanted = set(numbers)
            for piece in pieces_of(row):
                if isinstance(piece, ChunkPiece) and piece.number in wanted:
                    found += 1
                    self._ask(piece, row, now)
        return found

    def ask_manifest(self, task: str, now: float) -> None:
        """Publish the manifest of ``task`` again."""
        if row := self._retained.rows.get(ManifestPiece(task, "").name):
            self._ask(ManifestPiece(task, row.digest), row, now)

    def _ask(self, piece: Piece, row: PublishedRow, now: float) -> None:
        is_due = self._asked.is_due(piece, min(row.chunk_size, row.size), now)
        if is_due and piece not in self._in_flight.values():
            self._queue.pop(piece, None)
            self._asked.queue[piece] = None

    def pump(self, link: Link, now: float) -> None:
        """Hand over as much as the window allows."""
        if self.is_outdated or now < self._paused_until:
            return
        while link.window() > self._packing.reserved and (piece := self._next()):
            try:
                topic, payload = self._message(piece)
            except OSError as error:
                log.error("cannot read artifact %s: %s", piece.name, error.strerror)
                continue
            try:
                token = link.publish(topic, payload, retain=True)
            except UsageError as error:
                self._does_not_fit(topic, f"{error}")
                continue
            self._in_flight[token] = piece

    def _next(self) -> Piece | None:
        for queue in (self._asked.queue, self._queue):
            if queue:
                piece = next(iter(queue))
                del queue[piece]
                return piece
        return None

    def _message(self, piece: Piece) -> tuple[str, bytes]:
        match piece:
            case ManifestPiece(task):
                payload = b"" if piece.clear else self._retained.manifests[task]
                return self._topics.release(task), payload
            case ChunkPiece(sha256, chunk_size, number):
                payload = b"" if piece.clear else self._artifacts.chunk(sha256, number, chunk_size)
                return self._topics.blob(sha256, number), payload

    def published(self, token: int, refused: str, now: float) -> None:
        """Take note that the broker took over one of ours, or that it ``refused``."""
        piece = self._in_flight.pop(token, None)
        if piece is None:
            return
        self._refusals.may_write(_topics_of(piece), refused)
        if refused:
            self._was_refused(piece, refused, now)
            return
        still_open = self._open.get(piece.name)
        if still_open is None:
            return
        still_open.discard(piece)
        if still_open:
            return
        del self._open[piece.name]
        self._note_done(piece)

    def _was_refused(self, piece: Piece, refused: str, now: float) -> None:
        row = self._retained.rows.get(piece.name)
        if refused == TOO_LARGE and isinstance(piece, ChunkPiece) and row is not None:
            if piece.chunk_size != row.chunk_size or self.is_outdated:
                return  # of a size that is given up already
            if self._packing.refused(row.chunk_size):
                self._refusals.may_write(_topics_of(piece), "")
                self.is_outdated = True
                return
        if piece in self._open.get(piece.name, ()):
            self._queue[piece] = None
        self._paused_until = now + REFUSED_PAUSE_S

    def _does_not_fit(self, topic: str, why: str) -> None:
        if not self._unfit:
            log.error("cannot publish topic=%s: %s", topic, why)
        self._unfit = f"no device gets what belongs on {topic}: {why}"

    def _note_done(self, piece: Piece) -> None:
        try:
            with self._records.transaction():
                if piece.clear:
                    self._records.was_cleared(piece.name)
                else:
                    self._records.was_published(piece.name)
        except TransientError as error:  # then it is published once more after a restart
            log.warning("published, but not noted: %s", error)
            return
        if piece.clear:
            self._retained.rows.pop(piece.name, None)
        elif isinstance(piece, ManifestPiece):
            log.info("release published topic=%s", piece.name)


def _topics_of(piece: Piece) -> str:
    return "task/#" if isinstance(piece, ManifestPiece) else "blob/#"
