"""The thread that keeps a link connected: logs in, serves a connection, rests, tries again.

It changes nothing of the owner's, but puts what happens into a queue. All methods of
`NetworkThread` but `_run` and below are called from the owner's thread.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from models.access.credentials import Credentials, CredentialSource
from models.errors import UsageError
from models.transport.counting_client import V5, V311, CountingClient, Version
from models.transport.disconnection import Client
from models.transport.link import Disconnected
from models.transport.mqtt_connection import Connection, NewsQueue, Switched
from models.transport.reconnection import Reconnection

__all__ = ["NetworkThread"]

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
READ_CREDENTIALS_AGAIN_S = 10.0  # while there are none that could be tried


class NetworkThread:
    """Connects with the client that ``make_client`` returns for a version of MQTT.

    ``waits``: a connection that has ended is not made again before `resume`.
    """

    def __init__(
        self,
        make_client: Callable[[Version], CountingClient],
        version: Version,
        us: Client,
        credentials: CredentialSource,
        reconnection: Reconnection,
        *,
        waits: bool,
    ) -> None:
        self._make_client = make_client
        self._us = us
        self._credentials = credentials
        self._reconnection = reconnection
        self._waits = waits
        self.client = make_client(version)
        self.news: NewsQueue = queue.SimpleQueue()
        self._tried: Credentials | None = None  # in the connection that is, or was last
        self._hurry = threading.Event()  # look at the credentials, or at `_closing`
        self._closing = threading.Event()
        self._may_connect = threading.Event()
        self._generation = 0  # of handles: how many connections have ended
        self._generation_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to connect.

        Raises:
            ValueError: it was started before.
        """
        if self._thread is not None:
            raise ValueError("the link was started before")
        self._credentials.watch(self._look_at_credentials)
        name = f"MQTT as {self._us.client_id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Connect again, for a link that ``waits``."""
        self._may_connect.set()

    def acknowledge(self, handle: int) -> None:
        """Acknowledge a message, unless its connection has ended."""
        generation, mid = divmod(handle, 1 << 16)
        if mid == 0:
            return  # it came with QoS 0
        with self._generation_lock:  # so that no reconnect slips in between
            if generation == self._generation:
                self.client.ack(mid, 1)

    def close(self) -> None:
        """Disconnect in good order, and end the thread."""
        self._closing.set()
        self._may_connect.set()
        self._hurry.set()
        self._credentials.unwatch(self._look_at_credentials)
        if self._thread is None:
            return
        client = self.client
        client.disconnect()  # behind what is still to be written
        self._thread.join(CLOSE_TIMEOUT_S)
        client.hang_up()

    def _look_at_credentials(self) -> None:
        """Connect anew at once, if they are others now; what is under way stays so."""
        with contextlib.suppress(UsageError):  # `CredentialSource` has the problem
            if self._credentials.read() != self._tried:
                self._hurry.set()

    # The thread's side.

    def _run(self) -> None:
        reason = ""
        while not self._closing.is_set():
            try:
                self._tried = self._credentials.read()
            except UsageError as error:
                reason, before = f"cannot log in: {error}", reason
                if reason != before:
                    self.news.put(Disconnected(reason, needs_help=True))
                self._rest(READ_CREDENTIALS_AGAIN_S)
                continue
            connection = self._connect(self._tried)
            if not self._closing.is_set():
                self._after(connection)

    def _connect(self, credentials: Credentials) -> Connection:
        """Connect once; return that connection when it has ended."""
        client = self.client
        client.log_in_with(credentials)
        has_tls, has_password = credentials.tls is not None, credentials.username is not None
        us = self._us._replace(has_tls=has_tls, has_password=has_password)
        connection = Connection(client, us, self.news, self._generation << 16)
        try:
            connection.serve(self._reconnection.patience_s, self._leaving)
        except Exception:
            log.exception("the network thread failed; it reconnects")
            connection.fail()
        client.hang_up()
        with self._generation_lock:
            self._generation += 1
        return connection

    def _leaving(self) -> str:
        """Return why the connection is to end now; "" if it may go on."""
        if self._closing.is_set():
            return "closed"
        if self._hurry.is_set():
            self._hurry.clear()
            if self._credentials.read() != self._tried:
                return "to log in with new credentials"
        return ""

    def _after(self, connection: Connection) -> None:
        """Tell the owner of a connection that has ended, and rest before the next one."""
        is_five = self.client.protocol is V5
        if connection.is_accepted:
            self._reconnection.answered()
        ending = connection.ending()
        decision = self._reconnection.decide(ending, speaks_five=is_five)
        must_wait = self._waits and ending.held_s is not None
        if must_wait:
            self._may_connect.clear()  # before the owner hears of it
        if decision.switch_version:
            self.client = self._make_client(V311 if is_five else V5)
            log.info("broker does not answer MQTT %s", "5" if is_five else "3.1.1")
            self.news.put(Switched(self.client))
        if decision.tell_owner:
            self.news.put(ending.event(decision))
        self._rest(decision.delay_s)
        if must_wait and not self._closing.is_set():
            self._may_connect.wait()

    def _rest(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()
