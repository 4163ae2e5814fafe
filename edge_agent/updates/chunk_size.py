"""How large a chunk should be on this link: none may take as long as half a keepalive. Pure."""

__all__ = ["LARGEST", "SMALLEST", "ChunkSize"]

SMALLEST = 8 * 1024  # bytes
LARGEST = 120 * 1024
STARTS_AT = 16 * 1024  # until the link is known: 14 s at 9.6 kbit/s, and soon doubled if it is fast
SHOULD_TAKE_S = 15.0  # half of a half of the keepalive of 60 s: links get slower without notice
STUCK_S = 20.0  # a chunk that was on its way so long when the link broke was too large for it


class ChunkSize:
    """Follows what the link carries. Times in seconds, any origin."""

    def __init__(self, first: int) -> None:
        self.bytes = min(first, STARTS_AT)
        self._wished = self._ceiling = (
            first  # what the owner allows: a fast link makes chunks no larger
        )
        self._free_since = 0.0

    def acknowledged(self, size: int, *, published: float, now: float) -> None:
        """A chunk of ``size`` bytes, handed over at ``published``, has been taken over by now.

        The line was its own since the acknowledgment before it.
        """
        took_s = now - max(published, self._free_since)
        self._free_since = now
        if took_s <= 0:
            return
        wanted = SHOULD_TAKE_S * size / took_s
        if wanted > self.bytes:
            wanted = min(wanted, 2 * self.bytes)  # one quick answer proves little
        self._set(wanted)

    def broke(self, *, published: float, now: float) -> None:
        """The link broke while a chunk was on its way since ``published``."""
        if now - max(published, self._free_since) >= STUCK_S:
            self._set(self.bytes / 2)

    def limit(self, largest: int) -> None:
        """The broker takes ``largest`` bytes at most."""
        self._ceiling = min(self._wished, largest)
        self._set(self.bytes)

    def was_too_large(self, size: int) -> None:
        """The broker refused ``size`` bytes as too many, and so it would every time."""
        self._wished = max(1024, min(self._wished, size // 2 // 1024 * 1024))
        self.limit(self._wished)

    def _set(self, size: float) -> None:
        whole = int(size) // 1024 * 1024
        self.bytes = max(min(SMALLEST, self._ceiling), min(whole, self._ceiling, LARGEST))
