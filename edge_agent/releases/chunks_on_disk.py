"""The chunks of files on their way: each a file, so that a restart or a lost session costs nothing.

They are believed for their length; what they make is checked by its digest.
"""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from models.host.durable import atomic_write
from models.host.files import content_of, delete
from models.protocol.chunked_transfer import Layout
from models.protocol.manifest import Artifact

__all__ = ["ChunksOnDisk"]


class ChunksOnDisk:
    """``directory/<sha256>/<number>``, for files that are cut into chunks of one size."""

    def __init__(self, directory: Path) -> None:
        self.is_failing = False  # the disk, the last time that something was written
        self._directory = directory
        self._chunk_size = 0
        self._absent: dict[str, set[int]] = {}  # digest -> chunks that are not on disk
        directory.mkdir(parents=True, exist_ok=True)

    def begin(self, chunk_size: int) -> None:
        """From now on files are cut into chunks of ``chunk_size``."""
        self._chunk_size = chunk_size
        self._absent.clear()

    def count(self, artifact: Artifact) -> int:
        """Return how many chunks ``artifact`` is cut into."""
        return Layout(artifact.size, self._chunk_size).count

    def absent(self, artifact: Artifact) -> Collection[int]:
        """Return the chunks that are not on disk; files of another chunk size are deleted.

        Raises:
            OSError: the disk is failing.
        """
        if artifact.sha256 not in self._absent:
            layout = Layout(artifact.size, self._chunk_size)
            absent = set(range(layout.count))
            for entry in _entries(self._folder(artifact.sha256)):
                index = int(entry.name) if entry.name.isdigit() else -1
                if index in absent and entry.stat().st_size == layout.length(index):
                    absent.discard(index)
                else:
                    os.unlink(entry.path)
            self._absent[artifact.sha256] = absent
        return self._absent[artifact.sha256]

    def lacks(self, sha256: str, number: int) -> bool:
        """Whether that chunk is known to be absent."""
        return number in self._absent.get(sha256, ())

    def store(self, artifact: Artifact, number: int, payload: bytes) -> None:
        """Keep a chunk that is absent.

        Raises:
            PayloadError: it does not fit where it says it belongs.
            OSError: the disk is full or failing; the chunk is absent as before.
        """
        Layout(artifact.size, self._chunk_size).check(number, payload)
        folder = self._folder(artifact.sha256)
        self.is_failing = True
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        atomic_write(f"{folder}/{number}", payload)
        self.is_failing = False
        self._absent[artifact.sha256].discard(number)

    def try_writing(self) -> None:
        """Write as much as a chunk has, before more of them are sent for nothing.

        Raises:
            OSError: the disk is full or failing.
        """
        attempt = f"{self._directory}/attempt"
        self.is_failing = True
        atomic_write(attempt, bytes(self._chunk_size))
        delete(attempt)
        self.is_failing = False

    def pieces(self, artifact: Artifact) -> Iterator[bytes]:
        """Yield the chunks of a file in order.

        Raises:
            OSError: one is gone, or cannot be read.
        """
        folder = self._folder(artifact.sha256)
        return (content_of(f"{folder}/{number}") for number in range(self.count(artifact)))

    def discard(self, sha256: str) -> None:
        """Delete the chunks of a file."""
        self._absent.pop(sha256, None)
        shutil.rmtree(self._folder(sha256), ignore_errors=True)

    def keep_only(self, wanted: Collection[str]) -> None:
        """Delete the chunks of all files but those with the digests ``wanted``.

        Raises:
            OSError: the disk is failing.
        """
        with os.scandir(self._directory) as entries:
            unwanted = [(e.path, e.is_dir()) for e in entries if e.name not in wanted]
        for path, is_folder in unwanted:
            if is_folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    delete(path)  # what `try_writing` left

    def _folder(self, sha256: str) -> str:
        """No `Path`, see `models.host.files`."""
        return f"{self._directory}/{sha256}"


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
