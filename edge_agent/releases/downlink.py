"""From a manifest to an installed release: fetches what is missing, chunk by chunk, resumably.

Flow control is by subscription: at most `WINDOW` exact chunk topics at a time, each given up when
its chunk is on disk. What is on disk counts, so that a restart or a lost session costs nothing.
Nothing is fetched or installed that `admission` refuses or whose digest is not the promised one.
"""

import contextlib
import heapq
import logging
import os
import random
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from edge_agent.board.problems import Problems, told
from edge_agent.releases.admission import refusal, stuck, unfit
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.patching import POLL_S, Patching
from models.errors import DigestMismatchError, PayloadError, TransientError, TrustError
from models.host.backoff import doubled
from models.host.durable import atomic_write
from models.host.files import content_of, delete
from models.protocol.chunked_transfer import Layout
from models.protocol.manifest import Artifact, Kind, Manifest, decode_manifest
from models.protocol.messages import Request
from models.protocol.topics import BlobChunk, Topics
from models.transport.link import WINDOW, Link

__all__ = ["Downlink", "Limits", "Models"]

log = logging.getLogger("edge_agent")

ORDER: tuple[Kind, ...] = ("spec", "train", "infer", "parameters")  # what can refuse comes first
PATIENCE_S = 30.0  # without progress, before the server is asked for chunks; doubles, jittered
LONGEST_PATIENCE_S = 900.0
LONGEST_RETRY_S = 300.0
LONGEST_REPEAT_S = 3600.0  # of a file that keeps arriving damaged: each time costs all its bytes
MOST_ASKED = 256  # chunks in one request
DISK_RETRY_S = 30.0  # a full disk or a starting process: it may be over soon
STARTING_FAILURES = 4
REFUSED_FOR_S = 3600.0  # the same manifest is not tried again before
PATCH_TRIES = 3  # on a disk that fails, before the parameters are fetched whole
REFRESH_S = 8 * 3600.0  # the announcement is fetched again: a broker may drop what it accepted
NEVER_S = 3600.0  # nothing to do until an event comes


class Models(Protocol):
    """Whoever answers with the model: the inference process, or nobody."""

    def load(self, manifest: Manifest) -> str:
        """Switch to a release whose files are here; return "" or why it cannot run.

        Raises:
            TransientError: not able to try now.
        """


class Limits:
    """What a release may cost, in bytes."""

    def __init__(self, *, max_artifact: int, max_release: int) -> None:
        self.max_artifact = max_artifact
        self.max_release = max_release


