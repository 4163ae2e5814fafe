"""What devices ask for again goes out first, and once for all who miss it."""

import logging

from broker.publishing.retained import ChunkPiece, Piece, Retained

__all__ = ["AskedAgain"]

log = logging.getLogger(__name__)

PAUSE_S = 5.0  # a chunk that many devices miss at once is published once
OFTEN = 4  # for the same chunk: the broker does not pass it on
MOST_KEPT = 10_000  # pieces


class AskedAgain:
    """Remembers what was asked for, when, and how often since the last plan."""

    def __init__(self) -> None:
        self.queue: dict[Piece, None] = {}  # an ordered set
        self.dropped = ""  # what the broker seems to drop in silence, for people
        self._at: dict[Piece, float] = {}
        self._often: dict[Piece, int] = {}

    def planned(self, plan: Retained) -> None:
        """Forget what ``plan`` does not offer any more, and how often the rest was asked for."""
        self.queue = {piece: None for piece in self.queue if plan.offers(piece)}
        self.dropped = ""
        self._often.clear()

    def is_due(self, piece: Piece, size: int, now: float) -> bool:
        """Whether ``piece``, of ``size`` bytes, is to go out again for whoever asks now."""
        asked_at = self._at.get(piece)
        if asked_at is not None and now - asked_at < PAUSE_S:
            return False
        self._at[piece] = now
        often = self._often[piece] = self._often.get(piece, 0) + 1
        if len(self._at) > MOST_KEPT:
            self._at, self._often = {piece: now}, {}
        elif often >= OFTEN and isinstance(piece, ChunkPiece):
            self._seems_dropped(size)
        return True

    def _seems_dropped(self, size: int) -> None:
        """A broker of MQTT 3.1.1 acknowledges also what it does not pass on."""
        if not self.dropped:
            log.warning("devices ask again and again for a chunk that was published bytes=%d", size)
        self.dropped = (
            f"devices ask again and again for a chunk of {size} bytes that the broker took each "
            "time: if it drops messages of that size (Mosquitto: message_size_limit), raise its "
            "limit, or set a smaller fleet.chunk_kib"
        )
