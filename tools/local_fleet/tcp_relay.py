"""A TCP relay in front of a broker: counts what passes, and can be cut like a bad link."""

import contextlib
import socket
import threading
from types import TracebackType

__all__ = ["Relay"]


class Relay:
    """Listens on a port of this machine and passes everything on to ``target``, both ways.

    ``bytes_up`` and ``bytes_down`` count the payload of TCP: to and from the target. While the
    relay is cut, connections break and new ones are refused.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._target = target
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()

    def __enter__(self) -> "Relay":
        self.restore()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.cut()

    def counted(self) -> tuple[int, int]:
        """Return the bytes that went up and down so far."""
        with self._lock:
            return self.bytes_up, self.bytes_down

    def restore(self) -> None:
        """Let connections through (again), on the same port as before."""
        listener = socket.create_server((self.host, self.port), backlog=16)
        self.port = int(listener.getsockname()[1])
        with self._lock:
            self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and refuse new ones until `restore`."""
        with self._lock:
            doomed = [*self._sockets, *([self._listener] if self._listener else [])]
            self._listener = None
            self._sockets.clear()
        for end in doomed:
            _break(end)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # cut
            try:
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                _break(near)
                continue
            far.settimeout(None)
            with self._lock:
                connected = self._listener is listener
                if connected:
                    self._sockets |= {near, far}
            if not connected:  # cut meanwhile
                _break(near)
                _break(far)
                return
            for source, sink, upward in ((near, far, True), (far, near, False)):
                threading.Thread(
                    target=self._pump, args=(source, sink, upward), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    if upward:
                        self.bytes_up += len(data)
                    else:
                        self.bytes_down += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with self._lock:
                self._sockets.discard(end)
            _break(end)


def _break(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
    end.close()
