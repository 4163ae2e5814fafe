"""The link over MQTT: paho, and a guard against each thing it was seen to do wrong.

The only module that imports paho. It moves messages and reports what happened; what a message
means, and whether it arrived (a PUBACK says nothing about that), is its owner's business. Each
guard below answers a measured failure (docs/protocol.md): QoS 1 and 8 publications in flight,
because paho loses messages with more after a reconnect; acknowledgement by the owner, because an
automatic one loses what was not yet stored; our own loop thread, because an exception in paho's
kills it without a word; our own delays, because paho's have no jitter.

Threads: the owner calls all methods of `MqttLink` from one thread. One more thread of ours runs
the network; it changes nothing of the owner's, but puts events into a queue, which `poll` reads.
"""

import contextlib
import logging
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from models.errors import TransientError, UsageError
from models.transport.link import (
    WINDOW,
    Connected,
    Disconnected,
    Event,
    Published,
    Received,
    Traffic,
)
from models.transport.pacing import Pace

__all__ = ["MAX_PACKET", "MqttLink", "TlsFiles", "broker_address", "reconnect_delay"]

log = logging.getLogger(__name__)

MAX_PACKET = 256 * 1024  # bytes; we say so to MQTT 5 brokers, and drop what is larger
ABSURD_PACKET = 16 * 1024 * 1024  # bytes; not even read: a 3.1.1 broker may send 256 MiB
SESSION_EXPIRY_S = 7 * 24 * 3600
RECEIVE_MAXIMUM = 8  # messages that the broker sends us ahead of our acknowledgements
MAX_WAITING = 256  # events nobody polled, then the link is cut and the broker repeats them
CONNECT_TIMEOUT_S = 15.0  # TCP and TLS
CONNACK_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 6.0  # for CONNACK while we do not know the version: amqtt ignores MQTT 5
REFUSED_DELAY_S = (10.0, 60.0)
STEADY_S = 60.0  # a connection that held this long was not taken over by a duplicate
CLOSE_TIMEOUT_S = 2.0

V5 = MQTTProtocolVersion.MQTTv5
V311 = MQTTProtocolVersion.MQTTv311
Protocol = Literal["auto", "5", "3.1.1"]


class TlsFiles(NamedTuple):
    """PEM files; ``ca`` None trusts the system's authorities, ``cert`` and ``key`` are ours."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def broker_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is wanted, of ``mqtt://HOST[:PORT]`` or ``mqtts://``.

    Raises:
        UsageError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        host, port = None, None
    else:
        if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
            host = None
    if host is None or parts.scheme not in ("mqtt", "mqtts"):
        # Not the URL itself: it might contain a password.
        raise UsageError(
            "the broker's address must look like mqtt://HOST:PORT or mqtts://HOST:PORT"
        )
    tls = parts.scheme == "mqtts"
    return host, port or (8883 if tls else 1883), tls


def reconnect_delay(attempt: int, generator: random.Random) -> float:
    """Return the seconds to wait before attempt ``attempt`` (0, 1, …): exponential, full jitter.

    Full jitter, so that a thousand devices do not come back in step (140 TLS connections per
    second were measured on two cores).
    """
    return max(0.2, generator.uniform(0.0, min(120.0, 2.0 ** min(attempt, 7))))


class _Up(NamedTuple):
    session_present: bool
    window: int  # publications the broker takes at once
    max_packet: int  # bytes the broker takes


class _Switched(NamedTuple):
    client: "_CountingClient"  # from now on; it knows nothing of what the one before had


class _Acknowledged(NamedTuple):
    mid: int
    refused: str
    at_s: float


class _Answered(NamedTuple):
    """A SUBACK or UNSUBACK."""

    mid: int
    refused: tuple[str, ...]


class _Publication(NamedTuple):
    token: int
    topic: str
    payload: bytes
    retain: bool
    handed_at_s: float
    ahead: int  # bytes in flight with it, when it was handed over


class _Ask(NamedTuple):
    """A subscription or its end that the broker has not confirmed."""

    subscribe: bool
    topics: tuple[str, ...]


class _Connection:
    """What one connection came to. Belongs to the network thread."""

    def __init__(self) -> None:
        self.reached = False  # TCP (and TLS) stood
        self.reached_at_s = 0.0
        self.up_at_s: float | None = None
        self.reason = ""
        self.refused = False
        self.old_protocol = False  # the broker said that it does not know our version
        self.is_ignored = False
        self.taken_over = False


class _Meter:
    """Bytes over the socket and when the broker was last heard; survives a change of client."""

    def __init__(self) -> None:
        self.up = 0
        self.down = 0
        self.heard_s = time.monotonic()


class _CountingClient(paho.Client):
    """paho's client, counting MQTT bytes between protocol and socket (so without TLS)."""

    def __init__(self, meter: _Meter, protocol: MQTTProtocolVersion, client_id: str) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if protocol is V5 else False,
            protocol=protocol,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._meter = meter

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > ABSURD_PACKET:  # paho asks for the rest of a packet at once
            raise ConnectionError(f"a packet of {bufsize} bytes")
        data = super()._sock_recv(bufsize)
        self._meter.down += len(data)
        if data:
            self._meter.heard_s = time.monotonic()
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        count = super()._sock_send(buf)
        self._meter.up += count
        return count


