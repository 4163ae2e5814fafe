"""What our logic needs of a message transport, and nothing of how it is done. Pure.

The owner polls; nothing calls back. So the same agent and server run on paho
(`models/transport/mqtt.py`) and on simulated networks (`tools/simulation`).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = [
    "HEADERS",
    "MAX_PACKET",
    "WINDOW",
    "BrokerLimits",
    "Connected",
    "Disconnected",
    "Event",
    "Link",
    "Published",
    "Received",
    "Subscribed",
    "Traffic",
]

WINDOW = 8  # unacknowledged publications; paho loses messages above 10 (docs/protocol.md)
MAX_PACKET = 256 * 1024  # bytes; we say so to MQTT 5 brokers, and drop what is larger
HEADERS = 256  # bytes; more than the longest of our topics and all that MQTT adds


class BrokerLimits(NamedTuple):
    """What a broker takes of us. Only MQTT 5 brokers tell; of others our own limits hold."""

    window: int = WINDOW  # publications that wait for their acknowledgment
    max_packet: int = MAX_PACKET  # bytes

    @property
    def max_chunk(self) -> int:
        """The largest chunk that fits, in bytes: whole KiB, at least one."""
        return max(1, (self.max_packet - HEADERS) // 1024) * 1024


class Connected(NamedTuple):
    """The broker answers. ``session_present``: it still holds our subscriptions and queue."""

    session_present: bool
    limits: BrokerLimits = BrokerLimits()


class Disconnected(NamedTuple):
    """The broker is gone, or cannot be reached; the link keeps trying by itself.

    ``reason`` is a sentence that names the remedy. ``needs_help``: only a person mends it.
    ``is_taken_over``: another client came with our name. ``is_refused``: the broker answered, and
    does not let us in. ``is_stuck``: several connections ended over one publication.
    """

    reason: str
    needs_help: bool = False
    is_taken_over: bool = False
    is_refused: bool = False
    is_stuck: bool = False


class Published(NamedTuple):
    """The broker took over publication ``token``. That is not delivery: only a receipt is.

    ``refused`` says why it did not want it (MQTT 5 only; 3.1.1 brokers refuse in silence), in the
    words that `models.transport.refusals` knows.
    """

    token: int
    refused: str = ""


class Subscribed(NamedTuple):
    """The broker does not let us read ``topics``, for ``refused``; if that is "", it does now.

    Said of topics that were refused only. The link asks again by itself.
    """

    topics: tuple[str, ...]
    refused: str


class Received(NamedTuple):
    """One message. The broker repeats it until `Link.acknowledge`."""

    topic: str
    payload: bytes
    retained: bool
    handle: int


Event = Connected | Disconnected | Published | Subscribed | Received


class Traffic(NamedTuple):
    """MQTT bytes since the start, both ways, fixed headers included, TCP excluded."""

    bytes_up: int
    bytes_down: int


class Link(Protocol):
    """One MQTT client: QoS 1, persistent session, at most `WINDOW` publications in flight.

    One owner calls everything, from one thread. What `publish` took is never lost in silence: it
    goes out again with every connection until its `Published` event. Messages may come twice.
    """

    def start(self) -> None:
        """Begin to connect; returns at once and never raises for an unreachable broker."""

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what happened, oldest first; wait up to ``timeout_s`` for the first event."""

    def window(self) -> int:
        """Return how many publications may be handed over now; 0 while disconnected."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Hand over one message; return the token that its `Published` event will carry.

        Raises:
            TransientError: `window` is 0.
            UsageError: the broker takes no messages of this size (`Connected.limits`).
        """

    def subscribe(self, topics: Sequence[str]) -> None:
        """Ask for ``topics``, over reconnects until the broker confirms.

        From then on the broker remembers, until `Connected(session_present=False)`.
        """

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """Stop asking for ``topics``."""

    def acknowledge(self, message: Received) -> None:
        """Tell the broker that ``message`` is safe with us and need not be repeated."""

    def traffic(self) -> Traffic:
        """Return the bytes that went over the link so far."""

    def silence_s(self) -> float:
        """Return the seconds since the broker last answered anything, by a monotonic clock."""

    def close(self) -> None:
        """Disconnect in good order (the will is not sent) and release everything."""
