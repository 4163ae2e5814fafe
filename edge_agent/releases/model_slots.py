"""The releases on this device: two slots, one of them active, over files named by their digest.

A release is written into the passive slot, then one small file makes it the active one: a power
cut at any step leaves a whole, verified model active. Artifacts that two releases share are stored
once.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent.releases.release_life import ReleaseEvent, ReleaseState, TrackedRelease
from models.errors import DigestMismatchError, PayloadError, TransientError
from models.host.durable import atomic_write, atomic_write_pieces, sync_directory
from models.host.files import content_of, delete, patiently
from models.protocol.manifest import (
    Artifact,
    Kind,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from models.task.spec import TaskSpec, decode_spec

__all__ = ["BLOCK", "Slots"]

BLOCK = 1 << 18  # bytes read at a time when a file is hashed or copied

_Slot = Literal["a", "b"]


class _Active(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slot: _Slot


class Slots:
    """The model store below ``directory``.

    On opening, the active release is verified to the last byte; a damaged one gives way to the
    other slot's. ``is_owner`` False changes nothing on disk: for a look beside a running agent.
    """

    def __init__(self, directory: Path, *, is_owner: bool = True) -> None:
        self._directory = directory
        self._is_owner = is_owner
        self._artifacts = directory / "artifacts"
        self._files: dict[_Slot, Path] = {
            slot: directory / f"slot-{slot}.json" for slot in ("a", "b")
        }
        if is_owner:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            for draft in self._artifacts.glob("*.draft"):  # a write that a power cut ended
                draft.unlink()
        self._releases: dict[_Slot, TrackedRelease] = {}  # what the slots hold, once it was read
        self.damaged: list[str] = []  # what was found broken, in sentences
        for slot in self._preferred():
            release = self._held(slot)
            if release is None:
                continue
            if self._is_whole(release.manifest):
                if release.state is not ReleaseState.ACTIVE:
                    release.happened(ReleaseEvent.TAKES_OVER)
                break
            release.happened(ReleaseEvent.BROKEN)

    @property
    def active(self) -> Manifest | None:
        """The release that runs, or None before the first one."""
        for release in self._releases.values():
            if release.state is ReleaseState.ACTIVE:
                return release.manifest
        return None

    @property
    def release(self) -> int:
        """The number of the active release, 0 for none."""
        active = self.active
        return active.release if active else 0

    @property
    def passive(self) -> Manifest | None:
        """The release in the other slot; its files may be damaged or gone."""
        other = self._held(self._passive) if self.active else None
        return other.manifest if other else None

    def path(self, manifest: Manifest, kind: Kind) -> str:
        return self.file(manifest.artifacts[kind])

    def file(self, artifact: Artifact) -> str:
        return f"{self._artifacts}/{artifact.sha256}"

    def spec(self, manifest: Manifest) -> TaskSpec:
        """Read the spec of a release whose artifacts are here.

        Raises:
            PayloadError: the file is not a spec.
        """
        return decode_spec(content_of(self.path(manifest, "spec")))

    def has(self, artifact: Artifact) -> bool:
        """Whether the artifact is here; nothing enters unless its digest is right."""
        try:
            return os.stat(self.file(artifact)).st_size == artifact.size
        except FileNotFoundError:
            return False

    def add(self, artifact: Artifact, pieces: Iterable[bytes]) -> None:
        """Store ``pieces`` one after the other as ``artifact``.

        Raises:
            DigestMismatchError: they are something else. Nothing was changed.
            OSError: the disk is full or failing. Nothing was changed.
        """
        atomic_write_pieces(self.file(artifact), _verified(pieces, artifact.sha256))

    def stage(self, release: TrackedRelease) -> None:
        """Write ``release`` into the passive slot; the active release is untouched.

        Raises:
            OSError: the disk is full or failing; the slot may hold either release.
        """
        sync_directory(self._artifacts)  # of a file that is there this may be what failed before
        slot = self._passive
        before = self._releases.pop(slot, None)  # a write that fails may have been done
        if before and before is not release:
            before.gives_way()
        atomic_write(self._files[slot], encode_manifest(release.manifest))
        release.happened(ReleaseEvent.WRITTEN)
        self._releases[slot] = release

    def activate(self, manifest: Manifest) -> None:
        """Make the staged release the active one.

        Raises:
            ValueError: another release is staged.
            TransientError: what was staged cannot be read back now.
        """
        slot = self._passive
        staged, found = self._releases.get(slot), self._read_slot(slot)
        if staged is None or staged.manifest != manifest or found not in (None, manifest):
            raise ValueError(f"release {manifest.release} is not staged in slot {slot}")
        if found is None:
            raise TransientError(f"slot {slot} cannot be read back")
        atomic_write(self._directory / "active.json", msgspec.json.encode(_Active(slot)))
        for release in self._releases.values():
            if release.state is ReleaseState.ACTIVE:
                release.happened(ReleaseEvent.REPLACED)
        staged.happened(ReleaseEvent.RUNS)

    def collect_garbage(self, keep: Collection[str] = ()) -> int:
        """Delete artifacts that neither slot names and ``keep`` (digests) does not; count them."""
        named = set(keep)
        for slot in self._files:
            if (release := self._held(slot)) is not None:
                named |= {artifact.sha256 for artifact in release.manifest.artifacts.values()}
        with os.scandir(self._artifacts) as entries:
            garbage = [entry.path for entry in entries if entry.name not in named]
        for path in garbage:
            delete(path)
        return len(garbage)

    @property
    def _passive(self) -> _Slot:
        first = self._releases.get("a")
        return "b" if first and first.state is ReleaseState.ACTIVE else "a"

    def _preferred(self) -> tuple[_Slot, ...]:
        """The active slot first; without a readable ``active.json``, the newer release first."""
        try:
            data = (self._directory / "active.json").read_bytes()
            first = msgspec.json.decode(data, type=_Active).slot
            self._held(first, ReleaseState.ACTIVE)
        except FileNotFoundError:
            return ()  # no release was ever activated
        except (OSError, msgspec.MsgspecError) as error:
            self._own(error)
            self.damaged.append("active.json is damaged")
            a, b = self._held("a"), self._held("b")
            first = "b" if b and (not a or b.manifest.release > a.manifest.release) else "a"
        return (first, "b" if first == "a" else "a")

    def _held(
        self, slot: _Slot, state: ReleaseState = ReleaseState.PASSIVE
    ) -> TrackedRelease | None:
        """What ``slot`` holds, read until that succeeds once: nobody but us writes it."""
        if slot not in self._releases and (manifest := self._read_slot(slot)) is not None:
            self._releases[slot] = TrackedRelease(manifest, state)
        return self._releases.get(slot)

    def _read_slot(self, slot: _Slot) -> Manifest | None:
        path = self._files[slot]
        try:
            return decode_manifest(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, PayloadError) as error:
            self._own(error)
            self.damaged.append(f"{path.name} is damaged")
            return None

    def _is_whole(self, manifest: Manifest) -> bool:
        for kind, artifact in manifest.artifacts.items():
            if not self.has(artifact) or self._digest(artifact) != artifact.sha256:
                self.damaged.append(
                    f"release {manifest.release} is not used: its {kind} file is damaged"
                )
                if self._is_owner:  # it is fetched again
                    with contextlib.suppress(OSError):  # a disk that became read-only
                        delete(self.file(artifact))
                return False
        return True

    def _digest(self, artifact: Artifact) -> str:
        """Return the digest of what the disk gives; "" where it gives errors."""
        try:
            return patiently(lambda: _digest(self.file(artifact)))
        except OSError as error:
            self._own(error)
            return ""

    def _own(self, error: Exception) -> None:
        """Raise what only says that a stranger may not look: what the agent has is not damaged."""
        if isinstance(error, PermissionError) and not self._is_owner:
            raise error


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _verified(pieces: Iterable[bytes], sha256: str) -> Iterator[bytes]:
    """Pass ``pieces`` on; after the last one raise unless their digest is right."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha256:
        raise DigestMismatchError(expected=sha256, found=digest.hexdigest())
