"""A long byte string as numbered chunks, and back again in any order. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import PayloadError
from models.protocol.topics import MAX_CHUNKS

__all__ = ["MAX_CHUNK", "Layout", "split"]

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
