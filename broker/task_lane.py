"""One task of the server: its releases, what speaks for lost ones, what a full disk holds up."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from broker.receiving.incoming import Malformed
from broker.receiving.nonsense import Nonsense
from broker.receiving.update_inbox import TaskView
from broker.records.device_records import DeviceRecords
from broker.records.update_records import WaitingUpdate
from broker.releases.lost_releases import ALONE_S, LostReleases
from broker.releases.release_line import ReleaseLine
from broker.retry import LONGEST_RETRY_S, Retry
from models.protocol.manifest import Manifest

__all__ = ["TaskLane"]

log = logging.getLogger(__name__)


class TaskLane:
    """What the server keeps for one task; ``largest`` is the size in bytes of an update of it."""

    def __init__(
        self, line: ReleaseLine, largest: int, devices: DeviceRecords, nonsense: Nonsense
    ) -> None:
        self.line = line
        self.overtaking = Retry(f"overtake releases of {line.task}")
        self.folding = Retry(f"fold updates of {line.task}", longest_s=LONGEST_RETRY_S)
        self._largest = largest
        self._devices = devices
        self._nonsense = nonsense
        self._lost = LostReleases()
        self._has_looked = False  # at the manifest that the broker retains

    @property
    def view(self) -> TaskView:
        """What whoever takes in updates must know of it."""
        return TaskView(self.line.newest, self._largest)

    # Releases that the fleet has and the registry does not know

    def announced(self, manifest: Manifest | Malformed, release: int, *, is_retained: bool) -> None:
        """Take note of what stands on a topic that only the fleet's server writes.

        ``release`` is its number, even where the rest cannot be read; 0: nor that.

        The first retained one tells whether the registry is behind its fleet. When another server
        had the lease meanwhile, a new `Server` is made (`leaseholder.py`), which looks anew. So
        what is overtaken is a predecessor's; later ones, of a server that asks for no lease, are
        only said: the two would overtake each other for ever. What comes before it without being
        retained is what the session kept of a predecessor's.
        """
        if isinstance(manifest, Malformed):
            self._nonsense.say("", f"message dropped: {manifest.why}")
            if is_retained and not self._has_looked and release:
                self._has_looked = True  # a newer server's, before this one was put back
                self._lost.broker_retains(release, newest=self.line.newest)
            return
        line = self.line
        if manifest.task != line.task:
            return
        if is_retained and not self._has_looked:
            self._has_looked = True
            if not line.made(manifest) and not self._lost.broker_retains(
                manifest.release, newest=line.newest
            ):
                log.error("a release that is not taken for ours number=%d", manifest.release)
        elif self._has_looked and manifest.release > line.newest:
            somebody = f"somebody else publishes releases of {line.task}"
            self._nonsense.say("", f"{somebody}: is there another server?")

    def device_has(self, device: str, release: int) -> None:
        """``device`` says that it has ``release``."""
        task, newest = self.line.task, self.line.newest
        if release > newest:
            self._nonsense.say(
                device, f"has release {release} of {task}, the newest here is {newest}"
            )
        self._lost.device_has(device, release, newest=newest)

    def overtake(self, now: float, wall: float) -> bool:
        """Catch up with releases that devices have and this registry has forgotten.

        Return whether there were any, so that this registry is older than the fleet.
        """
        before = self.line.newest
        self.overtaking.run(now, partial(self._overtake, now, wall))
        return self.line.newest != before

    def _overtake(self, now: float, wall: float) -> None:
        if release := self._lost.highest(self.line.newest, now, partial(self._is_alone, wall)):
            self.line.overtake(release, wall)
            self._lost.overtook(release, now)

    def _is_alone(self, wall: float, device: str) -> bool:
        return not self._devices.was_another_heard(device, self.line.task, wall - ALONE_S)

    # Folding

    def fold(
        self, now: float, wall: float, settled: Callable[[Sequence[WaitingUpdate]], None]
    ) -> None:
        """Fold what waits, if it is due; ``settled`` hears of which updates something became."""
        self.folding.run(now, partial(self._fold, now, wall, settled))

    def _fold(
        self, now: float, wall: float, settled: Callable[[Sequence[WaitingUpdate]], None]
    ) -> None:
        self.line.ask_again(now, wall)
        due_at = self.line.due_at(now, wall)
        if due_at is not None and due_at <= now:
            settled(self.line.fold(now, wall))

    def due_at(self, now: float, wall: float) -> float | None:
        """Return when to fold next, in the seconds of ``now``; None: nothing waits, or it rests."""
        return None if self.folding.problem else self.line.due_at(now, wall)
