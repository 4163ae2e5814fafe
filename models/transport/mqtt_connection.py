"""One connection to a broker: what paho calls back during it, and how it ended.

The network thread's (`models.transport.network_thread`), which makes one for each attempt. All that
comes goes into the queue that the owner of the link polls: paho holds locks meanwhile. The queue is
bounded: MQTT 5 brokers send ``ahead`` messages ahead of our acknowledgments (8 to a device, 64 to
the server), and from others `MAX_WAITING` are taken before the connection is dropped, whereupon
they are repeated.
"""

import logging
import queue
import time
from collections.abc import Callable
from typing import NamedTuple

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from models.transport.broker_limits import lacking, limits
from models.transport.counting_client import CountingClient
from models.transport.disconnection import Client, Why, closed, failed, refused, silent, unreachable
from models.transport.link import MAX_PACKET, BrokerLimits, Event, Received
from models.transport.reconnection import Ending

__all__ = [
    "MAX_WAITING",
    "Acknowledged",
    "Answered",
    "Connection",
    "NewsQueue",
    "Switched",
    "Up",
    "Woken",
]

log = logging.getLogger(__name__)

MAX_WAITING = 256  # events nobody polled, then the link is cut and the broker repeats them
UNSUPPORTED_VERSION, KEEPALIVE_TIMEOUT = 0x84, 0x8D  # reason codes of MQTT 5


class Up(NamedTuple):
    """The broker accepted a connection."""

    session_present: bool
    limits: BrokerLimits


class Switched(NamedTuple):
    """Another version of MQTT is spoken from now on."""

    client: CountingClient  # it knows nothing of what the one before had


class Acknowledged(NamedTuple):
    """A PUBACK."""

    mid: int
    refused: str


class Answered(NamedTuple):
    """A SUBACK or UNSUBACK."""

    mid: int
    reasons: tuple[str, ...]  # for each topic why not, "" if it was granted


class Woken(NamedTuple):
    """Whoever polls shall look around: something happened elsewhere."""


NewsQueue = queue.SimpleQueue[Event | Up | Switched | Acknowledged | Answered | Woken]


class Connection:
    """A connection that ``client`` makes to a broker, which knows ``us``.

    What is received gets handles from ``handles`` on: they are good for this connection only, for
    packet numbers return.
    """

    def __init__(self, client: CountingClient, us: Client, news: NewsQueue, handles: int) -> None:
        self._client = client
        self._known = us
        self._news = news
        self._handles = handles
        self._ending: Ending | None = None  # the first reason counts
        self._up_at_s: float | None = None
        self.is_accepted = False  # in the version that we speak
        client.begin()
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer

    def serve(self, patience_s: float, leaving: Callable[[], str]) -> None:
        """Connect, and return when the connection has ended.

        ``patience_s``: for the broker's answer. ``leaving`` says why we end it, "" for going on.
        """
        client = self._client
        try:
            client.reconnect()
        except (OSError, UnicodeError) as error:
            log.debug("cannot reach the broker: %s", error)
            self._ending = Ending.of(unreachable(error, self._us))._replace(is_reached=False)
            return
        reached_at_s = time.monotonic()
        while client.loop(1.0) is MQTTErrorCode.MQTT_ERR_SUCCESS:
            if reason := leaving():
                self._ending = Ending(reason)
                if self._up_at_s is None:
                    return
                client.disconnect()
            if self._up_at_s is None and time.monotonic() - reached_at_s > patience_s:
                why = silent(None, self._us, first_byte=client.first_byte, is_open=True)
                self._ending = Ending.of(why)._replace(is_ignored=True)
                return

    def fail(self) -> None:
        """Note that a mistake of ours ended it."""
        self._ending = Ending("internal error")

    def ending(self) -> Ending:
        """Return what it came to, when it has ended."""
        ending = self._ending or Ending.of(self._unsaid())
        held_s = None if self._up_at_s is None else time.monotonic() - self._up_at_s
        return ending._replace(waiting=self._client.oldest_unacknowledged, held_s=held_s)

    def _unsaid(self) -> Why:
        """Return why it ended, where the broker did not say."""
        client = self._client
        if self._up_at_s is not None:
            return failed(self._us, was_closed=client.was_closed, was_silent=False)
        return silent(client.socket_error, self._us, first_byte=client.first_byte, is_open=False)

    @property
    def _us(self) -> Client:
        return self._known._replace(clock_s=time.time())

    def _us_sent_to(self, properties: object) -> Client:
        return self._us._replace(sent_to=getattr(properties, "ServerReference", ""))

    # Callbacks of paho. What they raise ends the connection, and the broker repeats what was not
    # acknowledged.

    def _on_connect(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            is_old = reason.value == UNSUPPORTED_VERSION
            words = self._client.words(reason)
            why = refused(reason.value, words, self._us_sent_to(properties))
            self._ending = Ending.of(why)._replace(is_refused=True, is_old_broker=is_old)
            return
        self.is_accepted = True
        if why_not := lacking(properties, self._us):
            self._ending = Ending.of(why_not)._replace(is_refused=True)
            client.disconnect()
            return
        self._up_at_s = time.monotonic()
        self._news.put(Up(flags.session_present, limits(properties)))

    def _on_disconnect(
        self,
        client: object,
        userdata: object,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: object,
    ) -> None:
        if self._ending is not None:
            return
        if flags.is_disconnect_packet_from_server:
            words = self._client.words(reason) or str(reason)
            self._ending = Ending.of(closed(reason.value, words, self._us_sent_to(properties)))
        elif reason.value == KEEPALIVE_TIMEOUT and self._up_at_s is not None:
            self._ending = Ending.of(failed(self._us, was_closed=False, was_silent=True))

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        if self._news.qsize() >= MAX_WAITING:
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
        handle = self._handles + (message.mid if message.qos else 0)
        self._news.put(Received(topic, bytes(message.payload), message.retain, handle))

    def _on_publish(
        self, client: object, userdata: object, mid: int, reason: ReasonCode, *_: object
    ) -> None:
        self._news.put(Acknowledged(mid, self._client.words(reason)))

    def _on_answer(
        self, client: object, userdata: object, mid: int, reasons: list[ReasonCode], *_: object
    ) -> None:
        self._news.put(Answered(mid, tuple(map(self._client.words, reasons))))
