"""The artifacts of all releases: files named by their sha256, in one directory."""

import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from models.errors import DigestMismatchError
from models.host.durable import atomic_write, remove, sync_directory
from models.host.files import content_of
from models.protocol.manifest import Artifact
from models.protocol.names import SHA256

__all__ = ["ARTIFACTS", "ArtifactStore"]

log = logging.getLogger(__name__)

ARTIFACTS = "artifacts"  # the directory's name


class ArtifactStore:
    """Content-addressed: writing twice changes nothing, and a name promises its bytes.

    A disk may break that promise. So what is there already is compared with what is put there,
    the first time in each process, and written again if it differs.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._whole: set[str] = set()  # written or compared by this process
        self.mended: set[str] = set()  # written again; the broker may have what the disk had

    def put(self, data: bytes) -> Artifact:
        """Keep ``data`` for good.

        Raises:
            OSError: the disk is full or failing; nothing is promised.
        """
        artifact = Artifact(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        is_there = self.has(artifact)
        if is_there and self._is_whole(artifact.sha256, data):
            sync_directory(self._directory)  # which may be what failed when it was written
        else:
            if not self._directory.exists():
                self._directory.mkdir()
                sync_directory(self._directory.parent)
            atomic_write(self._file(artifact.sha256), data)
            if is_there:
                log.warning(
                    "artifact was damaged on disk, written again sha256=%s", artifact.sha256
                )
                self.mended.add(artifact.sha256)
        self._whole.add(artifact.sha256)
        return artifact

    def _is_whole(self, sha256: str, data: bytes) -> bool:
        try:
            return sha256 in self._whole or content_of(self._file(sha256)) == data
        except OSError as error:  # a bad block: where it is written anew it may be a good one
            log.warning("cannot read artifact %s: %s", sha256, error.strerror)
            return False

    def has(self, artifact: Artifact) -> bool:
        """Whether a file of that name and size is there; its bytes are not looked at."""
        try:
            return os.stat(self._file(artifact.sha256)).st_size == artifact.size
        except FileNotFoundError:
            return False

    def get(self, artifact: Artifact) -> bytes:
        """Return the bytes of ``artifact``.

        Raises:
            OSError: it is not there, or cannot be read.
            DigestMismatchError: the disk changed it.
        """
        data = content_of(self._file(artifact.sha256))
        found = hashlib.sha256(data).hexdigest()
        if found != artifact.sha256:
            raise DigestMismatchError(expected=artifact.sha256, found=found)
        return data

    def chunk(self, sha256: str, index: int, chunk_size: int) -> bytes:
        """Return chunk ``index``; unchecked, because devices check the whole.

        Raises:
            OSError: the artifact is not there, or cannot be read.
        """
        with open(self._file(sha256), "rb") as file:
            file.seek(index * chunk_size)
            return file.read(chunk_size)

    def keep_only(self, wanted: Collection[str]) -> int:
        """Delete every artifact but ``wanted``, and drafts of interrupted writes; say how many."""
        gone = 0
        for path in list(self._directory.iterdir()):
            if path.name not in wanted and SHA256.fullmatch(path.name.removesuffix(".draft")):
                self._whole.discard(path.name)
                remove(path)
                gone += 1
        return gone

    def _file(self, sha256: str) -> str:
        """Where an artifact is; no `Path`, see `models.host.files`."""
        return f"{self._directory}/{sha256}"
