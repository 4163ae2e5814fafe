"""The topics that a broker does not let us read, by its answers to SUBSCRIBE. Pure."""

from collections.abc import Collection, Sequence

from models.transport.link import Subscribed

__all__ = ["DeniedTopics"]


class DeniedTopics:
    """Remembers which topics were refused, so that each refusal is news once."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[str, ...]] = {}  # topics of SUBSCRIBEs without an answer
        self._denied: dict[str, str] = {}  # topic -> why

    def asked(self, mid: int, topics: Sequence[str]) -> None:
        """Note that ``topics`` were asked for, in this order, with packet number ``mid``."""
        self._asked[mid] = tuple(topics)

    def connected(self) -> None:
        """What was not answered before never will be; packet numbers return."""
        self._asked.clear()

    def answered(
        self, mid: int, reasons: Sequence[str], wanted: Collection[str]
    ) -> tuple[list[str], list[Subscribed]]:
        """Take the answer to ``mid``: for each topic why not, "" if it was granted.

        ``wanted`` are the topics that no later wish is about. An answer to anything else than a
        SUBSCRIBE says nothing.

        Returns:
            The topics to ask for again, and what is news.
        """
        asked = self._asked.pop(mid, ())
        answers = dict(zip(asked, reasons, strict=False))
        denied = {t: reason for t, reason in answers.items() if reason and t in wanted}
        news = {t: reason for t, reason in denied.items() if self._denied.get(t) != reason}
        granted = tuple(t for t, reason in answers.items() if not reason and t in self._denied)
        for topic in granted:
            del self._denied[topic]
        self._denied |= denied
        events = [
            Subscribed(tuple(t for t in news if news[t] == reason), reason)
            for reason in dict.fromkeys(news.values())
        ]
        return list(denied), [*events, *([Subscribed(granted, "")] if granted else [])]
