"""How long whoever brings a release to a device waits. Pure."""

from typing import NamedTuple

__all__ = ["ReleasePace"]


class ReleasePace(NamedTuple):
    """All in seconds."""

    refresh_s: float = 8 * 3600.0  # to the next look at what is announced: brokers may drop it
    refused_s: float = 3600.0  # the same manifest is not tried again before
    patience_s: float = 30.0  # without progress, before the server is asked for chunks; doubles
    longest_patience_s: float = 900.0
    longest_retry_s: float = 300.0
    longest_repeat_s: float = 3600.0  # of a file that keeps arriving damaged: all its bytes again
    disk_retry_s: float = 30.0  # a full disk or a starting process: it may be over soon
    patching_s: float = 0.1  # to the next look at the child that patches