class MqttLink:
    """`Link` over MQTT 5, or 3.1.1 where the broker has no 5 (``protocol`` "auto" finds out).

    ``will`` is a retained message that the broker publishes when we vanish; it does so too when
    we reconnect before it noticed, so tell your status after every `Connected`. ``seed`` makes the
    delays between attempts repeatable. A broker that refuses us is asked again, but slowly.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        client_id: str,
        will: tuple[str, bytes] | None,
        keepalive_s: int = 60,
        username: str | None = None,
        password: str | None = None,
        tls: TlsFiles | None = None,
        protocol: Protocol = "auto",
        seed: int | None = None,
    ) -> None:
        """Prepare a link; nothing is opened before `start`.

        Raises:
            UsageError: a TLS file is missing or unusable.
        """
        self._host = host
        self._port = port
        self._client_id = client_id
        self._will = will
        self._keepalive_s = keepalive_s
        self._credentials = (username, password)
        self._tls = None if tls is None else _tls_context(tls)
        self._is_auto = protocol == "auto"
        self._generator = random.Random(seed)
        self._meter = _Meter()
        self._takeovers = 0
        self._events: queue.SimpleQueue[Event | _Up | _Switched | _Acknowledged | _Answered]
        self._events = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        # Handles of received messages are good for one connection only: packet numbers return.
        self._generation = 0
        self._generation_lock = threading.Lock()
        # The network thread's:
        self._connection = _Connection()
        self._undecided = self._is_auto
        # The owner's:
        version = V311 if protocol == "3.1.1" else V5
        self._client = self._new_client(version)
        self._connected = False
        self._last_token = 0
        self._in_flight: dict[int, _Publication] = {}
        self._asks: dict[int, _Ask] = {}
        self._unsent_asks: list[_Ask] = []
        self._pace = Pace(keepalive_s)
        self._window = WINDOW
        self._max_packet = MAX_PACKET

    # The owner's side.

    @property
    def takeovers(self) -> int:
        """How often another client of our name pushed us out (MQTT 5): is an identity copied?"""
        return self._takeovers

    @property
    def protocol(self) -> str:
        """The version spoken now: "5" or "3.1.1"."""
        return "5" if self._client.protocol is V5 else "3.1.1"

    def start(self) -> None:
        if self._thread is not None:
            raise ValueError("the link was started before")
        self._meter.heard_s = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(self._client,), name="mqtt-link", daemon=True
        )
        self._thread.start()

    def poll(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if events:
                    item = self._events.get_nowait()
                else:
                    item = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return events
            match item:
                case _Up():
                    events.append(self._on_up(item))
                case _Switched():
                    self._on_switched(item)
                case _Acknowledged():
                    events += self._on_acknowledged(item)
                case _Answered():
                    self._on_answered(item)
                case Disconnected():
                    self._connected = False
                    events.append(item)
                case _:
                    events.append(item)

    def window(self) -> int:
        if not self._connected or not self._pace.is_open:
            return 0
        return max(0, self._window - len(self._in_flight))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """See `Link.publish`.

        Raises:
            TransientError: `window` is 0.
            UsageError: the broker does not take messages of this size.
        """
        if self.window() == 0:
            raise TransientError("no room for another publication now")
        size = len(topic.encode()) + len(payload) + 16  # 16: more than all the headers
        if size > self._max_packet:
            raise UsageError(
                f"the broker takes packets of at most {self._max_packet} bytes and this one has "
                f"{size}: set its max_packet_size to {MAX_PACKET}, or send smaller chunks"
            )
        self._last_token += 1
        self._hand_over(
            _Publication(
                token=self._last_token,
                topic=topic,
                payload=payload,
                retain=retain,
                handed_at_s=time.monotonic(),
                ahead=self._pace.sent(len(payload)),
            )
        )
        return self._last_token

    def subscribe(self, topics: Sequence[str]) -> None:
        self._ask(_Ask(subscribe=True, topics=tuple(topics)))

    def unsubscribe(self, topics: Sequence[str]) -> None:
        self._ask(_Ask(subscribe=False, topics=tuple(topics)))

    def acknowledge(self, message: Received) -> None:
        generation, mid = divmod(message.handle, 1 << 16)
        if mid == 0:
            return  # it came with QoS 0
        with self._generation_lock:  # so that no reconnect slips in between
            if generation == self._generation:
                self._client.ack(mid, 1)

    def traffic(self) -> Traffic:
        return Traffic(bytes_up=self._meter.up, bytes_down=self._meter.down)

    def silence_s(self) -> float:
        return time.monotonic() - self._meter.heard_s

    def close(self) -> None:
        self._connected = False
        self._closing.set()
        if self._thread is None:
            return
        self._client.disconnect()  # behind what is still to be written
        self._thread.join(CLOSE_TIMEOUT_S)
        _hang_up(self._client)

    def _hand_over(self, publication: _Publication) -> None:
        info = self._client.publish(
            publication.topic, publication.payload, qos=1, retain=publication.retain
        )
        if info.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # ours is smaller than paho's
            raise RuntimeError("paho refused a publication inside the window")
        # Without a connection paho keeps it, and sends it with the next one.
        self._in_flight[info.mid] = publication

    def _ask(self, ask: _Ask) -> None:
        if not ask.topics:
            return
        mid = None
        if self._connected and not ask.subscribe:
            _, mid = self._client.unsubscribe(list(ask.topics))
        elif self._connected and self._client.protocol is V5:
            options = SubscribeOptions(qos=1)
            _, mid = self._client.subscribe([(topic, options) for topic in ask.topics])
        elif self._connected:
            _, mid = self._client.subscribe([(topic, 1) for topic in ask.topics])
        if mid is None:
            self._unsent_asks.append(ask)
        else:
            self._asks[mid] = ask

    def _on_up(self, up: _Up) -> Event:
        self._connected = True
        self._window = up.window
        self._max_packet = up.max_packet
        # paho repeats publications over a reconnect, but not these.
        asks = [*self._asks.values(), *self._unsent_asks]
        self._asks.clear()
        self._unsent_asks.clear()
        for ask in asks:
            self._ask(ask)
        return Connected(session_present=up.session_present)

    def _on_switched(self, switched: _Switched) -> None:
        self._client = switched.client
        publications = list(self._in_flight.values())
        self._in_flight.clear()
        for publication in publications:
            self._hand_over(publication)

    def _on_acknowledged(self, acknowledged: _Acknowledged) -> list[Event]:
        publication = self._in_flight.pop(acknowledged.mid, None)
        if publication is None:
            return []
        self._pace.acknowledged(
            len(publication.payload),
            ahead=publication.ahead,
            took_s=acknowledged.at_s - publication.handed_at_s,
        )
        if acknowledged.refused:
            log.warning(
                "broker refused a publication topic=%s reason=%s",
                publication.topic,
                acknowledged.refused,
            )
        return [Published(token=publication.token, refused=acknowledged.refused)]

    def _on_answered(self, answered: _Answered) -> None:
        ask = self._asks.pop(answered.mid, None)
        if ask is not None and answered.refused:
            log.warning(
                "broker refused a subscription topics=%s reasons=%s",
                " ".join(ask.topics),
                ", ".join(answered.refused),
            )

    # The network thread's side.

    def _run(self, client: _CountingClient) -> None:
        attempt = 0
        takeovers = 0
        closed_early = 0
        last_said = ""
        while not self._closing.is_set():
            self._connection = connection = _Connection()
            try:
                self._serve(client, connection)
            except Exception:
                log.exception("the network thread failed; it reconnects")
                connection.reason = "internal error"
            _hang_up(client)
            with self._generation_lock:
                self._generation += 1
            if self._closing.is_set():
                return
            was_up = connection.up_at_s is not None
            attempt = 0 if was_up else attempt + 1
            closed_early += connection.reached and not was_up and not connection.refused
            is_five = client.protocol is V5
            told = self._is_auto and is_five and connection.old_protocol
            if told or (self._undecided and (connection.is_ignored or closed_early >= 2)):
                self._undecided = self._undecided and not told
                closed_early = 0
                log.info("broker does not answer MQTT %s, trying %s", *_names(is_five))
                client = self._new_client(V311 if is_five else V5)
                self._events.put(_Switched(client))
                continue
            if was_up or connection.reason != last_said:
                last_said = connection.reason
                self._events.put(Disconnected(connection.reason))
            if connection.taken_over:
                self._takeovers += 1
                held_s = time.monotonic() - (connection.up_at_s or 0.0)
                takeovers = 1 if held_s > STEADY_S else takeovers + 1
                attempt = 2 + takeovers
            if connection.refused:
                delay_s = self._generator.uniform(*REFUSED_DELAY_S)
            else:
                delay_s = reconnect_delay(attempt, self._generator)
            self._closing.wait(delay_s)

    def _serve(self, client: _CountingClient, connection: _Connection) -> None:
        """Connect once, and return when that connection has ended; `connection` says how."""
        try:
            client.reconnect()
        except (OSError, UnicodeError) as error:
            connection.reason = f"cannot reach {self._host}:{self._port}: {error}"
            return
        connection.reached = True
        connection.reached_at_s = time.monotonic()
        while client.loop(1.0) is MQTTErrorCode.MQTT_ERR_SUCCESS:
            if connection.up_at_s is not None:
                continue
            patience_s = PROBE_TIMEOUT_S if self._undecided else CONNACK_TIMEOUT_S
            if time.monotonic() - connection.reached_at_s > patience_s:
                connection.reason = "the broker does not answer CONNECT"
                connection.is_ignored = True
                return
        connection.reason = connection.reason or "connection lost"

    def _new_client(self, version: MQTTProtocolVersion) -> _CountingClient:
        client = _CountingClient(self._meter, version, self._client_id)
        client.max_inflight_messages_set(WINDOW)
        client.max_queued_messages_set(2 * WINDOW)
        client.connect_timeout = CONNECT_TIMEOUT_S
        username, password = self._credentials
        if username is not None:
            client.username_pw_set(username, password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._will is not None:
            client.will_set(*self._will, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer
        client.on_socket_open = _send_without_delay
        # Its presence tells paho that a loop of ours writes, and not the thread that publishes.
        client.on_socket_register_write = _nothing
        properties = None
        if version is V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET
        client.connect_async(
            self._host,
            self._port,
            keepalive=self._keepalive_s,
            clean_start=False,
            properties=properties,
        )
        return client

    # Callbacks of paho. They only put events into the queue: paho holds locks meanwhile. What
    # they raise ends the connection in `_run`, and the broker repeats what was not acknowledged.

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        connection = self._connection
        if reason.is_failure:
            connection.reason = f"refused: {reason}"
            connection.refused = True
            connection.old_protocol = "protocol version" in str(reason).lower()
            self._undecided = self._undecided and connection.old_protocol
            return
        connection.up_at_s = time.monotonic()
        self._undecided = False
        window = getattr(properties, "ReceiveMaximum", WINDOW)
        max_packet = getattr(properties, "MaximumPacketSize", MAX_PACKET)
        self._events.put(
            _Up(
                session_present=flags.session_present,
                window=min(WINDOW, window),
                max_packet=min(MAX_PACKET, max_packet),
            )
        )

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        connection = self._connection
        if connection.reason:
            return  # the first reason is the true one
        if flags.is_disconnect_packet_from_server:
            connection.taken_over = reason.value == 0x8E
            connection.reason = f"closed by the broker: {reason}"
        else:
            connection.reason = f"connection lost: {str(reason).lower()}"

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        if self._events.qsize() >= MAX_WAITING:
            if message.qos == 0:
                return
            raise ConnectionError("more messages than anyone took")
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        if not topic or len(message.payload) > MAX_PACKET:
            log.warning("message dropped topic=%.200s bytes=%d", topic, len(message.payload))
            client.ack(message.mid, message.qos)
            return
        handle = (self._generation << 16) + (message.mid if message.qos else 0)
        self._events.put(Received(topic, bytes(message.payload), message.retain, handle))

    def _on_publish(
        self,
        client: paho.Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        refused = str(reason) if reason.is_failure else ""
        self._events.put(_Acknowledged(mid, refused, time.monotonic()))

    def _on_answer(
        self,
        client: paho.Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        refused = tuple(str(reason) for reason in reasons if reason.is_failure)
        self._events.put(_Answered(mid, refused))


def _names(is_five: bool) -> tuple[str, str]:
    return ("5", "3.1.1") if is_five else ("3.1.1", "5")


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.ca)
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ", ".join(str(name) for name in files if name is not None)
        raise UsageError(f"the TLS files {names} are not usable: {error}") from None
    return context


def _send_without_delay(client: paho.Client, userdata: object, sock: object) -> None:
    if isinstance(sock, socket.socket):  # ssl.SSLSocket is one
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _nothing(client: paho.Client, userdata: object, sock: object) -> None:
    return


def _hang_up(client: paho.Client) -> None:
    """End the connection, if there still is one, without a word to the broker."""
    sock = client.socket()
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()
