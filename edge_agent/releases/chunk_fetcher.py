"""Fetches the files of one release chunk by chunk, resumably; refuses what has another digest.

Flow control is by subscription: at most `WINDOW` exact chunk topics at a time, each given up when
its chunk is on disk.
"""

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from edge_agent.board.problems import Problems, sentence_of
from edge_agent.releases.admission import stuck
from edge_agent.releases.chunks_on_disk import ChunksOnDisk
from edge_agent.releases.release_pace import ReleasePace
from models.errors import DigestMismatchError, PayloadError
from models.host.backoff import Backoff
from models.protocol.manifest import Artifact, Manifest
from models.protocol.messages import Request
from models.protocol.topics import BlobChunk, Topics
from models.transport.link import WINDOW, Link

__all__ = ["ChunkFetcher"]

MOST_ASKED = 256  # chunks in one request
MOVED_BYTES = 2048  # that came since the last look: slow is not stuck
OTHERS = 2  # chunks' worth of bytes without a chunk: these were of something else


class ChunkFetcher:
    """Its owner says which release is followed, and passes on events and the time.

    ``store`` takes the pieces of a file that is whole, as `Slots.add`; ``on_damaged`` hears of one
    that was something else.
    """

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        chunks: ChunksOnDisk,
        store: Callable[[Artifact, Iterable[bytes]], None],
        on_damaged: Callable[[Artifact], None],
        problems: Problems,
        uniform: Callable[[float, float], float],
        ask: Callable[[Request], None],
        pace: ReleasePace,
    ) -> None:
        self._window = _Window(link, topics)
        self._chunks = chunks
        self._store = store
        self._tell_damaged = on_damaged
        self._problems = problems
        self._request = ask
        self._pace = pace
        self._wanted: Manifest | None = None
        self._patience = Backoff(pace.patience_s, pace.longest_patience_s, uniform=uniform)
        self.rest = Backoff(1.0, pace.longest_retry_s, uniform=uniform)
        self._repeats = Backoff(1.0, pace.longest_repeat_s, uniform=uniform)  # of damaged files

    @property
    def rests_until(self) -> float:
        """When to go on after what failed."""
        return max(self.rest.at, self._repeats.at)

    def follow(self, manifest: Manifest | None, now: float) -> None:
        """Fetch for another release, or for none; topics that only the old one needs are given up.

        Chunks that both need stay, unless their size differs.
        """
        self._problems.clear("fetching")
        self._wanted = manifest
        self.rest.worked()
        self._repeats.worked()
        self._window.keep_only({artifact.sha256 for artifact in manifest.files} if manifest else ())
        if manifest is not None:
            self._window.came()
            self._chunks.begin(manifest.chunk_size)
            self._progress(now)

    # -- events

    def on_connected(self, now: float) -> None:
        self._window.open()
        self._progress(now)

    def on_disconnected(self) -> None:
        self._window.close()

    def on_chunk(self, chunk: BlobChunk, payload: bytes, now: float) -> None:
        """Store a chunk that is missing; ignore any other, and ask for neither again.

        Raises:
            PayloadError: it does not fit where it says it belongs.
            OSError: the disk is full or failing; the chunk is fetched again later.
        """
        self._window.drop([chunk])  # also what an earlier process wanted
        artifact = self._artifact(chunk.sha256)
        if artifact is None or not self._chunks.lacks(*chunk):
            return
        try:
            self._chunks.store(artifact, chunk.number, payload)
        except PayloadError:
            self._request(Request(blobs={chunk.sha256: (chunk.number,)}))
            self._fail(now)
            if payload:
                raise
            return  # the server cleared it; it will put it back
        except OSError:
            self._fail(now, self._pace.disk_retry_s)
            raise
        self.rest.failures = 0  # what rests goes on resting
        self._window.came()
        self._progress(now)

    # -- time passes

    def fetch(self, missing: Sequence[Artifact], now: float) -> float:
        """Hand over a file that is whole, or ask for chunks; return when to look again.

        Without a connection never: there is an event when it comes.

        Raises:
            OSError: the disk is full or failing; tried again later.
        """
        for artifact in missing:
            if not self._chunks.absent(artifact):
                self._hand_over(artifact, now)
                return now
        if not self._window.is_open:
            return math.inf
        if self._chunks.is_failing and not self._disk_takes(now):
            return self.rests_until
        self._window.ask(
            (BlobChunk(artifact.sha256, number) for number in self._chunks.absent(artifact))
            for artifact in missing
        )
        if self._window.has_moved(most=OTHERS * self._chunk_size):
            self._progress(now)
        if self._patience.due(now):
            self._ask_for_chunks(now)
        return self._patience.at

    def _hand_over(self, artifact: Artifact, now: float) -> None:
        try:
            self._store(artifact, self._chunks.pieces(artifact))
        except (DigestMismatchError, FileNotFoundError) as error:
            self._on_damaged(artifact, sentence_of(error), now)
        except OSError:
            self._chunks.is_failing = True
            self._fail(now, self._pace.disk_retry_s)
            raise
        else:
            self._chunks.discard(artifact.sha256)
            self._problems.clear("download")

    def _on_damaged(self, artifact: Artifact, reason: str, now: float) -> None:
        """Fetch a file again; which of its chunks is damaged nobody can tell, so ask in turn."""
        self._problems.say(
            "download",
            f"a file of release {self._release} arrived damaged ({reason}); it is fetched again",
        )
        count = self._chunks.count(artifact)
        self._chunks.discard(artifact.sha256)
        firsts = range(0, count, MOST_ASKED)
        first = firsts[self._repeats.failures % len(firsts)]
        asked = tuple(range(first, min(first + MOST_ASKED, count)))
        self._request(Request(blobs={artifact.sha256: asked}))
        self._repeats.failed(now)
        self._tell_damaged(artifact)

    def _ask_for_chunks(self, now: float) -> None:
        """The broker has not what we wait for: the server shall put it back."""
        blobs: dict[str, tuple[int, ...]] = {}
        for sha256, number in sorted(self._window.chunks):
            blobs[sha256] = (*blobs.get(sha256, ()), number)
        if blobs:
            self._request(Request(blobs=blobs))
        if self._patience.failures > 1 and self._wanted is not None:  # it was asked before
            self._problems.say("fetching", stuck(self._wanted))
        self._patience.failed(now)

    # -- details

    @property
    def _chunk_size(self) -> int:
        return self._wanted.chunk_size if self._wanted else 0

    @property
    def _release(self) -> int:
        return self._wanted.release if self._wanted else 0

    def _artifact(self, sha256: str) -> Artifact | None:
        files = self._wanted.files if self._wanted else ()
        return next((artifact for artifact in files if artifact.sha256 == sha256), None)

    def _progress(self, now: float) -> None:
        """Be patient from now on."""
        self._problems.clear("fetching")
        self._patience.worked()
        self._patience.failed(now)

    def _fail(self, now: float, longest_s: float | None = None) -> None:
        """Leave it alone for a while; more of what was under way when it failed counts once."""
        if now >= self.rests_until:
            self.rest.failed(now, longest_s=longest_s)

    def _disk_takes(self, now: float) -> bool:
        try:
            self._chunks.try_writing()
        except OSError as error:
            self._problems.say("download", f"release {self._release} waits: {sentence_of(error)}")
            self._fail(now, self._pace.disk_retry_s)
            return False
        return True


