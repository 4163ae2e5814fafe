"""What the network thread of `models.transport.mqtt` tells its owner beside a link's events."""

from typing import NamedTuple

from models.transport.counting_client import CountingClient
from models.transport.link import Limits

__all__ = ["Acknowledged", "Answered", "Switched", "Up"]


class Up(NamedTuple):
    """The broker accepted a connection."""

    session_present: bool
    limits: Limits


class Switched(NamedTuple):
    """Another version of MQTT is spoken from now on."""

    client: CountingClient  # it knows nothing of what the one before had


class Acknowledged(NamedTuple):
    """A PUBACK."""

    mid: int
    refused: str


class Answered(NamedTuple):
    """A SUBACK or UNSUBACK."""

    mid: int
    reasons: tuple[str, ...]  # for each topic why not, "" if it was granted
