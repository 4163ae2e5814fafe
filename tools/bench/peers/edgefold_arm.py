"""edgefold's arm: the fleet of `edgefold demo`, with the options that make its job this one."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from broker.reports.fleet_report import read_report
from models.errors import UsageError
from tools.bench.peers.course import ArmRun, Round
from tools.bench.peers.peer_job import PreparedJob
from tools.bench.peers.process_books import Books, Root
from tools.demo.demo_story import play
from tools.local_fleet.fleet_processes import Device, Server
from tools.local_fleet.onlooker import Onlooker

__all__ = ["CONNECTED_S", "SETTLED_S", "run_edgefold"]

CONNECTED_S = 8.0  # the clients of all arms have so long before the job is given
SETTLED_S = 45.0  # after it, before an idle client is measured: as `edgefold bench idle`


def run_edgefold(
    name: str, job: PreparedJob, directory: Path, *, update_bytes: int, idle_s: float
) -> ArmRun:
    """Play the job with updates of ``update_bytes``, then watch the idle devices for ``idle_s``."""
    books = Books()
    witness = _Witness(books, idle_s)
    plan = job.demo(directory, update_bytes)
    try:
        play(plan, witness)  # whether it learned, its accuracies say below
    finally:
        if books.is_alive():
            books.close()
    report = json.loads(plan.report.read_text())
    assert plan.keep is not None
    (task,) = read_report(plan.keep / "server").tasks
    rounds = []
    problems = []
    for release in task.releases:
        if release.accuracy is None:
            raise UsageError(f"release {release.number} has no accuracy")
        rounds.append(Round(release.number - 1, release.created, release.accuracy))
        if release.number > 1 and release.updates != job.plan.devices:
            problems.append(f"round {release.number - 1} had {release.updates} updates")
    problems += [f"{report[name]} {words}" for name, words in _MUST_BE_NONE if report[name]]
    return ArmRun(
        arm=name,
        clients=job.plan.devices,
        submitted=witness.submitted,
        settled=witness.settled,
        rounds=tuple(rounds),
        samples=tuple(books.samples),
        idle=witness.idle,
        problems=tuple(problems),
    )


_MUST_BE_NONE = (
    ("updates_lost", "updates were lost"),
    ("updates_folded_twice", "updates were folded twice"),
)


class _Witness(Onlooker):
    def __init__(self, books: Books, idle_s: float) -> None:
        self.submitted = self.settled = 0.0
        self.idle: tuple[float, float] | None = None
        self._books = books
        self._idle_s = idle_s

    def devices_started(self, broker_pid: int, devices: Sequence[Device]) -> None:
        if broker_pid:
            self._books.add("broker", Root(broker_pid, counts_itself=True))
        for number, device in enumerate(devices, 1):
            # An agent waits for every child of its own: its books have all of them.
            self._books.add(f"client-{number}", Root(device.pid, counts_itself=True))
            self._books.add_line(device.relay.counted)
        self._books.start()
        time.sleep(CONNECTED_S)

    def server_started(self, server: Server) -> None:
        self.submitted = time.time()
        self._books.add("server", Root(server.pid, counts_itself=True))

    def came_to_rest(self) -> None:
        self.settled = time.time()
        if self._idle_s:
            time.sleep(SETTLED_S)
            self.idle = (time.time(), time.time() + self._idle_s)
            time.sleep(self._idle_s)