class _Window:
    """The chunk topics that are subscribed to: the broker sends no others."""

    def __init__(self, link: Link, topics: Topics) -> None:
        self.chunks: set[BlobChunk] = set()
        self.is_open = False  # connected
        self._link = link
        self._topics = topics
        self._bytes_seen = 0
        self._bytes_then = 0  # when the last chunk came

    def open(self) -> None:
        self.is_open = True
        self.chunks.clear()
        self.came()

    def came(self) -> None:
        """Take note that a chunk came, or that the first one may."""
        self._bytes_then = self._link.traffic().bytes_down

    def close(self) -> None:
        self.is_open = False
        self.chunks.clear()

    def ask(self, gaps: Iterable[Iterator[BlobChunk]]) -> None:
        """Subscribe to the first of ``gaps``, file by file, while there is room."""
        fresh: list[BlobChunk] = []
        for chunks in gaps:
            free = WINDOW - len(self.chunks) - len(fresh)
            fresh += heapq.nsmallest(free, (c for c in chunks if c not in self.chunks))
        if fresh:
            self._link.subscribe([self._topics.blob(*chunk) for chunk in fresh])
            self.chunks.update(fresh)

    def keep_only(self, digests: Collection[str]) -> None:
        """Give up the chunks of all files but those with these digests."""
        self.drop(sorted(chunk for chunk in self.chunks if chunk.sha256 not in digests))

    def drop(self, chunks: Sequence[BlobChunk]) -> None:
        if chunks:
            self._link.unsubscribe([self._topics.blob(*chunk) for chunk in chunks])
            self.chunks.difference_update(chunks)

    def has_moved(self, *, most: int) -> bool:
        """Whether more than a few bytes came since the last time that they did.

        Beyond ``most`` without a chunk they are no part of one: receipts come, too.
        """
        if (seen := self._link.traffic().bytes_down) <= self._bytes_seen + MOVED_BYTES:
            return False
        self._bytes_seen = seen
        return seen - self._bytes_then <= most
