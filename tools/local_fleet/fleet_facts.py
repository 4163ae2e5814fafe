"""What is so in a demo at one moment, as values, and how they are written for people. Pure."""

from typing import NamedTuple

__all__ = [
    "DeviceView",
    "FleetView",
    "ReleaseView",
    "counted",
    "kilobytes",
    "listed",
    "minutes",
    "percent",
]


class DeviceView(NamedTuple):
    """One device, as it stands now."""

    id: str
    state: str  # the agent's word for what it does, or what we did to it
    release: int
    samples: int
    accuracy_first: float | None  # on its own hold-out, of the first release that it installed
    accuracy: float | None  # likewise, of the one installed now
    made: int
    folded: int
    refused: int
    waiting: int
    bytes_up: int
    bytes_down: int
    fetching: tuple[int, int] | None = None  # bytes that it has of how many, while it fetches
    problem: str = ""  # in the agent's words
    heldout: int = 0  # samples that the accuracies are of; 0: not known
    accuracy_runs: float | None = None  # on the hold-out of its agent: of what answers,
    accuracy_shared: float | None = None  # of the release alone,
    accuracy_after: float | None = None  # of what came of its last training
    serves: str = "released"  # what answers; or "tuned"


class ReleaseView(NamedTuple):
    """One release, as the server's registry has it."""

    number: int
    accuracy: float | None  # on the held-out data of the task
    updates: int  # folded into it
    payload_bytes: int  # of these updates
    dense_bytes: int  # of the same deltas in float32
    bytes_down: int  # what one device fetches for it
    created: float = 0.0  # Unix seconds


class FleetView(NamedTuple):
    """All of it."""

    devices: tuple[DeviceView, ...]
    releases: tuple[ReleaseView, ...]


def percent(share: float | None) -> str:
    """Return ``share`` for people: one decimal, a dash when it is not known."""
    return "-" if share is None else f"{100 * share:.1f} %"


def kilobytes(count: float) -> str:
    """Return ``count`` bytes for people, in units of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def minutes(seconds: float) -> str:
    """Return a time as minutes and seconds, 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def counted(count: int, noun: str) -> str:
    """Return "1 device" or "2 devices"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
