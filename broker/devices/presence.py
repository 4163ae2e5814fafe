"""Whether a device is there, by what was heard of it and when. Pure.

MQTT shows the server no sign of a connected device that has nothing to say, so a device says at
least every `STILL_HERE_S` that it is there. One whose last word was that it is on line, and of
which nothing was heard since for longer than that, is silent: it lost its power or its line and its
will was lost as well, as when Mosquitto threw it out after its password was changed.
"""

from typing import Literal

from models.protocol.messages import STILL_HERE_S

__all__ = ["SILENT_AFTER_S", "Presence", "presence"]

SILENT_AFTER_S = STILL_HERE_S + 300.0  # its word may wait for a slow line

Presence = Literal["online", "unconfirmed", "silent", "away", "never"]
"""online: heard within `SILENT_AFTER_S`. unconfirmed: says that it is online, in words that the
broker had kept, and we did not listen for long enough yet to call it silent. silent: likewise, but
we did. away: its will or goodbye was the last word. never: it is known, and said nothing yet.
"""


def presence(
    *, says_online: bool | None, heard: float, listening_since: float | None, now: float
) -> Presence:
    """Return whether a device is there at ``now``.

    ``says_online``: by its last status; None: it sent none. ``heard``: its last live word, 0: none.
    ``listening_since``: the server hears the broker without a break; None: it does not.
    """
    if says_online is None and not heard:
        return "never"
    if says_online is False:
        return "away"
    if 0 <= now - heard <= SILENT_AFTER_S:
        return "online"
    if listening_since is None or now - listening_since <= SILENT_AFTER_S:
        return "unconfirmed"
    return "silent"
