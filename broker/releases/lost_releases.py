"""What speaks for releases that this registry has lost: a manifest that the broker retains, and
what devices say they have. Believes one device alone only if it is the only one. Pure.

After a restore from a backup devices have releases that the registry does not know. They refuse
lower numbers as a rollback, so the next release has to be numbered above the highest of theirs.

What a device says may be a lie. A jump ages nobody's work (`release_line.py`), so all that a
liar gains is a manifest for everybody and, where ``releases`` is set, an early end of training.
Therefore two devices must say that they are ahead, or one while no other was heard of for
`ALONE_S`; jumps on their word are `PAUSE_S` apart, and none is above `MOST_OVERTAKEN` releases: at
that pace the numbers last for a hundred thousand years.
"""

from collections.abc import Callable

__all__ = ["ALONE_S", "LOOK_S", "MOST_OVERTAKEN", "PAUSE_S", "LostReleases"]

MOST_OVERTAKEN = 1_000_000  # releases in one jump
ALONE_S = 86_400.0
PAUSE_S = 600.0
LOOK_S = 60.0  # between two looks at whether a device is alone: it asks for the whole fleet
MOST_CLAIMS = 1000  # devices whose word is kept


class LostReleases:
    """The evidence about one task. Times in seconds that nobody sets."""

    def __init__(self) -> None:
        self._retained = 0  # by the broker, and not ours
        self._claims: dict[str, int] = {}  # releases by device, above our newest when they came
        self._is_proven = False  # in this run: then one device suffices
        self._jumped_at: float | None = None  # on the word of devices
        self._looked_at: float | None = None

    def broker_retains(self, release: int, *, newest: int) -> bool:
        """The broker holds a ``release`` that the registry does not know; return if it may be."""
        if not newest <= release < newest + MOST_OVERTAKEN:
            return False
        self._retained = release
        return True

    def device_has(self, device: str, release: int, *, newest: int) -> None:
        """``device`` says that it has ``release``; ``newest`` is the registry's."""
        if not newest < release < newest + MOST_OVERTAKEN:
            self._claims.pop(device, None)
        elif device in self._claims or len(self._claims) < MOST_CLAIMS:
            self._claims[device] = release

    def highest(self, newest: int, now: float, is_alone: Callable[[str], bool]) -> int:
        """Return the highest lost release that there is reason to believe in; 0: none.

        ``is_alone`` says whether no other device was heard of within `ALONE_S`; it is asked
        rarely.
        """
        if self._retained and self._retained >= newest:
            return self._retained
        claims = {d: release for d, release in self._claims.items() if release > newest}
        if not claims or _is_within(PAUSE_S, self._jumped_at, now):
            return 0
        if len(claims) == 1 and not self._is_proven:
            if _is_within(LOOK_S, self._looked_at, now):
                return 0
            self._looked_at = now
            if not is_alone(next(iter(claims))):
                return 0
        return max(claims.values())

    def overtook(self, release: int, now: float) -> None:
        """The registry goes on above ``release`` now, as `highest` said."""
        if release != self._retained:
            self._jumped_at = now
        self._is_proven = True
        self._retained = 0
        self._claims = {d: number for d, number in self._claims.items() if number > release}


def _is_within(seconds: float, since: float | None, now: float) -> bool:
    return since is not None and now - since < seconds
