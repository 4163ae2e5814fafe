"""Every topic of the protocol, written and read in one place. Pure.

All of them lie below ``edgefold/1/<fleet>/`` (docs/protocol.md).
"""

from typing import NamedTuple

from models.errors import PayloadError
from models.protocol.names import NAME, SHA256, UPDATE_ID, checked_name

__all__ = [
    "MAX_CHUNKS",
    "BlobChunk",
    "DeviceTopic",
    "ServerTopic",
    "Topics",
    "UpdateChunk",
]

MAX_CHUNKS = 1 << 20


class UpdateChunk(NamedTuple):
    """Where chunk ``number`` of a device's update stands."""

    device: str
    update_id: str
    number: int


class DeviceTopic(NamedTuple):
    """A message of one device: ``kind`` is ``status``, ``request`` or ``receipt``."""

    device: str
    kind: str


class BlobChunk(NamedTuple):
    """Where chunk ``number`` of the artifact ``sha256`` stands."""

    sha256: str
    number: int


class ServerTopic(NamedTuple):
    """A message about who serves the fleet: ``kind`` is ``status`` or ``ask``."""

    kind: str


class Topics:
    """The topics of one fleet."""

    def __init__(self, fleet: str) -> None:
        self.fleet = checked_name("fleet", fleet)
        self.prefix = f"edgefold/1/{fleet}/"

    def release(self, task: str) -> str:
        return f"{self.prefix}task/{task}/release"

    def blob(self, sha256: str, number: int) -> str:
        return f"{self.prefix}blob/{sha256}/{number}"

    def update(self, device: str, update_id: str, number: int) -> str:
        return f"{self.prefix}device/{device}/update/{update_id}/{number}"

    def receipt(self, device: str) -> str:
        return f"{self.prefix}device/{device}/receipt"

    def status(self, device: str) -> str:
        return f"{self.prefix}device/{device}/status"

    def request(self, device: str) -> str:
        return f"{self.prefix}device/{device}/request"

    @property
    def server_status(self) -> str:
        """Who serves this fleet; retained, and the will of that server."""
        return f"{self.prefix}server/status"

    @property
    def server_ask(self) -> str:
        """Asks the server that is there, if any, to say so on `server_status`."""
        return f"{self.prefix}server/ask"

    @property
    def all_updates(self) -> str:
        return f"{self.prefix}device/+/update/+/+"

    @property
    def all_statuses(self) -> str:
        return f"{self.prefix}device/+/status"

    @property
    def all_requests(self) -> str:
        return f"{self.prefix}device/+/request"

    def parse(self, topic: str) -> UpdateChunk | DeviceTopic | BlobChunk | ServerTopic | str:
        """Return what ``topic`` stands for; a task's name for its release topic.

        Raises:
            PayloadError: not a topic of this fleet.
        """
        parts = topic.removeprefix(self.prefix).split("/")
        if topic.startswith(self.prefix):
            match parts:
                case ["task", task, "release"] if NAME.fullmatch(task):
                    return task
                case ["blob", sha256, number] if SHA256.fullmatch(sha256):
                    return BlobChunk(sha256, _number(topic, number))
                case ["device", device, "update", update_id, number] if NAME.fullmatch(
                    device
                ) and UPDATE_ID.fullmatch(update_id):
                    return UpdateChunk(device, update_id, _number(topic, number))
                case ["device", device, ("status" | "request" | "receipt") as kind] if (
                    NAME.fullmatch(device)
                ):
                    return DeviceTopic(device, kind)
                case ["server", ("status" | "ask") as kind]:
                    return ServerTopic(kind)
        raise PayloadError(f"no topic of fleet {self.fleet}: {topic[:200]!r}")


def _number(topic: str, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 7 and int(text) < MAX_CHUNKS:
        return int(text)
    raise PayloadError(f"chunk number {text[:20]!r} in {topic[:200]!r}")
