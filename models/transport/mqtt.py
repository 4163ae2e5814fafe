"""The link over MQTT: paho, and a guard against each thing it was seen to do wrong.

The only module besides `counting_client` that imports paho. It moves messages and reports what
happened; what a message means, and whether it arrived (a PUBACK says nothing about that), is its
owner's business. Each guard below answers a measured failure (docs/protocol.md): QoS 1 and 8
publications in flight, because paho loses messages with more after a reconnect; acknowledgement by
the owner, because an automatic one loses what was not yet stored; our own loop thread, because an
exception in paho's kills it without a word; our own delays, because paho's have no jitter.

Threads: the owner calls all methods of `MqttLink` from one thread. One more thread of ours runs
the network; it changes nothing of the owner's, but puts events into a queue, which `poll` reads.
The queue is bounded: MQTT 5 brokers send 8 messages ahead of our acknowledgements, and from others
`MAX_WAITING` are taken before the connection is dropped, whereupon they are repeated.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from models.access.broker_address import broker_address
from models.access.credentials import Credentials, CredentialSource, Login
from models.access.tls_files import TlsFiles
from models.errors import TransientError, UsageError
from models.transport.broker_limits import lacking, limits
from models.transport.counting_client import V5, V311, CountingClient, Meter, new_client
from models.transport.denied_topics import DeniedTopics
from models.transport.disconnection import Client, Why, closed, failed, refused, silent, unreachable
from models.transport.link import (
    MAX_PACKET,
    Connected,
    Disconnected,
    Event,
    Limits,
    Published,
    Received,
    Traffic,
)
from models.transport.network_news import Acknowledged, Answered, Switched, Up
from models.transport.reconnection import Ending, Reconnection
from models.transport.unconfirmed import Publication, Unconfirmed

__all__ = ["MAX_PACKET", "MqttLink", "TlsFiles", "broker_address"]

log = logging.getLogger(__name__)

MAX_WAITING = 256  # events nobody polled, then the link is cut and the broker repeats them
ASK_AGAIN_S = 60.0  # after the broker refused a subscription
CLOSE_TIMEOUT_S = 2.0
READ_CREDENTIALS_AGAIN_S = 10.0  # while there are none that could be tried
REFUSAL_SAID_S = 3600.0  # between two log lines about refused publications
UNSUPPORTED_VERSION, KEEPALIVE_TIMEOUT = 0x84, 0x8D  # reason codes of MQTT 5

Protocol = Literal["auto", "5", "3.1.1"]


class MqttLink:
    """`Link` over MQTT 5, or 3.1.1 where the broker has no 5 (``protocol`` "auto" finds out).

    ``will`` is a retained message that the broker publishes when we vanish; it does so too when
    we reconnect before it noticed, so tell your status after every `Connected`. ``seed`` makes the
    delays between attempts repeatable. A broker that refuses us is asked again, but slowly, and
    each time with what the files of ``login`` say then; links may share a `CredentialSource`.
    ``username`` and ``password`` are for those who have no files.

    ``is_passing``: the broker keeps no session of ours. ``waits``: a connection that has ended is
    not made again before `resume`, for an owner who must know first who has our name now.
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
        login: Login | CredentialSource | None = None,
        protocol: Protocol = "auto",
        seed: int | None = None,
        is_passing: bool = False,
        waits: bool = False,
    ) -> None:
        """Prepare a link; nothing is opened before `start`."""
        self._host = host
        self._port = port
        self._client_id = client_id
        self._waits = waits
        self._may_connect = threading.Event()
        if not isinstance(login, CredentialSource):
            login = CredentialSource(login or Login(username, password, tls=tls))
        self.credentials = login
        self._tried: Credentials | None = None  # in the connection that is, or was last
        self._hurry = threading.Event()  # look at the credentials, or at `_closing`
        self._meter = Meter()
        self._made_client = partial(
            new_client,
            self._meter,
            address=(host, port),
            client_id=client_id,
            keepalive_s=keepalive_s,
            will=will,
            is_passing=is_passing,
        )
        self._events: queue.SimpleQueue[Event | Up | Switched | Acknowledged | Answered]
        self._events = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        # Handles of received messages are good for one connection only: packet numbers return.
        self._generation = 0
        self._generation_lock = threading.Lock()
        # The network thread's:
        self._serving: CountingClient | None = None
        self._ending: Ending | None = None  # of the connection that is; the first reason counts
        self._up_at_s: float | None = None
        self._reconnection = Reconnection(random.Random(seed).uniform, is_auto=protocol == "auto")
        # The owner's:
        version = V311 if protocol == "3.1.1" else V5
        self._client = self._new_client(version)
        self._connected = False
        self._last_token = 0
        self._unconfirmed = Unconfirmed()
        self._limits = Limits()
        self._ask_again_at_s: float | None = None
        self._denied = DeniedTopics()
        self._refusal_said_s: float | None = None

    # The owner's side.

    @property
    def protocol(self) -> str:
        """The version spoken now: "5" or "3.1.1"."""
        return "5" if self._client.protocol is V5 else "3.1.1"

    def start(self) -> None:
        if self._thread is not None:
            raise ValueError("the link was started before")
        self._meter.heard_s = time.monotonic()
        self.credentials.watch(self._look_at_credentials)
        self._thread = threading.Thread(target=self._run, args=(self._client,), daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Connect again, for a link that ``waits``; what was not confirmed goes out again."""
        self._may_connect.set()

    def poll(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        deadline = time.monotonic() + timeout_s
        if self._ask_again_at_s is not None and time.monotonic() >= self._ask_again_at_s:
            self._ask_again_at_s = None
            if self._connected:
                self._ask(self._unconfirmed.unsent(), subscribe=True)
        while len(events) < MAX_WAITING:
            try:
                if events:
                    item = self._events.get_nowait()
                else:
                    item = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return events
            match item:
                case Up():
                    events.append(self._on_up(item))
                case Switched():
                    self._on_switched(item)
                case Acknowledged():
                    events += self._on_acknowledged(item)
                case Answered():
                    events += self._on_answered(item)
                case Disconnected():
                    self._connected = False
                    events.append(item)
                case _:
                    events.append(item)
        return events

    def window(self) -> int:
        if not self._connected:
            return 0
        return max(0, self._limits.window - self._unconfirmed.publications)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """See `Link.publish`.

        Raises:
            TransientError: `window` is 0.
            UsageError: the broker does not take messages of this size.
        """
        if self.window() == 0:
            raise TransientError("no room for another publication now")
        size = len(topic.encode()) + len(payload) + 16  # 16: more than all the headers
        if size > self._limits.max_packet:
            raise UsageError(
                f"the broker takes packets of at most {self._limits.max_packet} bytes and this one "
                f"has {size}: set its max_packet_size to {MAX_PACKET}"
            )
        self._last_token += 1
        self._hand_over(Publication(self._last_token, topic, payload, retain))
        return self._last_token

    def subscribe(self, topics: Sequence[str]) -> None:
        self._ask(list(topics), subscribe=True)

    def unsubscribe(self, topics: Sequence[str]) -> None:
        self._ask(list(topics), subscribe=False)

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

    def _look_at_credentials(self) -> None:
        """Connect anew at once, if they are others now; what is under way stays so."""
        with contextlib.suppress(UsageError):  # `credentials` has the problem
            if self.credentials.read() != self._tried:
                self._hurry.set()

    def close(self) -> None:
        self._connected = False
        self._closing.set()
        self._may_connect.set()
        self._hurry.set()
        self.credentials.unwatch(self._look_at_credentials)
        if self._thread is None:
            return
        client = self._serving or self._client
        client.disconnect()  # behind what is still to be written
        self._thread.join(CLOSE_TIMEOUT_S)
        client.hang_up()

    def _hand_over(self, publication: Publication) -> None:
        info = self._client.publish(
            publication.topic, publication.payload, qos=1, retain=publication.retain
        )
        if info.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # ours is smaller than paho's
            raise RuntimeError("paho refused a publication inside the window")
        # Without a connection paho keeps it, and sends it with the next one.
        self._unconfirmed.published(info.mid, publication)

    def _ask(self, topics: list[str], *, subscribe: bool) -> None:
        if not topics:
            return
        mid = None
        if self._connected and not subscribe:
            _, mid = self._client.unsubscribe(topics)
        elif self._connected and self._client.protocol is V5:
            options = SubscribeOptions(qos=1)
            _, mid = self._client.subscribe([(topic, options) for topic in topics])
        elif self._connected:
            _, mid = self._client.subscribe([(topic, 1) for topic in topics])
        if mid is not None and subscribe:
            self._denied.asked(mid, topics)
        self._unconfirmed.asked(topics, subscribe=subscribe, mid=mid)

    def _on_up(self, up: Up) -> Event:
        self._connected = True
        self._denied.connected()
        self._limits = up.limits
        # paho repeats publications over a reconnect, but not these.
        for subscribe in (True, False):
            self._ask(self._unconfirmed.wished(subscribe=subscribe), subscribe=subscribe)
        return Connected(up.session_present, up.limits)

    def _on_switched(self, switched: Switched) -> None:
        self._client = switched.client
        for publication in self._unconfirmed.take_publications():
            self._hand_over(publication)

    def _on_acknowledged(self, acknowledged: Acknowledged) -> list[Event]:
        publication = self._unconfirmed.acknowledged(acknowledged.mid)
        if publication is None:
            return []
        if acknowledged.refused:
            now_s, said_s = time.monotonic(), self._refusal_said_s
            if said_s is None or now_s - said_s > REFUSAL_SAID_S:  # the owner says what it means
                self._refusal_said_s = now_s
                facts = publication.topic, acknowledged.refused
                log.warning("broker refused a publication topic=%s reason=%s", *facts)
        return [Published(publication.token, acknowledged.refused)]

    def _on_answered(self, answered: Answered) -> list[Event]:
        topics = self._unconfirmed.answered(answered.mid)
        denied, news = self._denied.answered(answered.mid, answered.reasons, topics)
        if denied:
            self._unconfirmed.refused(denied)
            self._ask_again_at_s = time.monotonic() + ASK_AGAIN_S
        for told in news:
            if told.refused:
                facts = " ".join(told.topics), told.refused
                log.warning("broker refused a subscription topics=%s reason=%s", *facts)
        return list(news)

    # The network thread's side.

    def _run(self, client: CountingClient) -> None:
        reason = ""
        while not self._closing.is_set():
            self._serving = client
            self._ending = None
            self._up_at_s = None
            try:
                self._tried = self.credentials.read()
            except UsageError as error:
                reason, told = f"cannot log in: {error}", reason
                if reason != told:
                    self._events.put(Disconnected(reason, needs_help=True))
                self._rest(READ_CREDENTIALS_AGAIN_S)
                continue
            client.log_in_with(self._tried)
            try:
                self._serve(client)
            except Exception:
                log.exception("the network thread failed; it reconnects")
                self._ending = Ending("internal error")
            client.hang_up()
            with self._generation_lock:
                self._generation += 1
            if self._closing.is_set():
                return
            ending = self._ending or Ending.of(self._unsaid(client))
            ending = ending._replace(waiting=client.oldest_unacknowledged)
            if self._up_at_s is not None:
                ending = ending._replace(held_s=time.monotonic() - self._up_at_s)
            is_five = client.protocol is V5
            decision = self._reconnection.decide(ending, speaks_five=is_five)
            must_wait = self._waits and ending.held_s is not None
            if must_wait:
                self._may_connect.clear()  # before the owner hears of it
            if decision.switch_version:
                client = self._new_client(V311 if is_five else V5)
                log.info("broker does not answer MQTT %s", "5" if is_five else "3.1.1")
                self._events.put(Switched(client))
            if decision.tell_owner:
                self._events.put(ending.told(decision))
            self._rest(decision.delay_s)
            if must_wait and not self._closing.is_set():
                self._may_connect.wait()

    def _rest(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()

    def _serve(self, client: CountingClient) -> None:
        """Connect once, and return when that connection has ended; `_ending` says how."""
        client.begin()
        try:
            client.reconnect()
        except (OSError, UnicodeError) as error:
            log.debug("cannot reach the broker: %s", error)
            self._ending = Ending.of(unreachable(error, self._us))._replace(is_reached=False)
            return
        reached_at_s = time.monotonic()
        patience_s = self._reconnection.patience_s
        while client.loop(1.0) is MQTTErrorCode.MQTT_ERR_SUCCESS:
            if self._closing.is_set():
                if self._up_at_s is None:
                    return
                client.disconnect()
            elif self._hurry.is_set():
                self._hurry.clear()
                if self.credentials.read() != self._tried:
                    self._ending = Ending("to log in with new credentials")
                    if self._up_at_s is None:
                        return
                    client.disconnect()
            if self._up_at_s is None and time.monotonic() - reached_at_s > patience_s:
                why = silent(None, self._us, first_byte=client.first_byte, is_open=True)
                self._ending = Ending.of(why)._replace(is_ignored=True)
                return

    @property
    def _us(self) -> Client:
        tried = self._tried or Credentials()
        return Client(
            host=self._host,
            port=self._port,
            client_id=self._client_id,
            has_tls=tried.tls is not None,
            has_password=tried.username is not None,
            clock_s=time.time(),
        )

    def _us_sent_to(self, properties: object) -> Client:
        return self._us._replace(sent_to=getattr(properties, "ServerReference", ""))

    def _unsaid(self, client: CountingClient) -> Why:
        """Return why the connection ended, where the broker did not say."""
        if self._up_at_s is not None:
            return failed(self._us, was_closed=client.was_closed, was_silent=False)
        return silent(client.socket_error, self._us, first_byte=client.first_byte, is_open=False)

    def _new_client(self, version: MQTTProtocolVersion) -> CountingClient:
        client = self._made_client(version)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer
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
        if reason.is_failure:
            is_old = reason.value == UNSUPPORTED_VERSION
            why = refused(reason.value, self._words(reason), self._us_sent_to(properties))
            self._ending = Ending.of(why)._replace(is_refused=True, is_old_broker=is_old)
            return
        self._reconnection.answered()
        if why_not := lacking(properties, self._us):
            self._ending = Ending.of(why_not)._replace(is_refused=True)
            client.disconnect()
            return
        self._up_at_s = time.monotonic()
        self._events.put(Up(flags.session_present, limits(properties)))

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
            us, words = self._us_sent_to(properties), self._words(reason) or str(reason)
            self._ending = Ending.of(closed(reason.value, words, us))
        elif reason.value == KEEPALIVE_TIMEOUT and self._up_at_s is not None:
            self._ending = Ending.of(failed(self._us, was_closed=False, was_silent=True))

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
        self, client: object, userdata: object, mid: int, reason: ReasonCode, *_: object
    ) -> None:
        self._events.put(Acknowledged(mid, self._words(reason)))

    def _on_answer(
        self, client: object, userdata: object, mid: int, reasons: list[ReasonCode], *_: object
    ) -> None:
        self._events.put(Answered(mid, tuple(map(self._words, reasons))))

    def _words(self, reason: ReasonCode) -> str:
        return self._serving.words(reason) if self._serving is not None else ""
