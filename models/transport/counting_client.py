"""paho's client with what `models.transport.mqtt` needs of it: bytes counted, no garbage left."""

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.matcher import MQTTMatcher

__all__ = ["CountingClient", "Meter", "send_without_delay"]

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
        self.begin()

    def begin(self) -> None:
        """Forget how the last connection went."""
        self.first_byte: int | None = None  # that came
        self.socket_error: OSError | None = None  # on which it ended
        self.was_closed = False  # by the other end, in good order

    @property
    def oldest_unacknowledged(self) -> int | None:
        """The packet number of the publication that waits longest for its acknowledgment."""
        with self._out_message_mutex:
            return next(iter(self._out_messages), None)

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > ABSURD_PACKET:  # paho asks for the rest of a packet at once
            raise ConnectionError(f"a packet of {bufsize} bytes")
        try:
            data = super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.socket_error = error
            raise
        self.meter.down += len(data)
        if data:
            self.meter.heard_s = time.monotonic()
            if self.first_byte is None:
                self.first_byte = data[0]
        self.was_closed = not data
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        count = super()._sock_send(buf)
        self.meter.up += count
        return count

    def hang_up(self) -> None:
        """End the connection, if there still is one, without a word to the broker."""
        if (sock := self.socket()) is not None:
            with contextlib.suppress(OSError):
                sock.close()


def send_without_delay(client: paho.Client, userdata: object, sock: object) -> None:
    """For paho's ``on_socket_open``: small packets leave at once."""
    if isinstance(sock, socket.socket):  # ssl.SSLSocket is one
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
