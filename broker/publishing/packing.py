"""How large a piece may be and how many go out at a time: as the broker takes them."""

import logging
from collections.abc import Mapping

import msgspec

from broker.records.published_records import PublishedRow
from models.protocol.chunked_transfer import MAX_CHUNK
from models.protocol.manifest import Manifest
from models.transport.link import BrokerLimits

__all__ = ["Packing"]

log = logging.getLogger(__name__)

RESERVED = 2  # publications of the window that stay free for receipts, where it has more than that
SMALLEST_CHUNK = 1024  # bytes; the protocol has none below


class Packing:
    """What is known of the broker's limits; before it answered, what it took the last time."""

    def __init__(self) -> None:
        self.reserved = RESERVED
        self._max_chunk: int | None = None  # bytes that the broker takes; None: not known yet
        self._refused_above = MAX_CHUNK  # what it refused was larger

    def connected(self, limits: BrokerLimits, largest: int) -> bool:
        """Keep to what the broker takes that answers now; return whether to cut anew.

        ``largest``: bytes of the largest chunk that is planned.
        """
        reserved = max(0, min(RESERVED, limits.window - 1))
        if reserved < self.reserved:
            log.warning(
                "the MQTT broker takes few messages at a time, so releases go out slowly "
                "receive_maximum=%d",
                limits.window,
            )
        self.reserved = reserved
        before, self._max_chunk = self._max_chunk, min(limits.max_chunk, self._refused_above)
        if largest > self._max_chunk:
            log.warning(
                "the MQTT broker takes small messages only, so releases go out in smaller chunks "
                "max_packet=%d chunk=%d",
                *(limits.max_packet, self._max_chunk),
            )
        return largest > self._max_chunk or before not in (None, self._max_chunk)

    def takes(self, chunk_size: int) -> bool:
        """Whether chunks of so many bytes are not too large, for all that is known."""
        return chunk_size <= (self._max_chunk or MAX_CHUNK)

    def refused(self, chunk_size: int) -> bool:
        """Take note that a chunk was too large; return whether smaller ones can be made."""
        if chunk_size <= SMALLEST_CHUNK:
            return False
        self._max_chunk = max(SMALLEST_CHUNK, chunk_size // 2 // 1024 * 1024)
        self._refused_above = self._max_chunk
        log.warning(
            "the MQTT broker refused %d bytes as too large; smaller chunks chunk=%d",
            *(chunk_size, self._max_chunk),
        )
        return True

    def fitted(self, manifest: Manifest, there: Mapping[str, PublishedRow]) -> Manifest:
        """Return ``manifest`` with chunks that the broker takes; ``there`` is what it has."""
        most = self._max_chunk
        if most is None:
            cuts = [there[a.sha256].chunk_size for a in manifest.files if a.sha256 in there]
            most = min(cuts, default=manifest.chunk_size)
        return msgspec.structs.replace(manifest, chunk_size=min(manifest.chunk_size, most))
