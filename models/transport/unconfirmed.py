"""What we asked of a broker and it has not confirmed yet. Pure.

Kept by packet number, as the broker's answers are. Nothing in here is given up: it is asked again
with the next connection, until an answer takes it out.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Publication", "Unconfirmed"]


class Publication(NamedTuple):
    """A message on its way out; ``token`` is what its owner knows it by."""

    token: int
    topic: str
    payload: bytes
    retain: bool


class _Wish(NamedTuple):
    subscribe: bool
    mid: int | None  # of the last request that says so; None: not sent yet


class Unconfirmed:
    """Publications, and for each topic the last wish to have it subscribed or not."""

    def __init__(self) -> None:
        self._publications: dict[int, Publication] = {}
        self._wishes: dict[str, _Wish] = {}

    @property
    def publications(self) -> int:
        """How many publications are on their way."""
        return len(self._publications)

    def published(self, mid: int, publication: Publication) -> None:
        """Remember that ``publication`` went out with packet number ``mid``."""
        self._publications[mid] = publication

    def acknowledged(self, mid: int) -> Publication | None:
        """Take out the publication with packet number ``mid``; None if there is none."""
        return self._publications.pop(mid, None)

    def take_publications(self) -> list[Publication]:
        """Take out all publications, oldest first."""
        publications = list(self._publications.values())
        self._publications.clear()
        return publications

    def asked(self, topics: Sequence[str], *, subscribe: bool, mid: int | None) -> None:
        """Remember a wish about each of ``topics``; it replaces an earlier one."""
        for topic in topics:
            self._wishes[topic] = _Wish(subscribe, mid)

    def refused(self, topics: Sequence[str]) -> None:
        """Remember that ``topics`` are to be subscribed another time; a later wish counts more."""
        for topic in topics:
            self._wishes.setdefault(topic, _Wish(subscribe=True, mid=None))

    def unsent(self) -> list[str]:
        """Return the topics to be subscribed whose request is not under way."""
        return [t for t, wish in self._wishes.items() if wish.subscribe and wish.mid is None]

    def answered(self, mid: int) -> list[str]:
        """Take out the wishes that were sent last with ``mid``; return their topics.

        A wish that was replaced meanwhile stays: its own answer is still to come.
        """
        topics = [topic for topic, wish in self._wishes.items() if wish.mid == mid]
        for topic in topics:
            del self._wishes[topic]
        return topics

    def wished(self, *, subscribe: bool) -> list[str]:
        """Return the topics that wait to be subscribed, or not to be."""
        return [topic for topic, wish in self._wishes.items() if wish.subscribe is subscribe]
