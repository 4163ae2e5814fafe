"""Carries frames between clients and the engine: who is heard, how long, and in how much memory.

The agent has a socket of its own, so that no number of applications keeps it out.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from edge_agent.client.edgefold_client import (
    ProtocolError,
    receive_body,
    receive_head,
    send_frame,
)
from edge_agent.inference.application_socket import BACKLOG, ApplicationSocket, bound

__all__ = ["serve"]

log = logging.getLogger("inference")

MAX_CLIENTS = 32  # applications connected at a time: each costs a thread
MAX_CONTROLS = 8
FRAME_S = 30.0  # a frame that has begun must be whole after this
LARGE = 256 * 1024  # bytes of a body; of larger ones only so many are in memory at a time:
LARGE_AT_ONCE = 4
LOOK_EVERY_S = 5.0  # whether the applications' socket is still there


class Answer(Protocol):
    """What goes back to a client."""

    @property
    def head(self) -> dict[str, object]: ...
    @property
    def body(self) -> bytes: ...


class Engine(Protocol):
    """Carries out requests; safe for many threads."""

    about_socket: dict[str, object]

    def answer(self, head: bytes, body: bytes, *, may_load: bool) -> Answer: ...


class _Failure(NamedTuple):
    head: dict[str, object]
    body: bytes = b""


def serve(
    control: Path, engine: Engine, applications: ApplicationSocket | None, *, parent: int
) -> None:
    """Answer until SIGTERM, SIGINT or the end of process ``parent``.

    Raises:
        OSError: ``control`` cannot be made, or ``parent`` is no process any more.
    """
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(_signals(stack), selectors.EVENT_READ)
        selector.register(_end_of_parent(stack, parent), selectors.EVENT_READ)
        listener = stack.enter_context(_control(control))
        stack.callback(control.unlink, missing_ok=True)
        selector.register(listener, selectors.EVENT_READ, _Clients(engine, MAX_CONTROLS, True))
        if applications is not None:
            stack.callback(applications.close)
        clients = _Clients(engine, MAX_CLIENTS, False)
        log.info("inference ready control=%s", control)
        while True:
            if applications is not None:
                _keep(applications, selector, clients, engine)
            for key, _ in selector.select(LOOK_EVERY_S if applications is not None else None):
                if not isinstance(key.data, _Clients):
                    return
                with contextlib.suppress(OSError):  # it went away, or we have no descriptor
                    assert isinstance(key.fileobj, socket.socket)
                    client, _ = key.fileobj.accept()
                    key.data.admit(client)


def _control(path: Path) -> socket.socket:
    """Return a listening socket for the agent; one that a killed process left gives way."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(0, "it is there already and is no socket", str(path))
        path.unlink()
    listener = bound(path)
    listener.listen(BACKLOG)
    listener.settimeout(0)
    return listener


def _keep(
    applications: ApplicationSocket,
    selector: selectors.BaseSelector,
    clients: "_Clients",
    engine: Engine,
) -> None:
    """Have the applications' socket where it should be, and a ping say what is wrong with it."""
    before = applications.listener
    applications.keep()
    if applications.listener is not before:
        if before is not None:
            selector.unregister(before)
        if applications.listener is not None:
            selector.register(applications.listener, selectors.EVENT_READ, clients)
    engine.about_socket = {"socket": str(applications.path), "problem": applications.problem}


class _Clients:
    """The connections of one socket, each with its thread.

    An application may keep its connection for hours, and may also forget it. When there are too
    many, the one that has been silent longest is closed; its program connects again.
    """

    def __init__(self, engine: Engine, most: int, may_load: bool) -> None:
        self._engine = engine
        self._most = most
        self._may_load = may_load
        self._lock = threading.Lock()
        self._heard: set[socket.socket] = set()
        self._silent: dict[socket.socket, None] = {}  # of those, longest first
        self._large = threading.BoundedSemaphore(LARGE_AT_ONCE)

    def admit(self, client: socket.socket) -> None:
        """Attend to ``client`` in a thread of its own, or tell it that there is no room."""
        with self._lock:
            if len(self._heard) >= self._most and self._silent:
                self._close(next(iter(self._silent)))
            has_room = len(self._heard) < self._most
            if has_room:
                self._heard.add(client)
                self._silent[client] = None
        try:
            if has_room:
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()
                return
        except RuntimeError:  # no thread could be had
            with self._lock:
                self._close(client)
        with client:
            client.settimeout(0.1)
            reason = f"{self._most} clients are being answered already: try again later"
            failure = {"ok": False, "error": reason, "transient": True}
            _send(client, _Failure(failure))

    def _close(self, client: socket.socket) -> None:
        """Forget ``client``; its thread ends when it sees that."""
        self._heard.discard(client)
        self._silent.pop(client, None)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RD)

    def _attend(self, client: socket.socket) -> None:
        try:
            with client:
                while self._is_speaking(client):
                    try:
                        self._answer(client)
                    except ProtocolError as error:
                        _send(client, _Failure({"ok": False, "error": str(error)}))
                        return  # where the next frame would begin is unknown
                    with self._lock:
                        self._silent[client] = None
        except OSError as error:
            log.debug("client gone reason=%s", error)
        except Exception:
            log.exception("request failed, the client was dropped")
        finally:
            with self._lock:
                self._heard.discard(client)
                self._silent.pop(client, None)

    def _is_speaking(self, client: socket.socket) -> bool:
        """Wait for a frame to begin; whether one did, and the client was not closed meanwhile."""
        client.settimeout(None)
        is_there = bool(client.recv(1, socket.MSG_PEEK))
        with self._lock:
            was_silent = client in self._silent
            self._silent.pop(client, None)
        return is_there and was_silent

    def _answer(self, client: socket.socket) -> None:
        received = receive_head(client, deadline=time.monotonic() + FRAME_S)
        if received is None:
            return
        head, length = received
        with self._large if length > LARGE else contextlib.nullcontext():
            body = receive_body(client, length, deadline=time.monotonic() + FRAME_S)
            answer = self._engine.answer(head, body, may_load=self._may_load)
            del body
            client.settimeout(FRAME_S)
            _send(client, answer)


def _send(client: socket.socket, answer: Answer) -> None:
    send_frame(client, msgspec.json.encode(answer.head), answer.body)


def _signals(stack: contextlib.ExitStack) -> socket.socket:
    """Return a socket that becomes readable when this process shall end."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
        stack.enter_context(end)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno())
    stack.callback(signal.set_wakeup_fd, -1)
    return reader


def _end_of_parent(stack: contextlib.ExitStack, parent: int) -> int:
    """Return a descriptor that becomes readable when process ``parent`` ends: no polling."""
    descriptor = os.pidfd_open(parent)
    stack.callback(os.close, descriptor)
    return descriptor
