"""How many bytes may be on their way at once, so that a ping still gets through. Pure.

Whatever is handed over before a PINGREQ must reach the broker before it. With 8 chunks of 64 KiB
in front of it, a link of 64 kbit/s needs 67 s: paho gives up after one keepalive, resends all of
it, and so never gets any further. So the bytes in flight are kept below what the link carries in a
quarter of a keepalive, by what the last acknowledgements took.
"""

FLOOR = 64 * 1024  # bytes; one chunk may always go, and many small messages
SHARE = 0.25  # of a keepalive


class Pace:
    """Bytes in flight, and the most of them that are wise. Times in seconds, any origin."""

    def __init__(self, keepalive_s: float) -> None:
        self._horizon_s = SHARE * keepalive_s
        self._limit = float(FLOOR)
        self._in_flight = 0

    @property
    def is_open(self) -> bool:
        """Whether one more message may go: always when nothing is in flight."""
        return self._in_flight == 0 or self._in_flight < self._limit

    def sent(self, size: int) -> int:
        """Count a message in; return what is ahead of its acknowledgement, for `acknowledged`."""
        self._in_flight += size
        return self._in_flight

    def acknowledged(self, size: int, *, ahead: int, took_s: float) -> None:
        """Count a message out that took ``took_s`` from hand-over to acknowledgement."""
        self._in_flight -= size
        rate = ahead / max(took_s, 1e-3)
        self._limit = max(float(FLOOR), rate * self._horizon_s)
