"""What is so in a running demo: read from the registry, the outboxes and the devices' own answers.

Nothing here is taken from what the demo meant to happen. The accuracy of a device is measured by
asking its inference process, over its socket, about samples that the device was never given.
"""

import contextlib
import hashlib
import io
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from broker.records.published_records import PublishedRecords
from broker.records.registry import DATABASE, Registry
from broker.records.release_records import ReleaseRecords
from broker.records.update_records import UpdateKey, UpdateRecords
from broker.reports.fleet_report import FleetReport, read_report
from edge_agent.board.installation import read_installation
from edge_agent.inference.inference_client import Connection
from edge_agent.updates.outbox_contents import read_only
from edge_agent.updates.outbox_facts import OutboxFacts
from models.errors import EdgefoldError
from models.protocol.doing import Doing
from models.protocol.manifest import encode_manifest
from models.protocol.messages import Receipt
from models.protocol.update_life import FINAL, ReceiptState
from tools.local_fleet.fleet_facts import DeviceView, FleetView, ReleaseView
from tools.local_fleet.fleet_processes import Device, Server

__all__ = ["Account", "Probe", "Watch"]

Array = npt.NDArray[np.generic]
ANSWER_S = 5.0
ASK_BYTES = 1 << 20  # of samples at a time
FETCH_SEEN = 65_536  # bytes of one; a device need not say that it fetches
FETCH_SHOWN = 500_000  # bytes; how far a smaller transfer is changes faster than one can read


class Account(NamedTuple):
    """What became of every update that was ever made; counts."""

    made: int
    folded: int
    refused: int  # taken back by the device, which sends it again with what it learns next
    merged: int  # taken back by the device before they were sent, or replaced by newer ones
    waiting: int  # still on the device or at the server
    lost: int
    folded_twice: int


class Probe(NamedTuple):
    """What a device answered about its own held-out samples, soon after it had a new release."""

    device: str
    at: float  # Unix seconds
    release: int
    accuracy: float | None  # None: it has none


