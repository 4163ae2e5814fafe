"""A long byte string as numbered chunks, and back again in any order. Pure."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import DigestMismatchError, PayloadError
from models.protocol.topics import MAX_CHUNKS

__all__ = ["MAX_CHUNK", "Layout", "Reassembler", "split"]

MAX_CHUNK = 120 * 1024  # bytes; with topic and headers below the 128 KB of AWS IoT Core


@dataclass(frozen=True, slots=True)
class Layout:
    """How ``size`` bytes are cut: every chunk has ``chunk_size`` bytes but the last, the rest.

    Raises:
        PayloadError: nothing to cut, or chunks of a size that the protocol does not have.
    """

    size: int
    chunk_size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PayloadError(f"a transfer of {self.size} bytes")
        if not 1 <= self.chunk_size <= MAX_CHUNK:
            raise PayloadError(f"chunks of {self.chunk_size} bytes, 1 to {MAX_CHUNK} are allowed")
        if self.count > MAX_CHUNKS:
            raise PayloadError(f"{self.count} chunks, at most {MAX_CHUNKS} are allowed")

    @property
    def count(self) -> int:
        """The number of chunks."""
        return -(-self.size // self.chunk_size)

    def length(self, index: int) -> int:
        """Return the bytes of chunk ``index``.

        Raises:
            PayloadError: there is no such chunk.
        """
        if not 0 <= index < self.count:
            raise PayloadError(f"chunk {index} of {self.count}")
        return min(self.chunk_size, self.size - index * self.chunk_size)

    def check(self, index: int, data: bytes) -> None:
        """Require that ``data`` can be chunk ``index``.

        Raises:
            PayloadError: it cannot.
        """
        expected = self.length(index)
        if len(data) != expected:
            raise PayloadError(f"chunk {index} has {len(data)} bytes, expected {expected}")


def split(data: bytes, chunk_size: int) -> Iterator[bytes]:
    """Yield the chunks of ``data`` in order.

    Raises:
        PayloadError: see `Layout`.
    """
    layout = Layout(len(data), chunk_size)
    for index in range(layout.count):
        start = index * chunk_size
        yield data[start : start + layout.length(index)]


class Reassembler:
    """Collects chunks in any order. Holds no more than what it was fed, at most ``layout.size``.

    (While the last chunk completes the payload, twice that.)
    """

    def __init__(self, layout: Layout, sha256: str) -> None:
        self.layout = layout
        self._sha256 = sha256
        self._chunks: dict[int, bytes] = {}
        self._is_done = False

    def feed(self, index: int, data: bytes) -> bytes | None:
        """Take one chunk; return the payload when the last gap closes, once, else None.

        A chunk we already hold is ignored, so QoS 1 redelivery, a resumed session and an impatient
        sender need no code of their own.

        Raises:
            PayloadError: it does not fit; nothing was changed.
            DigestMismatchError: all are here and they are not what was promised. All are
                forgotten, so that the transfer can begin anew.
        """
        self.layout.check(index, data)
        if self._is_done or index in self._chunks:
            return None
        self._chunks[index] = data
        if len(self._chunks) < self.layout.count:
            return None
        payload = b"".join(self._chunks[number] for number in range(self.layout.count))
        self._chunks.clear()
        found = hashlib.sha256(payload).hexdigest()
        if found != self._sha256:
            raise DigestMismatchError(expected=self._sha256, found=found)
        self._is_done = True
        return payload

    def missing(self) -> tuple[int, ...]:
        """Return the numbers of the chunks still to come, ascending."""
        if self._is_done:
            return ()
        return tuple(index for index in range(self.layout.count) if index not in self._chunks)
