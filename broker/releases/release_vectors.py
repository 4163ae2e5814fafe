"""The vectors of one task by name: what was folded, what devices hold, what releases changed.

``exact`` is the sum of all that was folded (x of `broker.releases.release_patches`), ``published``
what devices hold (p): the artifact ``parameters`` of a manifest. A context is what a release
changed of its parent, as devices saw it.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from broker.folding.server_step import ServerState
from broker.records.release_records import ReleaseRecords
from broker.state.artifact_store import ArtifactStore
from broker.state.state_store import Scalars, StateStore, artifact_read
from models.codec.transform.shared_basis import Context
from models.errors import PayloadError, UsageError
from models.protocol.manifest import Artifact, Manifest
from models.protocol.npz import read_vector
from models.task.params import Vector
from models.task.spec import TaskSpec, decode_spec

__all__ = ["ReleaseVectors"]

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")

HELD = 4  # vectors of a kind in memory, for updates of so many different releases


class ReleaseVectors:
    """Holds those of the newest release; reads those of older ones when they are asked for."""

    def __init__(
        self,
        spec: TaskSpec,
        releases: ReleaseRecords,
        artifacts: ArtifactStore,
        store: StateStore,
    ) -> None:
        self._spec = spec
        self._releases = releases
        self._artifacts = artifacts
        self._store = store
        self._held: ServerState | None = None
        self.scalars = Scalars()
        self.since = 0  # the first release that published what the newest does
        self.contexts: dict[int, Context | None] = {}  # by release
        self.bases: dict[int, Vector | None] = {}  # likewise

    @property
    def held(self) -> ServerState:
        """The vectors of the newest release.

        Raises:
            ValueError: there is none yet.
        """
        if self._held is None:
            raise ValueError(f"task {self._spec.task} is not open")
        return self._held

    def became(self, state: ServerState, scalars: Scalars, since: int) -> None:
        """Take note of a new release, which is on disk."""
        self._held = state
        self.scalars = scalars
        self.since = since

    def open(self, manifest: Manifest) -> None:
        """Read the vectors of the newest release, ``manifest``.

        Raises:
            UsageError: they are lost, or those of another task.
            TransientError: the disk does not give them now.
        """
        learned = self._read(manifest.artifacts["spec"])
        if learned is not None and decode_spec(learned).shared != self._spec.shared:
            raise UsageError(
                f"task {self._spec.task}: the bundle's shared tensors are not those of release "
                f"{manifest.release}; give the new model another task name, or use another "
                f"[storage] directory"
            )
        published = self._published(manifest)
        exact = self.load_exact(manifest, published)
        self._held, self.scalars = self._store.load(manifest, exact, published)

    def load_exact(self, manifest: Manifest, published: Vector) -> Vector:
        """Return the exact sum behind ``manifest``; of an older version's release, what it has."""
        self.since = manifest.release
        row = self._releases.folded(self._spec.task)
        if row is None or row.release != manifest.release:
            return published
        self.since = row.since
        data = self._read(row.artifact)
        try:
            return read_vector(data or b"", size=self._spec.shared_size)
        except PayloadError:
            log.error(
                "what was folded and not yet published is lost, its file is damaged task=%s",
                self._spec.task,
            )
            return published

    def context(self, number: int) -> Context | None:
        """Return what release ``number`` changed of its parent; None if that is not known."""
        return _remembered(self.contexts, number, lambda base: Context.of(self.changed(base)))

    def last_patch(self, manifest: Manifest) -> bytes | None:
        """Return the patch that led to what ``manifest`` publishes; None: none did, or it is lost.

        Raises:
            TransientError: the disk does not give it now.
        """
        number = max(manifest.patches, default=None)
        return None if number is None else self._read(manifest.patches[number])

    def published_of(self, number: int) -> Vector | None:
        """Return what devices hold that have release ``number``; None if it is not kept."""
        return _remembered(self.bases, number, self.parameters)

    def parameters(self, number: int) -> Vector | None:
        """Return the same, from disk."""
        release = self._releases.get(self._spec.task, number)
        try:
            return self._published(release.manifest) if release else None
        except UsageError:  # too old to be kept, or damaged
            return None

    def changed(self, number: int) -> Vector | None:
        """Return what release ``number`` changed of its parent, from disk; None as above."""
        release = self._releases.get(self._spec.task, number)
        now, before = (
            self.parameters(one) if release else None
            for one in (number, release.manifest.parent if release else 0)
        )
        return None if now is None or before is None else now - before

    def _published(self, manifest: Manifest) -> Vector:
        data = self._read(manifest.artifacts["parameters"])
        try:
            return read_vector(data or b"", size=self._spec.shared_size)
        except PayloadError:
            raise UsageError(
                f"task {self._spec.task}: the parameters of release {manifest.release} are missing "
                f"or damaged on disk; restore [storage] directory from a backup, or begin anew in "
                f"another one"
            ) from None

    def _read(self, artifact: Artifact) -> bytes | None:
        return artifact_read(self._artifacts, artifact, self._spec.task)


def _remembered(held: dict[int, Kept], number: int, read: Callable[[int], Kept]) -> Kept:
    """Return what ``read`` says of release ``number``; the newest few of it stay in ``held``."""
    if number not in held:
        if len(held) == HELD:
            held.pop(min(held))
        held[number] = read(number)
    return held[number]
