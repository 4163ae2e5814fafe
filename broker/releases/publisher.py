"""What every device may fetch: manifests and artifact chunks, as retained messages.

The broker is a cache. What should be in it follows from the registry's newest releases; what we
believe to be in it stands in the registry too, so that old artifacts are cleared even if we were
killed in between. Publishing goes on as the link's window allows, and never blocks: blobs first,
then the manifest that promises them, then what can be cleared.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from broker.records.published_records import PublishedRecords, PublishedRow
from broker.records.registry import Registry
from broker.records.release_records import ReleaseRecords
from broker.releases.artifact_store import ArtifactStore
from models.errors import TransientError, UsageError
from models.protocol.chunked_transfer import MAX_CHUNK
from models.protocol.manifest import Manifest, encode_manifest
from models.protocol.topics import Topics
from models.transport.link import Limits, Link
from models.transport.refusals import TOO_LARGE, Refusals

__all__ = ["Publisher"]

log = logging.getLogger(__name__)

RESERVED = 2  # publications of the window that stay free for receipts, where it has more than that
SMALLEST_CHUNK = 1024  # bytes; the protocol has none below
ASKED_AGAIN_S = 5.0  # a chunk that many devices miss at once is published once
ASKED_OFTEN = 4  # for the same chunk: the broker does not pass it on
REFUSED_PAUSE_S = 30.0  # after the broker did not want one of ours


class _Item(NamedTuple):
    """One retained message: a chunk, or (``number`` -1) a manifest. ``clear`` takes it back."""

    name: str  # as in `PublishedRow`
    digest: str  # of the content, and how it is cut: a new manifest is another item
    number: int
    clear: bool = False


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
        self._registry = registry
        self._records = PublishedRecords(registry)
        self._releases = releases
        self._artifacts = artifacts
        self._tasks = tasks
        self._rows: dict[str, PublishedRow] = {}
        self._manifests: dict[str, bytes] = {}  # by name
        self._queue: dict[_Item, None] = {}  # an ordered set
        self._asked: dict[_Item, None] = {}  # likewise; goes first
        self._asked_at: dict[_Item, float] = {}
        self._asked_often: dict[_Item, int] = {}  # how often since `plan`
        self._dropped = ""  # what the broker seems to drop in silence
        self._in_flight: dict[int, _Item] = {}
        self._open: dict[str, set[_Item]] = {}  # by name: what is not known to be published
        self._on_offer: set[str] = set()  # names that devices may ask for
        self._paused_until = 0.0
        self._reserved = RESERVED
        self._max_chunk: int | None = None  # bytes that the broker takes; None: not known yet
        self._refused_above = MAX_CHUNK  # what it refused was larger
        self._wanted: set[str] = set()  # names of what must be retained
        self._refusals = Refusals()
        self._unfit = ""  # what the broker does not take for its size
        self.is_outdated = False  # what is queued: `plan` is to be called

    @property
    def problem(self) -> str:
        """What the broker does not take of us, for people; "" if nothing."""
        refused = self._refusals.sentence("this server", "it")
        return "; ".join(filter(None, (self._unfit, refused, self._dropped)))

    def connected(self, limits: Limits) -> None:
        """Keep to what the broker takes that answers now."""
        reserved = max(0, min(RESERVED, limits.window - 1))
        if reserved < self._reserved:
            log.warning(
                "the MQTT broker takes few messages at a time, so releases go out slowly "
                "receive_maximum=%d",
                limits.window,
            )
        self._reserved = reserved
        before, self._max_chunk = self._max_chunk, min(limits.max_chunk, self._refused_above)
        is_cut_right = all(
            self._rows[name].chunk_size <= self._max_chunk
            for name in self._wanted & set(self._rows)
        )
        if self._unfit or not is_cut_right or before not in (None, self._max_chunk):
            self.is_outdated = True
        if not is_cut_right:
            log.warning(
                "the MQTT broker takes small messages only, so releases go out in smaller chunks "
                "max_packet=%d chunk=%d",
                *(limits.max_packet, self._max_chunk),
            )

    @property
    def backlog(self) -> int:
        """How many messages are still to be handed to the broker."""
        return len(self._queue) + len(self._asked)

    @property
    def is_idle(self) -> bool:
        """Whether the broker took all that there is to publish."""
        return not self.backlog and not self._in_flight

    def plan(self) -> None:
        """Compare the registry's releases with what the broker has; queue the difference.

        Raises:
            TransientError: the disk is full or failing; nothing was changed.
        """
        rows = {row.name: row for row in self._records.rows()}
        wanted, kept, manifests = self._to_retain(rows)
        stale = [name for name in rows if name not in wanted and name not in kept]
        with self._registry.transaction():
            for name, row in wanted.items():
                there = rows.get(name)
                if there is None or there[:4] != row[:4] or name in self._artifacts.mended:
                    rows[name] = row
                    self._records.will_publish(row)
            for name in stale:  # half cleared is not published any more
                rows[name] = rows[name]._replace(done=False)
                self._records.will_publish(rows[name])
        self._artifacts.mended.clear()
        self._rows, self._manifests, self._on_offer = rows, manifests, wanted.keys() | kept
        self._wanted = set(wanted)
        self.is_outdated, self._unfit, self._dropped = False, "", ""
        self._asked_often.clear()
        flying = set(self._in_flight.values())
        self._asked = {item: None for item in self._asked if item.name in self._on_offer}
        self._queue, self._open = {}, {}
        # Blobs before the manifests that promise them: a name with a slash is a manifest's.
        for name in sorted(wanted, key=lambda name: "/" in name):
            if not rows[name].done:
                self._open[name] = set(_items(rows[name]))
                self._queue |= {i: None for i in _items(rows[name]) if i not in flying}
        for name in stale:
            items = [item._replace(clear=True) for item in _items(rows[name])]
            self._open[name] = set(items)
            self._queue |= dict.fromkeys(items)

    def _to_retain(
        self, rows: Mapping[str, PublishedRow]
    ) -> tuple[dict[str, PublishedRow], set[str], dict[str, bytes]]:
        """Return what must be retained, what may stay, and the manifests."""
        wanted, kept, manifests = {}, set(), {}
        for task in self._tasks:
            current = self._releases.current(task)
            if current is None:
                continue
            manifest = self._fitted(current.manifest, rows)
            name, data = f"task/{task}", encode_manifest(manifest)
            manifests[name] = data
            digest = hashlib.sha256(data).hexdigest()
            wanted[name] = PublishedRow(name, digest, len(data), 0, done=False)
            wanted |= _blobs(manifest)
            if parent := self._releases.get(task, manifest.parent):
                kept |= {artifact.sha256 for artifact in parent.manifest.files}
        return wanted, kept, manifests

    def _fitted(self, manifest: Manifest, rows: Mapping[str, PublishedRow]) -> Manifest:
        """Return ``manifest`` with chunks that the broker takes.

        Before it has answered they are those that it took the last time.
        """
        most = self._max_chunk
        if most is None:
            cuts = [rows[a.sha256].chunk_size for a in manifest.files if a.sha256 in rows]
            most = min(cuts, default=manifest.chunk_size)
        return msgspec.structs.replace(manifest, chunk_size=min(manifest.chunk_size, most))

    def broker_was_wiped(self) -> None:
        """Publish everything again: the broker has no session of ours, so maybe nothing else."""
        try:
            with self._registry.transaction():
                self._records.was_wiped()
            self.plan()
        except TransientError as error:  # what is known suffices to go on
            log.warning("publishing again without noting it: %s", error)
            for name in sorted(self._on_offer & self._rows.keys()):
                self._queue |= dict.fromkeys(_items(self._rows[name]))

    def ask_chunks(self, blobs: Mapping[str, Sequence[int]], now: float) -> int:
        """Publish these chunks again, for a device that waits for them; return how many are ours.

        Chunks of artifacts that are not retained any more are left out: a manifest that names
        others is on its way to whoever asks.
        """
        found = 0
        for sha256, numbers in blobs.items():
            if sha256 not in self._on_offer or sha256 not in self._rows:
                continue
            if self._rows[sha256].chunk_size > (self._max_chunk or MAX_CHUNK):
                continue  # of the release before: the new one is cut as the broker takes it
            wanted = set(numbers)
            for item in _items(self._rows[sha256]):
                if item.number in wanted:
                    found += 1
                    self._ask(item, now)
        return found

    def ask_manifest(self, task: str, now: float) -> None:
        """Publish the manifest of ``task`` again."""
        if row := self._rows.get(f"task/{task}"):
            self._ask(next(_items(row)), now)

    def _ask(self, item: _Item, now: float) -> None:
        asked_at = self._asked_at.get(item)
        if asked_at is not None and 0 <= now - asked_at < ASKED_AGAIN_S:
            return
        self._asked_at[item] = now
        self._asked_often[item] = self._asked_often.get(item, 0) + 1
        if len(self._asked_at) > 10_000:
            self._asked_at, self._asked_often = {item: now}, {}
        if self._asked_often.get(item, 0) >= ASKED_OFTEN and item.number >= 0:
            self._seems_dropped(item)
        if item not in self._in_flight.values():
            self._queue.pop(item, None)
            self._asked[item] = None

    def _seems_dropped(self, item: _Item) -> None:
        """A broker of MQTT 3.1.1 acknowledges also what it does not pass on."""
        row = self._rows[item.name]
        size = min(row.chunk_size, row.size)
        if not self._dropped:
            log.warning("devices ask again and again for a chunk that was published bytes=%d", size)
        self._dropped = (
            f"devices ask again and again for a chunk of {size} bytes that the broker took each "
            "time: if it drops messages of that size (Mosquitto: message_size_limit), raise its "
            "limit, or set a smaller fleet.chunk_kib"
        )

    def pump(self, link: Link, now: float) -> None:
        """Hand over as much as the window allows."""
        if self.is_outdated or now < self._paused_until <= now + REFUSED_PAUSE_S:
            return
        while link.window() > self._reserved and (item := self._next()):
            try:
                topic, payload = self._message(item)
            except OSError as error:
                log.error("cannot read artifact %s: %s", item.name, error.strerror)
                continue
            try:
                token = link.publish(topic, payload, retain=True)
            except UsageError as error:
                self._does_not_fit(topic, f"{error}")
                continue
            self._in_flight[token] = item

    def _next(self) -> _Item | None:
        for queue in (self._asked, self._queue):
            if queue:
                item = next(iter(queue))
                del queue[item]
                return item
        return None

    def _message(self, item: _Item) -> tuple[str, bytes]:
        if item.number < 0:
            topic = self._topics.release(item.name.removeprefix("task/"))
            return topic, b"" if item.clear else self._manifests[item.name]
        topic = self._topics.blob(item.name, item.number)
        if item.clear:
            return topic, b""
        chunk_size = self._rows[item.name].chunk_size
        return topic, self._artifacts.chunk(item.name, item.number, chunk_size)

    def published(self, token: int, refused: str, now: float) -> None:
        """Take note that the broker took over one of ours, or that it ``refused``."""
        item = self._in_flight.pop(token, None)
        if item is None:
            return
        self._refusals.may_write("task/#" if item.number < 0 else "blob/#", refused)
        if refused:
            self._was_refused(item, refused, now)
            return
        still_open = self._open.get(item.name)
        if still_open is None:
            return
        still_open.discard(item)
        if still_open:
            return
        del self._open[item.name]
        self._note_done(item)

    def _was_refused(self, item: _Item, refused: str, now: float) -> None:
        row = self._rows.get(item.name)
        if refused == TOO_LARGE and item.number >= 0 and row is not None:
            if item.digest != _items_digest(row) or self.is_outdated:
                return  # of a size that is given up already
            if row.chunk_size > SMALLEST_CHUNK:
                self._max_chunk = max(SMALLEST_CHUNK, row.chunk_size // 2 // 1024 * 1024)
                self._refused_above = self._max_chunk
                self._refusals.may_write("blob/#", "")
                self.is_outdated = True
                log.warning(
                    "the MQTT broker refused %d bytes as too large; smaller chunks chunk=%d",
                    *(row.chunk_size, self._max_chunk),
                )
                return
        if item in self._open.get(item.name, ()):
            self._queue[item] = None
        self._paused_until = now + REFUSED_PAUSE_S

    def _does_not_fit(self, topic: str, why: str) -> None:
        if not self._unfit:
            log.error("cannot publish topic=%s: %s", topic, why)
        self._unfit = f"no device gets what belongs on {topic}: {why}"

    def _note_done(self, item: _Item) -> None:
        try:
            with self._registry.transaction():
                if item.clear:
                    self._records.was_cleared(item.name)
                else:
                    self._records.was_published(item.name)
        except TransientError as error:  # then it is published once more after a restart
            log.warning("published, but not noted: %s", error)
            return
        if item.clear:
            self._rows.pop(item.name, None)
        elif item.number < 0:
            log.info("release published topic=%s", item.name)


def _blobs(manifest: Manifest) -> dict[str, PublishedRow]:
    return {
        artifact.sha256: PublishedRow(
            artifact.sha256, artifact.sha256, artifact.size, manifest.chunk_size, done=False
        )
        for artifact in manifest.files
    }


def _items(row: PublishedRow) -> Iterator[_Item]:
    if "/" in row.name:
        yield _Item(row.name, row.digest, -1)
        return
    for number in range(max(1, -(-row.size // row.chunk_size))):
        yield _Item(row.name, _items_digest(row), number)


def _items_digest(row: PublishedRow) -> str:
    """Return the `_Item.digest` of an artifact's chunks: cut anew they are others."""
    return f"{row.digest}/{row.chunk_size}"
