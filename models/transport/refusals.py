"""What it means that a broker refuses one of our publications or subscriptions. Pure.

A refusal is known by the broker's own words, which are those of MQTT 5 for its reason codes; a
broker of 3.1.1 says of subscriptions only that it refuses, and of publications nothing.
"""

from collections.abc import Iterable

__all__ = ["TOO_LARGE", "Refusals", "listed", "remedy"]

TOO_LARGE = "Packet too large"  # 0x95; some brokers answer so to a publication

_REMEDIES = {
    "Not authorized": "its ACL must allow that to {who}",
    "Quota exceeded": "its quota, often of retained messages, is used up: raise it, or clear there "
    "what nobody needs",
    TOO_LARGE: "raise its limit of a message's size (max_packet_size, or message_size_limit)",
    "Retain not supported": "it must keep retained messages",
    "QoS not supported": "it must take QoS 1",
    "Wildcard subscription not supported": "it must allow subscriptions with + in them",
    "Topic filter invalid": "it must allow such topics to {who}",
    "Topic name invalid": "it must allow such topics to {who}",
}
_OTHERWISE = "its log says why; its ACL must allow that to {who}"


def remedy(words: str, who: str) -> str:
    """Return what is to be done about a refusal in these ``words``, of ``who``."""
    return _REMEDIES.get(words, _OTHERWISE).format(who=who)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return ``names`` for people, the first ones."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


class Refusals:
    """The topics that a broker refuses to let us read or write now."""

    def __init__(self) -> None:
        self._unreadable: dict[str, str] = {}  # topics -> the broker's words
        self._unwritable: dict[str, str] = {}

    def may_read(self, topic: str, refused: str) -> None:
        """Note what the broker said to our subscription; "" is a yes."""
        _note(self._unreadable, topic, refused)

    def may_write(self, topic: str, refused: str) -> None:
        """Note what the broker said to our publication."""
        _note(self._unwritable, topic, refused)

    def sentence(self, us: str, who: str) -> str:
        """Return what is wrong, "" if nothing; ``us`` is what people call us, ``who`` our name."""
        doings = [
            f"{verb} {listed(sorted(topics))}"
            for verb, topics in (("read", self._unreadable), ("write", self._unwritable))
            if topics
        ]
        if not doings:
            return ""
        words = sorted({*self._unreadable.values(), *self._unwritable.values()})
        todo = list(dict.fromkeys(remedy(word, who) for word in words))
        return (
            f"the broker refuses to let {us} {' and '.join(doings)}: {'; '.join(todo)} "
            f"({', '.join(words)})"
        )


def _note(refusals: dict[str, str], topic: str, refused: str) -> None:
    if refused:
        refusals[topic] = refused
    else:
        refusals.pop(topic, None)
