"""paho's client with what `models.transport.mqtt` needs of it: bytes counted, no garbage left."""

import time
from collections.abc import Iterator
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.matcher import MQTTMatcher

__all__ = ["CountingClient", "Meter"]

ABSURD_PACKET = 16 * 1024 * 1024  # bytes; not even read: a 3.1.1 broker may send 256 MiB


class Meter:
    """Bytes over the socket and when the broker was last heard; survives a change of client."""

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self.heard_s = time.monotonic()


class _NoFilters(MQTTMatcher):
    """In the place of paho's own, which we do not use and which is asked for every message.

    Its answer is a closure that holds itself: six objects a message that only a collection of the
    oldest generation frees, and a process of ours has so little other garbage that there is one
    every few hours.
    """

    def iter_match(self, topic: str) -> Iterator[object]:
        return iter(())


class CountingClient(paho.Client):
    """paho's client, counting MQTT bytes between protocol and socket (so without TLS)."""

    def __init__(self, meter: Meter, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.meter = meter
        self._on_message_filtered = _NoFilters()  # type: ignore[no-untyped-call]

    @property
    def oldest_unacknowledged(self) -> int | None:
        """The packet number of the publication that waits longest for its acknowledgment."""
        with self._out_message_mutex:
            return next(iter(self._out_messages), None)

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > ABSURD_PACKET:  # paho asks for the rest of a packet at once
            raise ConnectionError(f"a packet of {bufsize} bytes")
        data = super()._sock_recv(bufsize)
        self.meter.down += len(data)
        if data:
            self.meter.heard_s = time.monotonic()
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        count = super()._sock_send(buf)
        self.meter.up += count
        return count
