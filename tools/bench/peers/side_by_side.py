"""The table of a comparison, what was promised of it, and the report. Pure."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from tools.bench.peers.peer_figures import GOALS_OF_ACCURACY, ArmFigures

__all__ = ["ENOUGH_ROUNDS", "Goal", "goals", "table"]

UP_AT_MOST, DOWN_AT_MOST = 1 / 50, 1 / 30  # of a peer's bytes, each round
MEMORY_AT_MOST = 0.5  # of a peer's client at work
POINTS = 0.01  # of accuracy that may be lost against a peer,
ENOUGH_ROUNDS = 8  # once the curves are flat enough to be compared
ABOVE_PAYLOAD = 2000  # bytes a round beside the payload: header, receipt, status, MQTT


class Goal(NamedTuple):
    """Something that is promised; ``measured`` is held against ``wanted``."""

    name: str
    wanted: str
    measured: str
    reached: bool


def goals(
    ours: Sequence[Sequence[ArmFigures]],
    peers: Sequence[Sequence[ArmFigures]],
    *,
    update_bytes: Sequence[int],
    rounds: int,
) -> list[Goal]:
    """Judge every arm of ours (with its ``update_bytes``) alone and against every peer."""
    found = []
    for runs, size in zip(ours, update_bytes, strict=True):
        arm, up = runs[0].arm, _mean(runs, "bytes_up")
        problems = [problem for run in runs for problem in run.problems]
        found.append(
            Goal(
                f"{arm}: bytes up",
                f"at most {size + ABOVE_PAYLOAD:,}",
                f"{up:,.0f}",
                up <= size + ABOVE_PAYLOAD,
            )
        )
        said = "; ".join(problems) or "so it was"
        found.append(Goal(f"{arm}: every update folded once", "none lost", said, not problems))
        for others in peers:
            peer = others[0].arm
            for what, field, share in (
                ("bytes up", "bytes_up", UP_AT_MOST),
                ("bytes down", "bytes_down", DOWN_AT_MOST),
                ("memory at work", "client_rss_mb", MEMORY_AT_MOST),
            ):
                mine, theirs = _mean(runs, field), _mean(others, field)
                found.append(
                    Goal(
                        f"{arm}: {what} against {peer}",
                        f"at most 1/{1 / share:.0f}",
                        f"1/{theirs / max(mine, 1e-9):.1f}",
                        mine <= share * theirs,
                    )
                )
            if rounds >= ENOUGH_ROUNDS:
                lost = _mean(others, "accuracy") - _mean(runs, "accuracy")
                found.append(
                    Goal(
                        f"{arm}: accuracy against {peer}",
                        "at most 1 point less",
                        f"{-100 * lost:+.1f} points",
                        lost <= POINTS,
                    )
                )
    return found


def table(arms: Sequence[Sequence[ArmFigures]]) -> list[list[str]]:
    """Return rows of cells: a name, then of each arm the mean, and how often it holds the first's.

    In brackets stand the repetitions, where there are several.
    """
    rows = [["", *(runs[0].arm for runs in arms)]]
    for name, read, form in _ROWS:
        values = [[value for run in runs if (value := read(run)) is not None] for runs in arms]
        if any(values):
            rows.append([name, *_cells(name, values, form)])
    for role in sorted({role for runs in arms for run in runs for role in run.cpu_s_by_role}):
        spent = [
            [run.cpu_s_by_role[role] for run in runs if role in run.cpu_s_by_role] for runs in arms
        ]
        name = f"CPU of {role} to the last model, s"
        rows.append([name, *_cells(name, spent, ".1f")])
    for number in range(max(len(run.accuracies) for runs in arms for run in runs)):
        cells = (
            ", ".join(f"{100 * run.accuracies[number]:.2f}" for run in runs if _has(run, number))
            for runs in arms
        )
        rows.append([f"accuracy of round {number}, %", *cells])
    return rows


def _has(run: ArmFigures, number: int) -> bool:
    return number < len(run.accuracies)


def _cells(name: str, values: Sequence[Sequence[float]], form: str) -> list[str]:
    base = fmean(values[0]) if values[0] else 0.0
    cells = []
    for place, several in enumerate(values):
        if not several:
            cells.append("-")
            continue
        middle = fmean(several)
        cell = f"{middle:{form}}"
        if len(several) > 1:
            cell += f" ({', '.join(f'{value:{form}}' for value in several)})"
        if place and base and not name.endswith("%"):
            cell += f" {middle / base:.1f}x"
        cells.append(cell)
    return cells


def _mean(runs: Sequence[ArmFigures], field: str) -> float:
    return fmean(getattr(run, field) for run in runs)


def _reached(accuracy: float | None, field: str) -> Callable[[ArmFigures], float | None]:
    def read(run: ArmFigures) -> float | None:
        found = [getattr(row, field) for row in run.reached if row.accuracy == accuracy]
        return float(found[0]) if found else None

    return read


def _field(name: str) -> Callable[[ArmFigures], float | None]:
    return lambda run: float(getattr(run, name))


def _idle(name: str) -> Callable[[ArmFigures], float | None]:
    return lambda run: None if run.idle is None else float(getattr(run.idle, name))


_ROWS: tuple[tuple[str, Callable[[ArmFigures], float | None], str], ...] = (
    (
        "accuracy, mean of the last rounds, %",
        lambda run: 100 * run.accuracy,
        ".1f",
    ),
    *(
        row
        for accuracy in (*GOALS_OF_ACCURACY, None)
        for to in [f"{100 * accuracy:.0f} %" if accuracy else "the last model"]
        for row in (
            (f"to {to}: wall s", _reached(accuracy, "wall_s"), ".1f"),
            (f"to {to}: CPU s", _reached(accuracy, "cpu_s"), ".1f"),
        )
    ),
    ("until all is settled: wall s", _field("settled_wall_s"), ".1f"),
    ("until all is settled: CPU s", _field("settled_cpu_s"), ".1f"),
    ("round, from the second: wall s", _field("round_wall_s"), ".2f"),
    ("round, from the second: CPU s of all processes", _field("round_cpu_s"), ".2f"),
    ("up per client and round, bytes", _field("bytes_up"), ",.0f"),
    ("down per client and round, bytes", _field("bytes_down"), ",.0f"),
    ("down to the end of round 1, bytes", _field("first_bytes_down"), ",.0f"),
    ("whole job per client, up, bytes", _field("job_bytes_up"), ",.0f"),
    ("whole job per client, down, bytes", _field("job_bytes_down"), ",.0f"),
    ("client at work, peak RSS MB", _field("client_rss_mb"), ".0f"),
    ("client at work, peak PSS MB", _field("client_pss_mb"), ".0f"),
    ("server, peak RSS MB", _field("server_rss_mb"), ".0f"),
    ("server, peak PSS MB", _field("server_pss_mb"), ".0f"),
    ("client idle, RSS MB", _idle("rss_mb"), ".0f"),
    ("client idle, PSS MB", _idle("pss_mb"), ".0f"),
    ("client idle, bytes a minute", _idle("bytes_per_minute"), ",.1f"),
    ("client idle, CPU s a minute", _idle("cpu_s_per_minute"), ".3f"),
)
