"""A listener that answers CONNECT as a test wants, for what no decent broker does."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

CONNACK_311 = b"\x20\x02\x00\x00"
CONNACK_5 = b"\x20\x03\x00\x00\x00"


class FakeBroker:
    """Runs ``answer(connection, protocol_level)`` for each connection, then closes it."""

    def __init__(self, answer: Callable[[socket.socket, int], None]) -> None:
        self.levels: list[int] = []  # of the CONNECTs so far: 4 is MQTT 3.1.1
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20.0)
            connect = connection.recv(4096)
            level = connect[connect.index(b"MQTT") + 4]
            self.levels.append(level)
            self._answer(connection, level)


def until_closed(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass
