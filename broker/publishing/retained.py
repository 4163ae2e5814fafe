"""What the broker should retain, and in which pieces. Pure."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from broker.records.published_records import PublishedRow
from models.protocol.manifest import Manifest, encode_manifest

__all__ = ["ChunkPiece", "ManifestPiece", "Piece", "Retained", "pieces_of", "retained"]

_MANIFEST = "task/"  # how the name of a manifest's row begins; an artifact's is its sha256


class ManifestPiece(NamedTuple):
    """The retained message of a task's newest release."""

    task: str
    digest: str  # another manifest is another piece
    clear: bool = False  # takes it back

    @property
    def name(self) -> str:
        """That of its `PublishedRow`."""
        return f"{_MANIFEST}{self.task}"


class ChunkPiece(NamedTuple):
    """The retained message with a chunk of an artifact."""

    sha256: str
    chunk_size: int  # cut anew they are others
    number: int
    clear: bool = False

    @property
    def name(self) -> str:
        """That of its `PublishedRow`."""
        return self.sha256


Piece = ManifestPiece | ChunkPiece


class Retained(NamedTuple):
    """What is to be at the broker."""

    rows: dict[str, PublishedRow]  # by name, with what is there already and is to be cleared
    wanted: tuple[str, ...]  # names of what must be there, in the order in which it goes out
    on_offer: frozenset[str]  # names that devices may ask for: also of the release before
    manifests: dict[str, bytes]  # by task

    def offers(self, piece: Piece) -> bool:
        """Whether devices may ask for ``piece``: another manifest, or other cuts, they may not."""
        row = self.rows.get(piece.name)
        if row is None or piece.name not in self.on_offer:
            return False
        match piece:
            case ManifestPiece(digest=digest):
                return digest == row.digest
            case ChunkPiece(chunk_size=chunk_size):
                return chunk_size == row.chunk_size

    @property
    def largest(self) -> int:
        """The bytes of the largest chunk that must be there."""
        return max((self.rows[n].chunk_size for n in self.wanted if n in self.rows), default=0)


def retained(
    releases: Iterable[tuple[Manifest, Manifest | None]], there: Mapping[str, PublishedRow]
) -> Retained:
    """Return what belongs to ``releases``, the newest of each task with its parent.

    Rows that are ``there`` stay as they are, where they are right.
    """
    blobs: dict[str, PublishedRow] = {}
    promises: dict[str, PublishedRow] = {}  # after the blobs
    kept: set[str] = set()
    manifests = {}
    for manifest, parent in releases:
        data = manifests[manifest.task] = encode_manifest(manifest)
        digest = hashlib.sha256(data).hexdigest()
        name = ManifestPiece(manifest.task, digest).name
        promises[name] = PublishedRow(name, digest, len(data), 0, done=False)
        for file in manifest.files:
            blobs[file.sha256] = PublishedRow(
                file.sha256, file.sha256, file.size, manifest.chunk_size, done=False
            )
        kept |= {file.sha256 for file in parent.files} if parent else set()
    wanted = blobs | promises
    new = {n: row for n, row in wanted.items() if n not in there or there[n][:4] != row[:4]}
    rows = {**there, **new}
    return Retained(rows, tuple(wanted), frozenset(wanted.keys() | kept), manifests)


def pieces_of(row: PublishedRow, *, clear: bool = False) -> list[Piece]:
    """Return the messages of ``row``, or those that take them back."""
    if row.name.startswith(_MANIFEST):
        return [ManifestPiece(row.name.removeprefix(_MANIFEST), row.digest, clear)]
    count = max(1, -(-row.size // row.chunk_size))
    return [ChunkPiece(row.name, row.chunk_size, number, clear) for number in range(count)]
