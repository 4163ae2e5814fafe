"""Follows the releases of one task: hears what is announced, and brings it to where it runs.

What to fetch and what to do with it decide `chunk_fetcher` and `release_installer`, how far a
release is says `release_life`. Nothing is followed that `admission` refuses.
"""

import logging
import math
import random
from collections.abc import Callable
from pathlib import Path

from edge_agent.board.problems import Problems
from edge_agent.releases.admission import ReleaseLimits, refusal
from edge_agent.releases.chunk_fetcher import ChunkFetcher
from edge_agent.releases.chunks_on_disk import ChunksOnDisk
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.patching import Patching
from edge_agent.releases.release_installer import Models, ReleaseInstaller
from edge_agent.releases.release_life import ReleaseEvent, ReleaseState, TrackedRelease
from edge_agent.releases.release_pace import ReleasePace
from models.errors import PayloadError, TrustError
from models.protocol.doing import Doing
from models.protocol.manifest import Manifest, decode_manifest
from models.protocol.messages import Request
from models.protocol.topics import BlobChunk, Topics
from models.transport.link import Link

__all__ = ["Downlink"]

log = logging.getLogger("edge_agent")


class Downlink:
    """Its owner passes on events and the time.

    ``pinned`` gives the digests of files that a running child still reads.
    """

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        task: str,
        slots: Slots,
        models: Models,
        directory: Path,
        problems: Problems,
        rng: random.Random,
        limits: ReleaseLimits,
        ask: Callable[[Request], None],
        patching: Patching,
        pinned: Callable[[], frozenset[str]],
        pace: ReleasePace = ReleasePace(),  # noqa: B008 (a value)
    ) -> None:
        self._task = task
        self._slots = slots
        self._problems = problems
        self._limits = limits
        self._pinned = pinned
        self._pace = pace
        self._chunks = ChunksOnDisk(directory)
        self._announcements = _Announcements(link, topics.release(task), rng, pace)
        self._installer = ReleaseInstaller(
            task=task,
            slots=slots,
            models=models,
            patching=patching,
            problems=problems,
            uniform=rng.uniform,
            pace=pace,
        )
        self.fetcher = ChunkFetcher(
            link=link,
            topics=topics,
            chunks=self._chunks,
            store=slots.add,
            on_damaged=self._installer.arrived_damaged,
            problems=problems,
            uniform=rng.uniform,
            ask=ask,
            pace=pace,
        )
        self._wanted: TrackedRelease | None = None
        self._refused: tuple[Manifest, float] | None = None
        self._outdated: Manifest | None = None  # announced while a newer one was fetched
        self._is_tidy = False  # nothing lies about that `tidy` would delete

    @property
    def state(self) -> str:
        """What it is doing, in one word; "" if nothing."""
        return Doing.DOWNLOADING if self._wanted else ""

    # -- events

    def on_connected(self, now: float) -> None:
        self._announcements.on_connected(now)
        self.fetcher.on_connected(now)

    def on_disconnected(self) -> None:
        self._announcements.on_disconnected()
        self.fetcher.on_disconnected()

    def on_chunk(self, chunk: BlobChunk, payload: bytes, now: float) -> None:
        """Store a chunk that is missing; see `ChunkFetcher.on_chunk`."""
        self.fetcher.on_chunk(chunk, payload, now)

    def on_manifest(self, payload: bytes, now: float) -> None:
        """Take note of an announcement; damaged, foreign, older and too large ones are said."""
        if not payload:  # the topic was cleared: nothing is announced, what runs stays
            return
        try:
            manifest = decode_manifest(payload)
        except PayloadError as error:
            self._problems.say("release", f"{error}; it is ignored")
            return
        if self._wanted and manifest == self._wanted.manifest:
            return
        if self._refused and self._refused[0] == manifest and now < self._refused[1]:
            return
        if self._is_outdated(manifest, now):
            return
        active, release = self._slots.active, TrackedRelease(manifest)
        if reason := refusal(manifest, task=self._task, active=active, limits=self._limits):
            self._refuse(release, reason, now)
            return
        if manifest == active:
            self._problems.clear("release")
            if self._wanted is not None or not self._is_tidy:
                self._follow(None, now)
            return
        log.info("release announced number=%d installed=%d", manifest.release, self._slots.release)
        self._follow(release, now)

    def _is_outdated(self, manifest: Manifest, now: float) -> bool:
        """Whether ``manifest`` is a late copy: a newer one is wanted, so ask what is announced now.

        If the same comes again, it is what a restored server announces.
        """
        if self._wanted is None or manifest.release >= self._wanted.manifest.release:
            return False
        if manifest == self._outdated:
            return False
        self._outdated = manifest
        self._announcements.ask(now)
        return True

    # -- time passes

    def tick(self, now: float) -> float:
        """Do what can be done now; return when to look again.

        Raises:
            OSError: the disk is full or failing; tried again later.
        """
        self._announcements.tick(now)
        while (release := self._wanted) is not None:
            rests_until = max(self.fetcher.rests_until, self._installer.rest.at)
            if now < rests_until:
                return rests_until
            moment = now
            if missing := self._installer.missing(release):
                moment = self.fetcher.fetch(missing, now)
            else:
                try:
                    moment = self._installer.advance(release, now)
                except (TrustError, PayloadError) as error:
                    self._refuse(release, str(error), now)
            if release.state is ReleaseState.ACTIVE:
                self._installed(release.manifest, now)
            elif moment > now:
                return moment
        return math.inf  # there is an event when there is something to do

    def stop(self) -> None:
        """End the child, if one runs."""
        self._installer.stop()

    # -- details

    def _installed(self, manifest: Manifest, now: float) -> None:
        log.info("release installed number=%d", manifest.release)
        for part in ("release", "install", "download"):
            self._problems.clear(part)
        self._refused = self._wanted = None
        self._follow(None, now)

    def _refuse(self, release: TrackedRelease, reason: str, now: float) -> None:
        release.happened(ReleaseEvent.REJECTED)
        self._refused = (release.manifest, now + self._pace.refused_s)
        if self._wanted is release:
            self._wanted = None
            self._follow(None, now)
        self._problems.say("release", f"{reason}; it is refused")

    def _follow(self, release: TrackedRelease | None, now: float) -> None:
        """Follow another release, or none: what the old one needs and the new one does not goes."""
        if self._wanted is not None:
            self._wanted.gives_way()
        self._wanted, self._outdated = release, None
        manifest = release.manifest if release else None
        self._installer.follow(manifest)
        self.fetcher.follow(manifest, now)
        with self._problems.contained("storage"):
            self._tidy(manifest)

    def _tidy(self, wanted: Manifest | None) -> None:
        """Delete downloads and artifacts that nothing refers to any more."""
        self._is_tidy = False
        needed = {artifact.sha256 for artifact in wanted.files} if wanted else set()
        pinned = self._pinned()
        self._chunks.keep_only(needed)
        self._slots.collect_garbage(needed | pinned)
        self._is_tidy = wanted is None and not pinned


class _Announcements:
    """The topic on which releases are announced; the broker sends what it retains when asked."""

    def __init__(self, link: Link, topic: str, rng: random.Random, pace: ReleasePace) -> None:
        self._link = link
        self._topic = topic
        self._rng = rng
        self._refresh_s = pace.refresh_s
        self._connected = False
        self._refresh_at = 0.0

    def on_connected(self, now: float) -> None:
        self._connected = True
        self.ask(now)

    def on_disconnected(self) -> None:
        self._connected = False

    def ask(self, now: float) -> None:
        """Subscribe: the broker sends the retained announcement at once."""
        self._link.subscribe([self._topic])
        self._refresh_at = now + self._refresh_s * self._rng.uniform(0.5, 1.25)

    def tick(self, now: float) -> None:
        if self._connected and now >= self._refresh_at:
            self.ask(now)
