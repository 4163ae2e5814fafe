"""Who is there: by what was heard, not by what the broker kept."""

import pytest

from broker.devices.presence import SILENT_AFTER_S, presence
from models.protocol.messages import STILL_HERE_S

NOW, LONG_AGO = 1_000_000.0, 100.0
HOUR = 3600.0


@pytest.mark.parametrize(
    ("says_online", "heard_s", "listening_s", "expected"),
    [
        (True, 10.0, HOUR, "online"),
        (True, STILL_HERE_S, 9 * HOUR, "online"),
        (True, SILENT_AFTER_S + 1, 9 * HOUR, "silent"),
        (True, 26 * HOUR, 9 * HOUR, "silent"),
        (True, 26 * HOUR, 0.1 * HOUR, "unconfirmed"),  # the server has just come back
        (True, 26 * HOUR, None, "unconfirmed"),  # it never was connected
        (True, None, 9 * HOUR, "silent"),  # retained, and never heard
        (True, None, 0.1 * HOUR, "unconfirmed"),
        (True, -26 * HOUR, 9 * HOUR, "silent"),  # the clock was set back: that says nothing
        (False, 10.0, HOUR, "away"),
        (False, None, HOUR, "away"),
        (None, None, HOUR, "never"),
        (None, 10.0, HOUR, "online"),  # only updates came so far
        (None, 26 * HOUR, 9 * HOUR, "silent"),
    ],
)
def test_presence_is_what_was_heard(
    says_online: bool | None, heard_s: float | None, listening_s: float | None, expected: str
) -> None:
    found = presence(
        says_online=says_online,
        heard=0.0 if heard_s is None else NOW - heard_s,
        listening_since=None if listening_s is None else NOW - listening_s,
        now=NOW,
    )
    assert found == expected
