"""Asks the inference process of this device: one frame there, one frame back, over a Unix socket.

A frame is ``u32 json length, u32 body length`` (little endian), the JSON object, and the body: one
``.npy`` array or nothing. Without numpy, so that the resident agent can use it; any program that
runs as the same user may ask as well (docs/inference.md).
"""

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from models.errors import PayloadError, TransientError, UsageError

__all__ = ["MAX_BODY", "MAX_HEAD", "Connection", "call", "receive_frame", "send_frame", "unix_name"]

MAX_HEAD = 16 * 1024  # bytes of JSON
MAX_BODY = 8 * 1024 * 1024  # bytes of one array; an application with more sends it in parts
_LENGTHS = struct.Struct("<II")
_LONGEST_NAME = 100  # sockaddr_un holds 108 bytes, state directories are often deeper


def call(
    socket_path: Path, request: dict[str, object], body: bytes = b"", *, timeout_s: float
) -> tuple[dict[str, object], bytes]:
    """Send one request on a connection of its own; return the answer and its body.

    Raises:
        TransientError: nobody answers within ``timeout_s``; the request may have been carried out.
        PayloadError: the answer is not a frame of ours.
        UsageError: the request is larger than the protocol allows.
    """
    with Connection(socket_path, timeout_s=timeout_s) as connection:
        return connection.call(request, body)


class Connection:
    """A connection for many requests, one after the other; not for several threads at once."""

    def __init__(self, socket_path: Path, *, timeout_s: float) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            with unix_name(socket_path) as name:
                _connect(self._socket, name, time.monotonic() + timeout_s)
        except OSError as error:
            self._socket.close()
            raise self._silent(error) from None

    def call(
        self, request: dict[str, object], body: bytes = b""
    ) -> tuple[dict[str, object], bytes]:
        """As the function `call`, on this connection, which is unusable after an error."""
        head = json.dumps(request).encode()
        if len(head) > MAX_HEAD or len(body) > MAX_BODY:
            raise UsageError(
                f"a request of {len(head)} + {len(body)} bytes; at most {MAX_HEAD} of JSON and "
                f"{MAX_BODY} of array are allowed: send fewer samples at a time"
            )
        try:
            send_frame(self._socket, head, body)
            frame = receive_frame(self._socket, within_s=self._timeout_s)
        except OSError as error:
            raise self._silent(error) from None
        if frame is None:
            raise TransientError(f"{self._path}: closed without an answer")
        try:
            answer = json.loads(frame[0])
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise PayloadError(f"{self._path}: the answer is not a JSON object")
        return answer, frame[1]

    def _silent(self, error: OSError) -> TransientError:
        reason = error.strerror or str(error) or type(error).__name__
        return TransientError(f"{self._path}: no answer from the inference process ({reason})")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(stream: socket.socket, name: str, deadline: float) -> None:
    """A full queue fails at once on a socket with a timeout, unix(7): so wait here."""
    while True:
        try:
            return stream.connect(name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def unix_name(path: Path) -> Iterator[str]:
    """Yield a name for the socket at ``path`` that fits into ``sockaddr_un``, whatever its depth.

    Raises:
        OSError: the directory is not there.
    """
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def send_frame(stream: socket.socket, head: bytes, body: bytes = b"") -> None:
    """Write one frame.

    Raises:
        OSError: the other side is gone, or takes nothing within the socket's timeout.
    """
    stream.sendall(_LENGTHS.pack(len(head), len(body)) + head)
    if body:
        stream.sendall(body)


def receive_frame(stream: socket.socket, *, within_s: float) -> tuple[bytes, bytes] | None:
    """Read one frame; None when the other side closed instead of beginning one.

    The wait for the first byte obeys the socket's own timeout, all that follows ``within_s``.

    Raises:
        PayloadError: lengths beyond `MAX_HEAD` or `MAX_BODY`; the stream is unusable then.
        OSError: broken off within a frame, or too slow.
    """
    first = stream.recv(1)
    if not first:
        return None
    patience = stream.gettimeout()
    deadline = time.monotonic() + within_s
    try:
        rest = _receive(stream, _LENGTHS.size - 1, deadline)
        head_length, body_length = _LENGTHS.unpack(first + rest)
        if head_length > MAX_HEAD or body_length > MAX_BODY:
            raise PayloadError(
                f"a frame of {head_length} bytes of JSON and {body_length} of array; "
                f"at most {MAX_HEAD} and {MAX_BODY} are allowed"
            )
        head = _receive(stream, head_length, deadline)
        return bytes(head), bytes(_receive(stream, body_length, deadline))
    finally:
        stream.settimeout(patience)


def _receive(stream: socket.socket, count: int, deadline: float) -> bytearray:
    data = bytearray(count)
    view, filled = memoryview(data), 0
    while filled < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other side is too slow")
        stream.settimeout(left)
        got = stream.recv_into(view[filled:])
        if not got:
            raise ConnectionError("broken off within a frame")
        filled += got
    return data
