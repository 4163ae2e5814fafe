"""How the server stands with the MQTT broker: connected, allowed to, and not dropped in silence."""

import logging
from collections.abc import Collection, Iterable

from broker.lease.server_state import Connection
from broker.publishing.echoes import Echoes
from models.protocol.topics import Topics
from models.transport.link import Link
from models.transport.refusals import Refusals

__all__ = ["BrokerContact"]

log = logging.getLogger(__name__)

SILENT_S = 180.0  # without a word from the broker, the status line says so


class BrokerContact:
    """Asks for what the server reads; says what is wrong between the two."""

    def __init__(self, topics: Topics, link: Link) -> None:
        self._topics = topics
        self._link = link
        self.connection = Connection()
        self.echoes = Echoes()
        self._refusals = Refusals()  # of what we read and write
        self._has_subscribed = False

    def connected(
        self, session_present: bool, tasks: Collection[str], now: float, wall: float
    ) -> None:
        """The broker answers us: ask for what we read."""
        self.connection = self.connection.made(wall)
        self.echoes.connected(tasks, now)
        log.info("connected to the MQTT broker session_present=%s", session_present)
        topics = self._topics
        # To see if we are behind them; and the last thing that comes from the past (`Hearing`).
        own = [topics.release(task) for task in tasks]
        if not (session_present and self._has_subscribed):
            own = [topics.all_updates, topics.all_statuses, topics.all_requests, *own]
        self._link.subscribe(own)
        self._has_subscribed = True

    def disconnected(self, reason: str, wall: float) -> None:
        self.echoes.disconnected()
        self.connection = self.connection.lost(reason, wall)
        log.warning("disconnected from the MQTT broker reason=%s", reason)

    def subscribed(self, topics: Iterable[str], refused: str) -> None:
        """Take note that we may read ``topics``, or that the broker ``refused``."""
        for topic in topics:
            self._refusals.may_read(topic.removeprefix(self._topics.prefix), refused)

    @property
    def silence(self) -> str:
        """What keeps us from hearing the broker, for people; "" if nothing."""
        if not self.connection.is_up:
            return "not connected to the MQTT broker"
        if (silence_s := self._link.silence_s()) > SILENT_S:
            return f"the MQTT broker is silent for {silence_s:.0f} s"
        return ""

    def problems(self, publisher: str, receipts: str) -> list[str]:
        """Return what the broker does not let us do, for people.

        ``publisher``: what it does not take of releases; ``receipts``: its words to the last ones.
        """
        if not self.connection.is_up:
            return []
        self._refusals.may_write("device/+/receipt", receipts)
        problems = [self._refusals.sentence("this server", "it"), publisher]
        return [problem for problem in problems if problem]
