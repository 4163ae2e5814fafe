"""What the MQTT broker retains for us, as far as we know."""

from typing import NamedTuple

from broker.records.registry import Registry

__all__ = ["PublishedRecords", "PublishedRow"]


class PublishedRow(NamedTuple):
    """Something that the broker retains for us, or is about to."""

    name: str
    digest: str
    size: int
    chunk_size: int
    done: bool


class PublishedRecords:
    """The table published of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.transaction = registry.transaction

    def rows(self) -> list[PublishedRow]:
        rows = self._registry.query("SELECT name, digest, size, chunk_size, done FROM published")
        return [
            PublishedRow(name, digest, size, chunk_size, bool(done))
            for name, digest, size, chunk_size, done in rows
        ]

    def will_publish(self, row: PublishedRow) -> None:
        """Record that ``row`` is about to be retained by the broker, so that it can be cleared."""
        self._registry.execute("INSERT OR REPLACE INTO published VALUES (?, ?, ?, ?, ?)", *row)

    def was_published(self, name: str) -> None:
        self._registry.execute("UPDATE published SET done = 1 WHERE name = ?", name)

    def was_cleared(self, name: str) -> None:
        self._registry.execute("DELETE FROM published WHERE name = ?", name)

    def was_wiped(self) -> None:
        """The broker lost everything."""
        self._registry.execute("UPDATE published SET done = 0")
