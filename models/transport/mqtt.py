"""The link over MQTT: paho, and a guard against each thing it was seen to do wrong.

It moves messages and reports what happened; what a message means, and whether it arrived (a PUBACK
says nothing about that), is its owner's business. Each guard answers a measured failure
(docs/protocol.md): QoS 1 and 8 publications in flight, because paho loses messages with more after
a reconnect; acknowledgment by the owner, because an automatic one loses what was not yet stored;
our own loop thread, because an exception in paho's kills it without a word; our own delays, because
paho's have no jitter.

Threads: the owner calls all methods of `MqttLink` but `wake` from one thread. One more thread of
ours runs the network (`models.transport.network_thread`), one connection after the other
(`mqtt_connection`), with paho as it has to be (`counting_client`). What happens there comes through
a queue, which `poll` reads.
"""

import logging
import queue
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

from models.access.credentials import CredentialSource, Login
from models.access.tls_files import TlsFiles
from models.errors import TransientError, UsageError
from models.transport.counting_client import V5, V311, Meter, new_client
from models.transport.denied_topics import DeniedTopics
from models.transport.disconnection import Client
from models.transport.link import (
    MAX_PACKET,
    BrokerLimits,
    Connected,
    Disconnected,
    Event,
    Published,
    Received,
    Traffic,
)
from models.transport.mqtt_connection import (
    MAX_WAITING,
    Acknowledged,
    Answered,
    Switched,
    Up,
    Woken,
)
from models.transport.network_thread import NetworkThread
from models.transport.reconnection import Reconnection
from models.transport.unconfirmed import Publication, Unconfirmed

__all__ = ["MqttLink"]

log = logging.getLogger(__name__)

AHEAD = 8  # messages that a broker sends a device ahead of its acknowledgments
ASK_AGAIN_S = 60.0  # after the broker refused a subscription
REFUSAL_SAID_S = 3600.0  # between two log lines about refused publications

Protocol = Literal["auto", "5", "3.1.1"]


class MqttLink:
    """`Link` over MQTT 5, or 3.1.1 where the broker has no 5 (``protocol`` "auto" finds out).

    ``will`` is a retained message that the broker publishes when we vanish; it does so too when
    we reconnect before it noticed, so tell your status after every `Connected`. ``seed`` makes the
    delays between attempts repeatable. A broker that refuses us is asked again, but slowly, and
    each time with what the files of ``login`` say then; links may share a `CredentialSource`.
    ``username`` and ``password`` are for those who have no files.

    ``ahead``: how many messages the broker sends us ahead of our acknowledgments, at most.
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
        ahead: int = AHEAD,
        is_passing: bool = False,
        waits: bool = False,
    ) -> None:
        """Prepare a link; nothing is opened before `start`."""
        if not isinstance(login, CredentialSource):
            login = CredentialSource(login or Login(username, password, tls=tls))
        self.credentials = login
        self._meter = Meter()
        make_client = partial(
            new_client,
            self._meter,
            address=(host, port),
            client_id=client_id,
            keepalive_s=keepalive_s,
            will=will,
            is_passing=is_passing,
            ahead=ahead,
        )
        self._network = NetworkThread(
            make_client,
            V311 if protocol == "3.1.1" else V5,
            Client(host, port, client_id, has_tls=False, has_password=False),
            login,
            Reconnection(random.Random(seed).uniform, is_auto=protocol == "auto"),
            waits=waits,
        )
        self._client = self._network.client
        self._connected = False
        self._last_token = 0
        self._unconfirmed = Unconfirmed()
        self._limits = BrokerLimits()
        self._ask_again_at_s: float | None = None
        self._denied = DeniedTopics()
        self._refusal_said_s: float | None = None

    @property
    def protocol(self) -> str:
        """The version spoken now: "5" or "3.1.1"."""
        return "5" if self._client.protocol is V5 else "3.1.1"

    def start(self) -> None:
        self._meter.heard_s = time.monotonic()
        self._network.start()

    def resume(self) -> None:
        """Connect again, for a link that ``waits``; what was not confirmed goes out again."""
        self._network.resume()

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
                    item = self._network.news.get_nowait()
                else:
                    item = self._network.news.get(timeout=max(0.0, deadline - time.monotonic()))
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
                case Woken():
                    return events
                case Disconnected():
                    self._connected = False
                    events.append(item)
                case _:
                    events.append(item)
        return events

    def wake(self) -> None:
        """Let `poll` return now, also with nothing to tell. Called from any thread."""
        self._network.news.put(Woken())

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
        self._network.acknowledge(message.handle)

    def traffic(self) -> Traffic:
        return Traffic(bytes_up=self._meter.up, bytes_down=self._meter.down)

    def silence_s(self) -> float:
        return time.monotonic() - self._meter.heard_s

    def close(self) -> None:
        self._connected = False
        self._network.close()

    def _hand_over(self, publication: Publication) -> None:
        self._unconfirmed.published(self._client.hand_over(publication), publication)

    def _ask(self, topics: list[str], *, subscribe: bool) -> None:
        if not topics:
            return
        mid = self._client.ask(topics, subscribe=subscribe) if self._connected else None
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
        for change in news:
            if change.refused:
                facts = " ".join(change.topics), change.refused
                log.warning("broker refused a subscription topics=%s reason=%s", *facts)
        return list(news)
