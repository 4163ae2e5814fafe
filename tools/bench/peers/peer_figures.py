"""The figures of one arm, from what happened in it. Pure."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from tools.bench.peers.course import ArmRun, Sample

__all__ = ["GOALS_OF_ACCURACY", "LAST_ROUNDS", "ArmFigures", "Reached", "figures"]

GOALS_OF_ACCURACY = (0.60, 0.70, 0.75)
LAST_ROUNDS = 3  # whose accuracies are averaged: one alone swings by a point


class Reached(NamedTuple):
    """What it cost from the submission until a model first had ``accuracy``; None: the last one."""

    accuracy: float | None
    round: int
    wall_s: float
    cpu_s: float


class Idle(NamedTuple):
    """A client that has nothing to do; means over the clients."""

    seconds: float
    rss_mb: float
    pss_mb: float
    bytes_per_minute: float
    cpu_s_per_minute: float


class ArmFigures(NamedTuple):
    """One arm, once. Bytes are of one client, means over the clients; CPU is of all processes."""

    arm: str
    accuracies: tuple[float, ...]  # by round, from number 0
    accuracy: float  # mean of the last rounds
    reached: tuple[Reached, ...]  # of `GOALS_OF_ACCURACY` those that it reached, and the last model
    settled_wall_s: float
    settled_cpu_s: float
    round_wall_s: float  # from the second round on
    round_cpu_s: float
    cpu_s_by_role: dict[str, float]  # to the last model; of a role of clients the sum
    bytes_up: float  # a round, from the second on
    bytes_down: float
    first_bytes_down: float  # to the end of the first round
    job_bytes_up: float
    job_bytes_down: float
    client_rss_mb: float  # at work: the highest sum over a client's processes
    client_pss_mb: float
    server_rss_mb: float
    server_pss_mb: float
    idle: Idle | None
    problems: tuple[str, ...]


def figures(run: ArmRun) -> ArmFigures:
    """Return the figures of ``run``; what was read some times a second is interpolated."""
    clients = [f"client-{number}" for number in range(1, run.clients + 1)]
    began, last = run.submitted, run.rounds[-1]

    def cpu_s(role: str) -> Callable[[Sample], float]:
        return lambda sample: sample.roles[role].cpu_s if role in sample.roles else 0.0

    def all_cpu_s(sample: Sample) -> float:
        return sum(reading.cpu_s for reading in sample.roles.values())

    def line(direction: int) -> Callable[[Sample], float]:
        return lambda sample: fmean(counts[direction] for counts in sample.lines)

    def spent(since: float, until: float, read: Callable[[Sample], float]) -> float:
        return _at(run.samples, until, read) - _at(run.samples, since, read)

    first, second = run.rounds[0].at, run.rounds[min(1, len(run.rounds) - 1)].at
    rounds = max(1, len(run.rounds) - 2)
    since = second if len(run.rounds) > 2 else first
    roles = {role for sample in run.samples for role in sample.roles}
    by_role: dict[str, float] = {}
    for role in sorted(roles):
        name = "clients" if role in clients else role
        by_role[name] = by_role.get(name, 0.0) + spent(began, last.at, cpu_s(role))
    reached = []
    for goal in (*GOALS_OF_ACCURACY, None):
        hits = [r for r in run.rounds if goal is None or r.accuracy >= goal]
        if hits:
            hit = hits[0] if goal is not None else last
            reached.append(
                Reached(goal, hit.number, hit.at - began, spent(began, hit.at, all_cpu_s))
            )
    accuracies = tuple(round_.accuracy for round_ in run.rounds)
    work = (began, last.at)
    return ArmFigures(
        arm=run.arm,
        accuracies=accuracies,
        accuracy=fmean(accuracies[1:][-LAST_ROUNDS:]),
        reached=tuple(reached),
        settled_wall_s=run.settled - began,
        settled_cpu_s=spent(began, run.settled, all_cpu_s),
        round_wall_s=fmean(b.at - a.at for a, b in pairwise(run.rounds[-rounds - 1 :])),
        round_cpu_s=spent(since, last.at, all_cpu_s) / rounds,
        cpu_s_by_role=by_role,
        bytes_up=spent(since, last.at, line(0)) / rounds,
        bytes_down=spent(since, last.at, line(1)) / rounds,
        first_bytes_down=spent(began, second, line(1)),
        job_bytes_up=spent(began, run.settled, line(0)),
        job_bytes_down=spent(began, run.settled, line(1)),
        client_rss_mb=_memory(run.samples, clients, work, max)[0],
        client_pss_mb=_memory(run.samples, clients, work, max)[1],
        server_rss_mb=_memory(run.samples, ["server"], work, max)[0],
        server_pss_mb=_memory(run.samples, ["server"], work, max)[1],
        idle=_idle(run, clients),
        problems=run.problems,
    )


def _idle(run: ArmRun, clients: Sequence[str]) -> Idle | None:
    if run.idle is None:
        return None
    since, until = run.idle
    minutes = (until - since) / 60

    def passed(sample: Sample) -> float:
        return fmean(sum(counts) for counts in sample.lines)

    def cpu_s(sample: Sample) -> float:
        return fmean(sample.roles[client].cpu_s for client in clients)

    rss, pss = _memory(run.samples, clients, run.idle, fmean)
    return Idle(
        until - since,
        rss,
        pss,
        (_at(run.samples, until, passed) - _at(run.samples, since, passed)) / minutes,
        (_at(run.samples, until, cpu_s) - _at(run.samples, since, cpu_s)) / minutes,
    )


def _memory(
    samples: Sequence[Sample],
    roles: Sequence[str],
    when: tuple[float, float],
    over_time: Callable[[list[float]], float],
) -> tuple[float, float]:
    """Return RSS and PSS: ``over_time`` of each role, then the mean over the roles; MB."""
    found = []
    for role in roles:
        readings = [
            s.roles[role] for s in samples if when[0] <= s.at <= when[1] and role in s.roles
        ]
        rss = [reading.rss_mb for reading in readings]
        pss = [reading.pss_mb for reading in readings if reading.pss_mb is not None]
        found.append((over_time(rss) if rss else 0.0, over_time(pss) if pss else 0.0))
    return fmean(rss for rss, _ in found), fmean(pss for _, pss in found)


def _at(samples: Sequence[Sample], at: float, read: Callable[[Sample], float]) -> float:
    """Return what was read at ``at``, between two samples on the line between them."""
    before = samples[0]
    for sample in samples:
        if sample.at >= at:
            if sample.at == before.at:
                return read(sample)
            share = (at - before.at) / (sample.at - before.at)
            return read(before) + (read(sample) - read(before)) * max(0.0, share)
        before = sample
    return read(before)