class Downlink:
    """Follows the releases of one task; its owner passes on events and the time."""

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
        limits: Limits,
        ask: Callable[[Request], None],
        patching: Patching | None = None,
    ) -> None:
        self._link = link
        self._topics = topics
        self._task = task
        self._slots = slots
        self._models = models
        self._directory = directory
        self._problems = problems
        self._rng = rng
        self._limits = limits
        self._request = ask
        self._patching = patching  # None: parameters are always fetched whole
        self._no_patches = False  # for the wanted release: they did not lead to it
        self._damaged: set[str] = set()  # patches that arrived damaged
        self._patch_failures = 0
        self._wanted: Manifest | None = None
        self._refused: tuple[Manifest, float] | None = None
        self._outdated: Manifest | None = None  # announced while a newer one was fetched
        self._absent: dict[str, set[int]] = {}  # digest -> chunks that are not on disk
        self._subscribed: set[BlobChunk] = set()
        self._connected = False
        self._patience_s = PATIENCE_S
        self._impatient_at = 0.0
        self._failures = 0
        self._damages = 0  # of files of the wanted release
        self._disk_failed = False  # the last time that something was written
        self._retry_at = 0.0
        self._refresh_at = 0.0
        self._bytes_seen = 0
        self._is_tidy = False  # nothing lies about that `tidy` would delete
        self.pinned: frozenset[str] = frozenset()  # digests that a running child still reads
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> str:
        return "downloading" if self._wanted else ""

    # -- events

    def on_connected(self, now: float) -> None:
        self._connected = True
        self._subscribed.clear()
        self._follow(now)
        self._progress(now)

    def on_disconnected(self) -> None:
        self._connected = False
        self._subscribed.clear()

    def on_manifest(self, payload: bytes, now: float) -> None:
        """Take note of an announcement; damaged, foreign, older and too large ones are said."""
        if not payload:  # the topic was cleared: nothing is announced, what runs stays
            return
        try:
            manifest = decode_manifest(payload)
        except PayloadError as error:
            self._problems.say("release", f"{error}; it is ignored")
            return
        if manifest == self._wanted:
            return
        if self._refused and self._refused[0] == manifest and now < self._refused[1]:
            return
        if self._is_outdated(manifest, now):
            return
        reason = refusal(
            manifest,
            task=self._task,
            installed=self._slots.release,
            max_artifact=self._limits.max_artifact,
            max_release=self._limits.max_release,
        )
        active = self._slots.active
        if not reason and active and manifest.release == active.release:
            if manifest == active:
                self._problems.clear("release")
                if self._wanted is not None or not self._is_tidy:
                    self._want(None)
                return
            if manifest.artifacts != active.artifacts:
                reason = f"release {manifest.release} was published twice, with different files"
        if reason:
            self._refuse(manifest, reason, now)
            return
        log.info("release announced number=%d installed=%d", manifest.release, self._slots.release)
        self._want(manifest)
        self._failures, self._retry_at = 0, now
        self._progress(now)

    def _is_outdated(self, manifest: Manifest, now: float) -> bool:
        """Whether ``manifest`` is a late copy: a newer one is wanted, so ask what is announced now.

        If the same comes again, it is what a restored server announces.
        """
        if self._wanted is None or manifest.release >= self._wanted.release:
            return False
        if manifest == self._outdated:
            return False
        self._outdated = manifest
        self._follow(now)
        return True

    def on_chunk(self, chunk: BlobChunk, payload: bytes, now: float) -> None:
        """Store a chunk that is missing; ignore any other, and ask for neither again.

        Raises:
            PayloadError: it does not fit where it says it belongs.
            OSError: the disk is full or failing; the chunk is fetched again later.
        """
        self._subscribed.discard(chunk)
        self._link.unsubscribe([self._topics.blob(*chunk)])  # also what an earlier process wanted
        artifact = self._artifact(chunk.sha256)
        if artifact is None or chunk.number not in self._absent.get(chunk.sha256, ()):
            return
        assert self._wanted is not None  # it names the artifact
        try:
            Layout(artifact.size, self._wanted.chunk_size).check(chunk.number, payload)
            folder = self._folder(artifact.sha256)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            atomic_write(f"{folder}/{chunk.number}", payload)
        except PayloadError:
            self._request(Request(blobs={chunk.sha256: (chunk.number,)}))
            self._fail(now)
            if payload:
                raise
            return  # the server cleared it; it will put it back
        except OSError:
            self._fail_on_disk(now)
            raise
        self._absent[chunk.sha256].discard(chunk.number)
        self._failures = 0
        self._progress(now)

    def _follow(self, now: float) -> None:
        """Subscribe to the announcements; the broker sends the retained one at once."""
        self._link.subscribe([self._topics.release(self._task)])
        self._refresh_at = now + REFRESH_S * self._rng.uniform(0.5, 1.25)

    # -- time passes

    def tick(self, now: float) -> float:
        """Do what can be done now; return when to look again.

        Raises:
            OSError: the disk is full or failing; tried again later.
        """
        if self._connected and now >= self._refresh_at:
            self._follow(now)
        if self._wanted is None:
            return now + NEVER_S
        while now >= self._retry_at:
            missing = self._missing(self._wanted)
            complete = [a for a in missing if not self._gaps(a, self._wanted.chunk_size)]
            if complete:
                self._assemble(complete[0], self._wanted, now)
            elif missing:
                return self._fetch(self._wanted, missing, now)
            elif not self._slots.has(self._wanted.artifacts["parameters"]):
                if not self._patched(self._wanted, now):
                    return now + POLL_S
            else:
                self._install(self._wanted, now)
                if self._wanted is None:
                    return now + NEVER_S
        return self._retry_at

    def _fetch(self, wanted: Manifest, missing: tuple[Artifact, ...], now: float) -> float:
        if not self._connected:
            return now + NEVER_S
        if self._disk_failed and not self._disk_takes(wanted, now):
            return self._retry_at
        if missing[0] == wanted.artifacts["spec"]:
            missing = missing[:1]  # it may refuse the release: spend no bytes on the rest before
        free = WINDOW - len(self._subscribed)
        fresh: list[BlobChunk] = []
        for artifact in missing:
            gaps = (BlobChunk(artifact.sha256, i) for i in self._absent[artifact.sha256])
            left = [chunk for chunk in gaps if chunk not in self._subscribed]
            fresh += heapq.nsmallest(free - len(fresh), left)
        if fresh:
            self._link.subscribe([self._topics.blob(*chunk) for chunk in fresh])
            self._subscribed.update(fresh)
        if (seen := self._link.traffic().bytes_down) > self._bytes_seen + 2048:
            self._bytes_seen = seen  # slow is not stuck
            self._progress(now)
        if now >= self._impatient_at:
            self._ask(now)
        return self._impatient_at

    def _assemble(self, artifact: Artifact, wanted: Manifest, now: float) -> None:
        folder = self._folder(artifact.sha256)
        count = Layout(artifact.size, wanted.chunk_size).count
        try:
            self._slots.add(artifact, map(content_of, (f"{folder}/{n}" for n in range(count))))
        except (DigestMismatchError, FileNotFoundError) as error:
            self._problems.say(
                "download",
                f"a file of release {wanted.release} arrived damaged ({told(error)}); "
                "it is fetched again",
            )
            self._discard(artifact.sha256)
            firsts = range(0, count, MOST_ASKED)
            first = firsts[self._damages % len(firsts)]
            asked = tuple(range(first, min(first + MOST_ASKED, count)))
            self._request(Request(blobs={artifact.sha256: asked}))
            self._rest(now, doubled(1.0, self._damages, LONGEST_REPEAT_S))
            self._damages += 1
            if artifact in self._chain(wanted):
                if artifact.sha256 in self._damaged:
                    self._fetch_whole(wanted, "a patch arrived damaged twice")
                self._damaged.add(artifact.sha256)
            return
        except OSError:
            self._fail_on_disk(now)
            raise
        self._discard(artifact.sha256)
        self._problems.clear("download")

    def _patched(self, wanted: Manifest, now: float) -> bool:
        """Make the parameters out of the installed ones; return whether to go on at once."""
        assert self._patching is not None  # else they were fetched
        try:
            if not self._patching.advance(wanted, self._chain(wanted), now):
                return False
        except (TrustError, DigestMismatchError) as error:
            self._fetch_whole(wanted, told(error))
        except (TransientError, OSError) as error:
            self._patch_failures += 1
            self._fail(now, DISK_RETRY_S)
            if self._patch_failures >= PATCH_TRIES:
                self._fetch_whole(wanted, told(error))
        else:
            self._problems.clear("download")
            log.info("release patched number=%d from=%d", wanted.release, self._slots.release)
        return True

    def _fetch_whole(self, wanted: Manifest, reason: str) -> None:
        """Give up the patches of ``wanted``: its parameters do not depend on them."""
        self._no_patches = True
        self._problems.say(
            "download",
            f"release {wanted.release} could not be made from patches ({reason}); "
            "its parameters are fetched whole",
        )

    def stop(self) -> None:
        """End the child, if one runs."""
        if self._patching is not None:
            self._patching.stop()

    def _install(self, manifest: Manifest, now: float) -> None:
        active = self._slots.active
        try:
            installed = self._slots.spec(active) if active else None
            reason = unfit(self._slots.spec(manifest), task=self._task, installed=installed)
            if reason:
                raise TrustError(f"release {manifest.release}: {reason}")
            self._slots.stage(manifest)
            if reason := self._models.load(manifest):
                raise TrustError(f"release {manifest.release} does not run here: {reason}")
            self._slots.activate(manifest)
        except (TrustError, PayloadError) as error:
            self._refuse(manifest, str(error), now)
            return
        except (TransientError, OSError) as error:
            self._fail(now, DISK_RETRY_S)
            if self._failures > STARTING_FAILURES:  # an inference process that starts is none
                self._problems.say("install", f"release {manifest.release} waits: {told(error)}")
            return
        log.info("release installed number=%d", manifest.release)
        for part in ("release", "install", "download"):
            self._problems.clear(part)
        self._refused = None
        self._want(None)

    def tidy(self) -> None:
        """Delete downloads and artifacts that nothing refers to any more."""
        wanted = self._digests(self._wanted)
        with os.scandir(self._directory) as entries:
            unwanted = [entry.path for entry in entries if entry.name not in wanted]
        for folder in unwanted:
            shutil.rmtree(folder, ignore_errors=True)
        self._slots.collect_garbage(wanted | self.pinned)
        self._is_tidy = self._wanted is None and not self.pinned

    # -- details

    def _want(self, manifest: Manifest | None) -> None:
        """Follow another release, or none: what the old one needs and the new one does not goes."""
        self.stop()
        self._problems.clear("fetching")
        self._wanted = manifest
        self._is_tidy = False
        self._no_patches, self._patch_failures, self._damages = False, 0, 0
        self._outdated = None
        self._damaged.clear()
        self._absent.clear()  # the chunk size may differ
        digests = self._digests(manifest)
        gone = sorted(chunk for chunk in self._subscribed if chunk.sha256 not in digests)
        if gone and self._connected:
            self._link.unsubscribe([self._topics.blob(*chunk) for chunk in gone])
        self._subscribed.difference_update(gone)
        with self._problems.contained("storage"):
            self.tidy()

    def _refuse(self, manifest: Manifest, reason: str, now: float) -> None:
        self._refused = (manifest, now + REFUSED_FOR_S)
        if self._wanted == manifest:
            self._want(None)
        self._problems.say("release", f"{reason}; it is refused")

    def _missing(self, wanted: Manifest) -> tuple[Artifact, ...]:
        """Return the artifacts to fetch, in `ORDER`, each once; patches instead of parameters."""
        files = dict.fromkeys(wanted.artifacts[kind] for kind in ORDER)
        parameters = wanted.artifacts["parameters"]
        if not self._slots.has(parameters) and (patches := self._chain(wanted)):
            del files[parameters]
            files |= dict.fromkeys(patches)
        return tuple(artifact for artifact in files if not self._slots.has(artifact))

    def _chain(self, wanted: Manifest) -> tuple[Artifact, ...]:
        """Return the patches that lead from the installed release to ``wanted``, if that is short.

        It is if they have fewer bytes than the parameters themselves, and none is empty.
        """
        if self._patching is None or self._no_patches:
            return ()
        patches = wanted.patches_from(self._slots.release)
        size = sum(patch.size for patch in patches)
        if not all(patch.size for patch in patches):
            return ()
        return patches if size < wanted.artifacts["parameters"].size else ()

    def _gaps(self, artifact: Artifact, chunk_size: int) -> Collection[int]:
        """Return the chunks that are not on disk; files of another chunk size are deleted."""
        if artifact.sha256 not in self._absent:
            layout = Layout(artifact.size, chunk_size)
            absent = set(range(layout.count))
            for entry in _entries(self._folder(artifact.sha256)):
                index = int(entry.name) if entry.name.isdigit() else -1
                if index in absent and entry.stat().st_size == layout.length(index):
                    absent.discard(index)
                else:
                    os.unlink(entry.path)
            self._absent[artifact.sha256] = absent
        return self._absent[artifact.sha256]

    def _discard(self, sha256: str) -> None:
        self._absent.pop(sha256, None)
        shutil.rmtree(self._folder(sha256), ignore_errors=True)

    def _folder(self, sha256: str) -> str:
        """Where the chunks of an artifact lie; no `Path`, see `models.host.files`."""
        return f"{self._directory}/{sha256}"

    def _artifact(self, sha256: str) -> Artifact | None:
        files = self._wanted.files if self._wanted else ()
        return next((artifact for artifact in files if artifact.sha256 == sha256), None)

    @staticmethod
    def _digests(manifest: Manifest | None) -> set[str]:
        return {artifact.sha256 for artifact in manifest.files} if manifest else set()

    def _ask(self, now: float) -> None:
        """The broker has not what we wait for: the server shall put it back."""
        blobs: dict[str, tuple[int, ...]] = {}
        for sha256, index in sorted(self._subscribed):
            blobs[sha256] = (*blobs.get(sha256, ()), index)
        if blobs:
            self._request(Request(blobs=blobs))
        if self._patience_s > PATIENCE_S and self._wanted is not None:  # it was asked before
            self._problems.say("fetching", stuck(self._wanted))
        self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S)
        self._impatient_at = now + self._patience_s * self._rng.uniform(0.5, 1.5)

    def _progress(self, now: float) -> None:
        self._problems.clear("fetching")
        self._patience_s = PATIENCE_S
        self._impatient_at = now + PATIENCE_S * self._rng.uniform(0.5, 1.5)

    def _fail(self, now: float, longest_s: float = LONGEST_RETRY_S) -> None:
        """Leave it alone for a while: 1 s after the first failure, then ever longer."""
        if now < self._retry_at:
            return  # more of the same: what was under way when it failed
        self._rest(now, doubled(1.0, self._failures, longest_s))
        self._failures += 1

    def _fail_on_disk(self, now: float) -> None:
        self._disk_failed = True
        self._fail(now, DISK_RETRY_S)

    def _disk_takes(self, wanted: Manifest, now: float) -> bool:
        """Whether a chunk can be written again, before more of them are sent for nothing."""
        attempt = f"{self._directory}/attempt"
        try:
            atomic_write(attempt, bytes(wanted.chunk_size))
            delete(attempt)
        except OSError as error:
            self._problems.say("download", f"release {wanted.release} waits: {told(error)}")
            self._fail_on_disk(now)
            return False
        self._disk_failed = False
        return True

    def _rest(self, now: float, seconds: float) -> None:
        self._retry_at = now + seconds * self._rng.uniform(0.5, 1.5)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
