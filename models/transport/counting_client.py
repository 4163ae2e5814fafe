"""paho's client as `models.transport.mqtt` needs it: bytes counted, no garbage left, set up."""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.matcher import MQTTMatcher
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from models.access.credentials import Credentials
from models.transport.link import MAX_PACKET, WINDOW
from models.transport.reconnection import Waiting
from models.transport.unconfirmed import Publication

__all__ = ["V5", "V311", "CountingClient", "Meter", "Version", "new_client"]

Version = MQTTProtocolVersion
V5 = MQTTProtocolVersion.MQTTv5
V311 = MQTTProtocolVersion.MQTTv311
SESSION_EXPIRY_S = 7 * 24 * 3600
CONNECT_TIMEOUT_S = 15.0  # TCP and TLS
UNSPECIFIED = 0x80  # the reason code that every answer may have
CONNACK, PUBACK, SUBACK, DISCONNECT = 0x20, 0x40, 0x90, 0xE0  # first bytes of packets
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
        self._odd_codes: list[int] = []  # of the packet that is being handled

    @property
    def oldest_unacknowledged(self) -> Waiting | None:
        """The publication that waits longest for its acknowledgment."""
        with self._out_message_mutex:
            for number, message in self._out_messages.items():
                return Waiting(number, message.topic, len(message.payload))
        return None

    def words(self, reason: ReasonCode) -> str:
        """Return ``reason`` as the packet that is being handled had it; "" for a success."""
        if not reason.is_failure:
            return ""
        if reason.value == UNSPECIFIED and self._odd_codes:
            code = self._odd_codes.pop(0)
            return next(iter(ReasonCode.names.get(code, ())), f"reason code 0x{code:02X}")
        return str(reason)

    def hand_over(self, publication: Publication) -> int:
        """Publish with QoS 1 and return the packet number; paho keeps it for a connection."""
        info = self.publish(
            publication.topic, publication.payload, qos=1, retain=publication.retain
        )
        if info.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # ours is smaller than paho's
            raise RuntimeError("paho refused a publication inside the window")
        return info.mid

    def ask(self, topics: Sequence[str], *, subscribe: bool) -> int | None:
        """Subscribe to ``topics`` with QoS 1, or unsubscribe; return the packet number."""
        if not subscribe:
            return self.unsubscribe(list(topics))[1]
        if self.protocol is V5:
            options = SubscribeOptions(qos=1)
            return self.subscribe([(topic, options) for topic in topics])[1]
        return self.subscribe([(topic, 1) for topic in topics])[1]

    def _packet_handle(self) -> MQTTErrorCode:
        """Let paho handle a packet, also one with a reason code that MQTT 5 has for others only.

        paho calls those malformed and drops the connection, so the publication that was refused
        is sent again, for ever (Mosquitto answers 0x95 to what its message_size_limit forbids).
        """
        self._odd_codes = []
        if self._protocol is V5:
            kind, packet = self._in_packet["command"] & 0xF0, self._in_packet["packet"]
            for place in _places_of_codes(kind, packet):
                if not _is_known(kind, packet[place]):
                    self._odd_codes.append(packet[place])
                    packet[place] = UNSPECIFIED
        return super()._packet_handle()

    def log_in_with(self, credentials: Credentials) -> None:
        """Use ``credentials`` from the next connection on."""
        self.username_pw_set(credentials.username, credentials.password)
        if (tls := credentials.tls) is not None and tls is not self._ssl_context:
            self._ssl_context = None  # paho itself takes only one in its life
            self.tls_set_context(tls)

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


def _places_of_codes(kind: int, packet: bytes | bytearray) -> Iterator[int]:
    """Yield where the reason codes of MQTT 5 stand in ``packet``."""
    place = {CONNACK: 1, PUBACK: 2, DISCONNECT: 0}.get(kind)
    if place is not None and len(packet) > place:
        yield place
    elif kind == SUBACK:
        length, shift, place = 0, 0, 2  # of the properties, seven bits a byte
        while place < len(packet) and shift <= 21:
            byte = packet[place]
            length, shift, place = length | (byte & 0x7F) << shift, shift + 7, place + 1
            if byte < 0x80:
                yield from range(place + length, len(packet))
                return


def _is_known(kind: int, code: int) -> bool:
    """Whether a packet of this ``kind`` may have the reason ``code``, as paho knows them."""
    packet_type = kind >> 4
    if kind == CONNACK and code == 1:  # of a broker without MQTT 5, which paho knows
        return True
    return any(packet_type in types for types in ReasonCode.names.get(code, {}).values())


def new_client(
    meter: Meter,
    version: Version,
    address: tuple[str, int],
    *,
    client_id: str,
    keepalive_s: int,
    will: tuple[str, bytes] | None,
    is_passing: bool,
    ahead: int,
) -> CountingClient:
    """Return a client that connects to ``address`` on `reconnect`.

    The broker keeps its session, unless it is ``is_passing``, and sends at most ``ahead`` messages
    ahead of our acknowledgments (of MQTT 3.1.1 it decides that itself).
    """
    client = CountingClient(
        meter,
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if version is V5 else is_passing,
        protocol=version,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.max_inflight_messages_set(WINDOW)
    client.max_queued_messages_set(2 * WINDOW)
    client.connect_timeout = CONNECT_TIMEOUT_S
    if will is not None:
        client.will_set(*will, qos=1, retain=True)
    client.on_socket_open = _send_without_delay
    # Its presence tells paho that a loop of ours writes, and not the thread that publishes.
    client.on_socket_register_write = lambda *_: None
    properties = None
    if version is V5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if is_passing else SESSION_EXPIRY_S
        properties.ReceiveMaximum = ahead
        properties.MaximumPacketSize = MAX_PACKET
    client.connect_async(*address, keepalive_s, clean_start=is_passing, properties=properties)
    return client


def _send_without_delay(client: paho.Client, userdata: object, sock: object) -> None:
    """For paho's ``on_socket_open``: small packets leave at once."""
    if isinstance(sock, socket.socket):  # ssl.SSLSocket is one
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
