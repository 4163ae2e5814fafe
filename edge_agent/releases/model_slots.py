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

__all__ = ["Slots"]

BLOCK = 1 << 18  # bytes read at a time when a file is hashed or copied


class _Active(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slot: Literal["a", "b"]


class Slots:
    """The model store below ``directory``.

    On opening, the active release is verified to the last byte; a damaged one gives way to the
    other slot's. ``is_owner`` False changes nothing on disk: for a look beside a running agent.
    """

    def __init__(self, directory: Path, *, is_owner: bool = True) -> None:
        self._directory = directory
        self._is_owner = is_owner
        self._artifacts = directory / "artifacts"
        self._files = {slot: directory / f"slot-{slot}.json" for slot in ("a", "b")}
        if is_owner:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            for draft in self._artifacts.glob("*.draft"):  # a write that a power cut ended
                draft.unlink()
        self._manifests: dict[str, Manifest] = {}  # what the slots hold, once it was read
        self.damaged: list[str] = []  # what was found broken, in sentences
        self._slot: Literal["a", "b"] | None = None
        for slot in self._preferred():
            manifest = self._held(slot)
            if manifest is not None and self._is_whole(manifest):
                self._slot = slot
                break

    @property
    def active(self) -> Manifest | None:
        """The release that runs, or None before the first one."""
        return self._manifests[self._slot] if self._slot else None

    @property
    def release(self) -> int:
        """The number of the active release, 0 for none."""
        active = self.active
        return active.release if active else 0

    @property
    def passive(self) -> Manifest | None:
        """The release in the other slot; its files may be damaged or gone."""
        return self._held(self._passive) if self._slot else None

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

    def stage(self, manifest: Manifest) -> None:
        """Write ``manifest`` into the passive slot; the active release is untouched."""
        sync_directory(self._artifacts)  # of a file that is there this may be what failed before
        self._manifests.pop(self._passive, None)  # a write that fails may have been done
        atomic_write(self._files[self._passive], encode_manifest(manifest))
        self._manifests[self._passive] = manifest

    def activate(self, manifest: Manifest) -> None:
        """Make the staged release the active one.

        Raises:
            ValueError: another release is staged.
            TransientError: what was staged cannot be read back now.
        """
        slot = self._passive
        staged = self._read_slot(slot)
        if staged is None and self._manifests.get(slot) == manifest:
            raise TransientError(f"slot {slot} cannot be read back")
        if staged != manifest:
            raise ValueError(f"release {manifest.release} is not staged in slot {slot}")
        atomic_write(self._directory / "active.json", msgspec.json.encode(_Active(slot)))
        self._slot, self._manifests[slot] = slot, manifest

    def collect_garbage(self, keep: Collection[str] = ()) -> int:
        """Delete artifacts that neither slot names and ``keep`` (digests) does not; count them."""
        named = set(keep)
        for slot in ("a", "b"):
            manifest = self._held(slot)
            if manifest is not None:
                named |= {artifact.sha256 for artifact in manifest.artifacts.values()}
        with os.scandir(self._artifacts) as entries:
            garbage = [entry.path for entry in entries if entry.name not in named]
        for path in garbage:
            delete(path)
        return len(garbage)

    @property
    def _passive(self) -> Literal["a", "b"]:
        return "b" if self._slot == "a" else "a"

    def _preferred(self) -> Iterator[Literal["a", "b"]]:
        """The active slot first; without a readable ``active.json``, the newer release first."""
        try:
            data = (self._directory / "active.json").read_bytes()
            first = msgspec.json.decode(data, type=_Active).slot
        except FileNotFoundError:
            return  # no release was ever activated
        except (OSError, msgspec.MsgspecError) as error:
            self._own(error)
            self.damaged.append("active.json is damaged")
            releases = {slot: self._held(slot) for slot in ("a", "b")}
            newer = max(releases, key=lambda slot: getattr(releases[slot], "release", 0))
            first = "a" if newer == "a" else "b"
        yield first
        yield "b" if first == "a" else "a"

    def _held(self, slot: str) -> Manifest | None:
        """What ``slot`` holds, read until that succeeds once: nobody but us writes it."""
        manifest = self._manifests.get(slot) or self._read_slot(slot)
        if manifest is not None:
            self._manifests[slot] = manifest
        return manifest

    def _read_slot(self, slot: str) -> Manifest | None:
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
