"""Asks the inference process of this device, with our own errors.

The protocol itself stands in the file that applications install, `client/edgefold_client.py`.
Without numpy, so that the resident agent can use it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent.client import edgefold_client
from edge_agent.client.edgefold_client import ClientError, ProtocolError, WrongSamplesError
from models.errors import PayloadError, TransientError, UsageError

__all__ = ["Connection", "call", "in_our_words", "ping"]


def call(
    socket_path: Path, request: dict[str, object], body: bytes = b"", *, timeout_s: float
) -> tuple[dict[str, Any], bytes]:
    """Send one request on a connection of its own; return the answer and its body.

    Raises:
        TransientError: nobody answers within ``timeout_s``; the request may have been carried out.
        PayloadError: the answer is not a frame of ours.
        UsageError: the request is larger than the protocol allows.
    """
    with Connection(socket_path, timeout_s=timeout_s) as connection:
        return connection.call(request, body)


def ping(control: Path) -> dict[str, Any]:
    """Return what the inference process says of itself; nothing if there is none."""
    try:
        answer, _ = call(control, {"do": "ping"}, timeout_s=1.0)
    except (TransientError, PayloadError):
        return {}
    return answer


class Connection:
    """A connection for many requests, one after the other; not for several threads at once."""

    def __init__(self, socket_path: Path, *, timeout_s: float) -> None:
        with in_our_words():
            self._connection = edgefold_client.Connection(socket_path, timeout_s=timeout_s)

    def call(self, request: dict[str, object], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """As the function `call`, on this connection, which is unusable after an error."""
        with in_our_words():
            return self._connection.call(request, body)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    """Raise what the client raises as the error of ours that says what to do next."""
    try:
        yield
    except ProtocolError as error:
        raise PayloadError(str(error)) from None
    except WrongSamplesError as error:
        raise UsageError(str(error)) from None
    except ClientError as error:
        raise TransientError(str(error)) from None
