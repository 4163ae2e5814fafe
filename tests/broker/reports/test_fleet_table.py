"""Tables for a terminal."""

import fcntl
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from server_world import World, good_direction, linear_spec

from broker.lease.server_state import LOCK, ServerState, StateFile
from broker.reports.device_report import DeviceReport, in_counting_order
from broker.reports.fleet_report import FleetReport, FleetSummary, ServerReport, UnservedTask
from broker.reports.fleet_table import (
    ONLY,
    SORTED_BY,
    duration_text,
    show_releases,
    show_status,
)
from broker.reports.text_table import bytes_text
from models.protocol.messages import Request, Status
from models.task.spec import Role

MakeWorld = Callable[..., World]


class Screen:
    """What was printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def show(self, report: FleetReport, now: float, **options: Any) -> tuple[list[str], list[str]]:
        """Return what is said of the fleet, and the table below it."""
        show_status(report, now, **options)
        lines = self._capsys.readouterr().out.splitlines()
        blank = lines.index("") if "" in lines else len(lines)
        return lines[:blank], lines[blank + 1 :]


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str]) -> Screen:
    return Screen(capsys)


def running(report: FleetReport, now: float, **changes: Any) -> FleetReport:
    """Return ``report`` as that of a server that runs and is connected."""
    server = ServerReport(
        **(
            {
                "running": True,
                "connected": True,
                "since": now - 7200,
                "reason": "",
                "stands_by": "",
                "started": now - 86_400,
                "seen": now,
                "problem": "",
                "tasks": ("leaves",),
                "version": "0.1.0",
            }
            | changes
        )
    )
    return msgspec.structs.replace(report, server=server)


def test_the_fleet_is_shown_in_a_few_lines_and_then_device_by_device(
    make_world: MakeWorld, screen: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    device = world.device("dev-1")
    device.send_delta(good_direction())
    world.run()
    device.report(
        Status(
            online=True,
            task="leaves",
            release=2,
            accuracy=0.75,
            samples=640,
            problem="\x1b[31mtoo hot\n" + "x" * 200,
            version="0.1.0",
        )
    )
    world.device("typo-cam").report(Status(online=True, task="leavez"))
    world.device("dev-10").report(Status(online=True, task="leaves", release=1))
    world.device("dev-9").report(Status(online=False, task="leaves"))
    world.run()
    world.now += 120
    said, table = screen.show(running(world.report(), world.wall), world.wall)
    assert said == [
        "the server runs, since 1 d, connected since 2 h, version 0.1.0",
        "fleet test: 4 devices: 3 online, 1 away, 1 on the newest release, 2 with a problem",
        "leaves: release 2 of 2 min ago, 0 updates waiting; 1 device on it, 1 on others",
        "learning: residual, average 0.9, optimizer sgd, steps epochs",
        "typo-cam asks for task leavez, which is not served here (served: leaves)",
    ]
    assert table[0].split()[:6] == ["device", "online", "heard", "release", "version", "samples"]
    assert [line.split()[0] for line in table[1:]] == ["dev-1", "dev-9", "dev-10", "typo-cam"]
    assert table[1].split()[:10] == [
        *("dev-1", "yes", "2", "min", "2", "0.1.0", "640", "2", "min", "0.7500")
    ]
    assert table[1].endswith("[31mtoo hot " + "x" * 200), "a pipe gets all of it"
    assert table[2].split()[:4] == ["dev-9", "no", "2", "min"]
    assert "which is not served here" in table[4]
    assert "\x1b" not in "".join(table)
    show_releases(world.report().task("leaves"), world.wall + 3600)
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].split()[:5] == ["2", "1", "h", "ago", "1"]


@pytest.mark.parametrize(
    ("own", "measure"),
    [(Role.FROZEN, "accuracy"), (Role.PERSONAL, "accuracy (without personal parts)")],
)
def test_the_server_s_measure_says_that_it_knows_no_personal_parts(
    make_world: MakeWorld,
    screen: Screen,
    hold_out: Path,
    capsys: pytest.CaptureFixture[str],
    own: Role,
    measure: str,
) -> None:
    evaluation = f'[task.evaluation]\ndata = "{hold_out}"\n'
    world = make_world(evaluation, spec=linear_spec(own=own))
    world.run()
    said, _ = screen.show(running(world.report(), world.wall), world.wall)
    headline = next(line for line in said if line.startswith("leaves: "))
    assert re.search(rf", {re.escape(measure)} 0\.\d{{4}},", headline)
    show_releases(world.report().task("leaves"), world.wall)
    assert f" {measure}  " in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("width", [58, 80, 120, 200])
def test_a_table_on_a_terminal_fits_it_and_loses_nothing_of_a_problem(
    make_world: MakeWorld, screen: Screen, width: int
) -> None:
    world = make_world()
    problem = " ".join(f"word{number}" for number in range(30))
    world.device("barn-camera-1").report(Status(online=True, task="leaves", problem=problem))
    world.run()
    _, table = screen.show(world.report(), world.wall, width=width)
    assert max(map(len, table)) <= width
    assert "release" in table[0], "what matters most stays"
    assert all(word in " ".join(table).split() for word in problem.split())


def test_a_server_that_does_not_run_or_hear_is_the_first_that_is_said(
    make_world: MakeWorld, screen: Screen
) -> None:
    world = make_world()
    world.device("dev-1").report(Status(online=True, task="leaves", release=1))
    world.run()
    now, report = world.wall + 9000, world.report()
    stopped = running(report, now, running=False, connected=False, seen=now - 9000)
    as_of = msgspec.structs.replace(stopped, as_of=now - 9000)
    said, table = screen.show(as_of, now)
    assert re.match(
        r"the server is not running \(last seen .*\d\d:\d\d\): start it with systemctl start",
        said[0],
    )
    assert table[0].startswith("As of ")
    cut = running(report, now, connected=False, reason="cannot reach host:1883: refused\x1b")
    assert screen.show(cut, now)[0][0] == (
        "the server runs, since 1 d, but has not been connected to the MQTT broker for 2 h: "
        "cannot reach host:1883: refused "
    )
    other = "another server (host hub, since 29 Nov 12:03) serves fleet test; this one stands by"
    spare = running(report, now, connected=False, stands_by=other)
    assert screen.show(spare, now)[0][0] == f"the server runs, since 1 d: {other}"
    full = running(report, now, problem="database or disk is full")
    assert "the server has a problem: database or disk is full" in screen.show(full, now)[0]


def test_a_silent_device_says_for_how_long(make_world: MakeWorld, screen: Screen) -> None:
    world = make_world()
    world.device("dev-1").report(Status(online=True, task="leaves", release=1))
    world.device("dev-2").report(Status(online=True, task="leaves", release=1))
    world.run()
    world.now += 26 * 3600
    world.device("dev-2").request(Request())
    world.run()
    world.run(40)
    state = ServerState(
        version="1",
        started=1.0,
        seen=world.wall,
        is_connected=True,
        since=world.wall - 1e5,
        listening_since=world.wall - 1e5,
        tasks=("leaves",),
    )
    StateFile(world.directory / "server").write(state)
    with open(world.directory / "server" / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the server's process has it
        report = world.report()
    said, table = screen.show(report, world.wall)
    assert said[1] == (
        "fleet test: 2 devices: 1 online, 1 silent, 2 on the newest release, 0 with a problem, "
        "1 not heard for a day"
    )
    assert table[1].split()[:2] == ["dev-1", "silent"]
    assert table[1].endswith("says online, not heard for 1 d")
    _, table = screen.show(report, world.wall, only=["silent"])
    assert [line.split()[0] for line in table[1:]] == ["dev-1"]


def test_devices_that_cannot_follow_are_counted_and_named(
    make_world: MakeWorld, screen: Screen
) -> None:
    """Agents of before say nothing of what they follow, and a task with an average has more."""
    world = make_world("[task.aggregation]\nupdates = 1\n")
    for name, version in (("dev-1", "0.1.0"), ("dev-2", "0.1.0"), ("dev-3", "0.2.0")):
        status = Status(online=True, task="leaves", release=1, version=version)
        world.device(name).report(status, follows=int(name == "dev-3"))
    world.run()
    head, table = screen.show(world.report(), world.wall)
    said = "leaves: 2 devices run 0.1.0, which cannot follow this release: update them"
    assert said in head
    told = "runs edgefold 0.1.0, which cannot follow release 1: update it"
    assert [told in line for line in table[1:]] == [True, True, False]
    (task,) = world.report().tasks
    assert (task.devices_unable, task.versions_unable) == (2, ("0.1.0",))


def test_nobody_is_told_to_update_where_the_task_is_as_it_always_was(
    make_world: MakeWorld, screen: Screen
) -> None:
    world = make_world("[task.learning]\naverage = 0\n")
    world.device("dev-1").report(Status(online=True, task="leaves", release=1), follows=0)
    world.run()
    head, table = screen.show(world.report(), world.wall)
    assert not any("update" in line for line in (*head[:1], *table))
    assert world.report().devices[0].problems == ()


def test_devices_can_be_chosen_and_sorted(make_world: MakeWorld, screen: Screen) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    world.device("dev-1").send_delta(good_direction())
    world.run()
    for name, release, problem in (("dev-1", 2, ""), ("dev-2", 1, "hot"), ("dev-3", 1, "")):
        status = Status(online=True, task="leaves", release=release, problem=problem)
        world.device(name).report(status)
        world.run(60)

    def shown(**options: Any) -> list[str]:
        _, table = screen.show(world.report(), world.wall, **options)
        return [line.split()[0] for line in table[1:]]

    assert shown() == ["dev-1", "dev-2", "dev-3"]
    assert shown(only=["problems"]) == ["dev-2"]
    assert shown(only=["old"]) == ["dev-2", "dev-3"]
    assert shown(only=["old", "problems"]) == ["dev-2"]
    assert shown(only=["silent"]) == []
    assert shown(sort="heard") == ["dev-3", "dev-2", "dev-1"]
    assert shown(sort="problem") == ["dev-2", "dev-1", "dev-3"]
    for sort in SORTED_BY:
        assert sorted(shown(sort=sort)) == ["dev-1", "dev-2", "dev-3"]
    for only in ONLY:
        shown(only=[only])


def test_names_are_sorted_as_people_count() -> None:
    names = ["a10", "a9", "device-10", "device-2", "device-2b", "9", "10", "a", "a1b10", "a1b9"]
    assert sorted(names, key=in_counting_order) == [
        *("9", "10", "a", "a1b9", "a1b10", "a9", "a10", "device-2", "device-2b", "device-10")
    ]


def test_an_empty_fleet_says_so(make_world: MakeWorld, screen: Screen) -> None:
    said, _ = screen.show(make_world().report(), 1e9)
    assert said[-1] == "No device has been heard of yet."


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (25_767, "25.8 kB"), (3e12, "3000.0 GB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2 h"), (90_000, "1 d")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize("kind", [ServerReport, FleetSummary, DeviceReport, UnservedTask])
def test_every_figure_of_the_status_is_documented(kind: type[msgspec.Struct]) -> None:
    text = (Path(__file__).parents[3] / "docs" / "server.md").read_text()
    figures = text[text.index("## Figures") :]
    missing = [name for name in kind.__struct_fields__ if not re.search(rf"\b{name}\b", figures)]
    assert missing == []


def test_a_file_that_is_missing_or_damaged_hides_nobody(make_world: MakeWorld) -> None:
    world = make_world()
    world.device("cam").report(Status(online=True, task="leaves", release=1))
    world.run()
    spec = world.directory / "server/artifacts" / world.manifest().artifacts["spec"].sha256
    spec.write_bytes(b"?")
    assert [device.device for device in world.report().devices] == ["cam"]
    spec.unlink()
    assert [task.parameters for task in world.report().tasks] == [0]