class Watch:
    """Looks at all parts of a fleet from outside."""

    def __init__(
        self,
        server: Server,
        devices: Sequence[Device],
        *,
        parameters: int,
        holdout: dict[str, tuple[Array, Array]],  # by device, samples that it never sees
    ) -> None:
        self._directory = server.directory
        self._path = server.directory / DATABASE
        self._devices = devices
        self._parameters = parameters
        self._holdout = holdout
        self.probes: list[Probe] = []  # all of them, in order of time
        self._first: dict[str, Probe] = {}
        self._last: dict[str, Probe] = {}
        self._bytes_before: dict[str, int] = {}  # that the device had fetched before its release

    def look(self) -> FleetView:
        """Return the fleet as it is now."""
        states: dict[str, str] = {}
        problems: dict[str, str] = {}
        folded: dict[str, int] = {}
        releases: list[ReleaseView] = []
        report = self._report()
        if report is not None and report.tasks:
            for row in report.devices:
                states[row.device] = row.status.state if row.is_there and row.status else "off line"
                folded[row.device] = row.updates_folded
                if row.is_there and row.status:
                    problems[row.device] = row.status.problem
            for release in report.tasks[0].releases:
                dense = release.updates * 4 * self._parameters
                releases.append(
                    ReleaseView(
                        release.number,
                        release.accuracy,
                        release.updates,
                        release.bytes_up,
                        dense,
                        release.bytes_down,
                        release.created,
                    )
                )
        devices = [
            self._device(device, states.get(device.id, ""), releases)._replace(
                folded=folded.get(device.id, 0),  # by the server; the device may not know yet
                problem=problems.get(device.id, ""),
                heldout=len(self._holdout[device.id][1]),
            )
            for device in self._devices
        ]
        return FleetView(tuple(devices), tuple(releases))

    def fates(self, device: Device, first: int, last: int) -> list[Receipt]:
        """Return what the server says of the updates ``first`` to ``last`` of ``device``."""
        try:
            identity = read_installation(device.state)
            registry = Registry(self._path, "", read_only=True)
        except EdgefoldError:
            return []
        try:
            records = UpdateRecords(registry)
            name = identity.installation if identity else "00000000"
            return [
                records.receipt(UpdateKey.parse(device.id, f"{name}-{number}"))
                for number in range(first, last + 1)
            ]
        finally:
            registry.close()

    def is_published(self) -> bool:
        """Whether the broker retains the newest release, so that devices need no server for it."""
        try:
            registry = Registry(self._path, "", read_only=True)
        except EdgefoldError:
            return False
        try:
            releases = ReleaseRecords(registry)
            rows = {row.name: row for row in PublishedRecords(registry).rows()}
            for task in releases.tasks():
                current = releases.current(task)
                row = rows.get(f"task/{task}")  # published after the files that it names
                if current is None or row is None or not row.done:
                    return False
                if row.digest != hashlib.sha256(encode_manifest(current.manifest)).hexdigest():
                    return False
        finally:
            registry.close()
        return bool(rows)

    def account(self) -> Account:
        """Compare what the devices made with what the server has, update by update."""
        states: Counter[str] = Counter()
        made = merged = waiting = lost = 0
        for device in self._devices:
            here, facts = self._outbox(device)
            mine = facts.made
            merged_here = facts.merged_back + facts.replaced
            fates = self.fates(device, 1, mine)
            known = [fate for fate in fates if fate.state in {ReceiptState.STORED, *FINAL}]
            states.update(fate.state for fate in known)
            settled = {int(fate.update.partition("-")[2]) for fate in known}
            unsent = len(set(here) - settled)
            made, merged, waiting = made + mine, merged + merged_here, waiting + unsent
            lost += mine - len(settled) - unsent - merged_here + facts.refunds_lost
        report = self._report()
        return Account(
            made=made,
            folded=states[ReceiptState.FOLDED],
            refused=states[ReceiptState.REFUSED],
            merged=merged,
            waiting=waiting + states[ReceiptState.STORED],
            lost=lost,
            folded_twice=report.updates_folded_twice if report else 0,
        )

    def made(self, device: Device) -> int:
        """Return how many updates ``device`` has ever made."""
        return self.facts(device).made

    def facts(self, device: Device) -> OutboxFacts:
        return self._outbox(device)[1]

    def _report(self) -> FleetReport | None:
        try:
            return read_report(self._directory)
        except EdgefoldError:  # the server has not made it yet
            return None

    def _device(self, device: Device, state: str, releases: Sequence[ReleaseView]) -> DeviceView:
        waiting, facts = self._outbox(device)
        self._probe(device)
        peaks = device.peak_rss_mb  # ours of the trainer may miss its last moment
        peaks["trainer"] = max(peaks["trainer"], facts.trainer_peak_rss_mb or 0.0)
        if state in (Doing.TRAINING, Doing.EVALUATING) and device.trainer() is None:
            state = Doing.WAITING  # it has not said so yet
        first, last = self._first.get(device.id), self._last.get(device.id)
        missing = [r.bytes_down for r in releases if r.number > (last.release if last else 0)]
        if state == Doing.DOWNLOADING and not missing:
            state = Doing.WAITING  # likewise: it runs the newest release, we have asked it
        return DeviceView(
            id=device.id,
            state=device.what_we_did or state,
            release=last.release if last else 0,
            samples=device.samples_delivered,
            accuracy_first=first.accuracy if first else None,
            accuracy=last.accuracy if last else None,
            made=facts.made,
            folded=0,
            refused=facts.refused,
            waiting=len(waiting),
            bytes_up=device.relay.bytes_up,
            bytes_down=device.relay.bytes_down,
            accuracy_runs=facts.accuracy,
            accuracy_shared=facts.accuracy_shared,
            accuracy_after=facts.accuracy_after,
            serves="tuned" if facts.serves_tuned else "released",
            fetching=None if device.what_we_did else self._fetched(device, state, sum(missing)),
        )

    def _fetched(self, device: Device, state: str, whole: int) -> tuple[int, int] | None:
        """Return how many bytes of how many ``device`` has of the releases that it lacks."""
        done = device.relay.bytes_down - self._bytes_before.get(device.id, 0)
        if whole < FETCH_SHOWN or (state != Doing.DOWNLOADING and done < FETCH_SEEN):
            return None
        return min(whole, done), whole

    def _outbox(self, device: Device) -> tuple[list[int], OutboxFacts]:
        path = device.state / "outbox.db"
        if path.exists():
            with contextlib.suppress(EdgefoldError):
                found = read_only(path)
                return [entry.seq for entry in found.waiting], found.facts
        return [], OutboxFacts()

    def _probe(self, device: Device) -> None:
        """Ask the device's own inference process, if it has a release that we have not asked."""
        known = self._last.get(device.id)
        with (
            contextlib.suppress(EdgefoldError),
            Connection(device.state / "inference.sock", timeout_s=ANSWER_S) as model,
        ):
            release = int(str(model.call({"do": "ping"})[0].get("release", 0)))
            if release and (known is None or release != known.release):
                x, y = self._holdout[device.id]
                found = Probe(device.id, time.time(), release, _accuracy(model, x, y))
                self._first.setdefault(device.id, found)
                self._last[device.id] = found
                self._bytes_before[device.id] = device.relay.bytes_down
                self.probes.append(found)


def _accuracy(model: Connection, x: Array, y: Array) -> float | None:
    """Return the share of right answers, in [0, 1]; None without samples."""
    if not len(x):
        return None
    right = 0
    step = max(1, ASK_BYTES // x[:1].nbytes)
    for start in range(0, len(x), step):
        file = io.BytesIO()
        np.save(file, x[start : start + step])
        _, body = model.call({"do": "infer"}, file.getvalue())
        if not body:
            return 0.0
        output = np.load(io.BytesIO(body), allow_pickle=False)
        right += int((output.argmax(-1) == y[start : start + step]).sum())
    return right / len(x)
