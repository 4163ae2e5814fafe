"""What an operator asks for with ``edgefold-broker forget``."""

from collections.abc import Callable
from typing import Any

import pytest
from server_world import World

from broker.commands.forget_command import age_s, chosen, forget
from models.errors import UsageError
from models.protocol.messages import Status

MakeWorld = Callable[..., World]
DAY = 86_400.0


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """Of cam-1, test-1 and test-2; the first two were not heard for 40 days."""
    world = make_world()
    for name in ("cam-1", "test-1"):
        world.device(name).report(Status(online=True, task="leaves", release=1))
    world.run(40 * DAY)
    world.device("test-2").report(Status(online=True, task="leaves", release=1))
    world.run()
    return world


def names(world: World, *wanted: str, older: float | None = None) -> list[str]:
    return [device.device for device in chosen(world.report(), wanted, older, world.wall)]


def run(world: World, *wanted: str, older: float | None = None, **options: Any) -> list[str]:
    """Ask to forget them; return what is asked for then."""
    facts: dict[str, Any] = {"is_confirmed": False, "ask": None} | options
    directory = world.directory / "server"
    forget(directory, wanted, older_than_s=older, now=world.wall, **facts)
    return world.server.books.devices.to_be_forgotten()


def test_devices_are_chosen_by_name_by_pattern_and_by_age(world: World) -> None:
    assert names(world, "test-1") == ["test-1"]
    assert names(world, "test-*", "cam-1") == ["cam-1", "test-1", "test-2"]
    assert names(world, older=30 * DAY) == ["cam-1", "test-1"]
    assert names(world, "test-*", older=30 * DAY) == ["test-1"]
    assert names(world, older=50 * DAY) == []


def test_a_restart_of_the_server_makes_nobody_younger(world: World) -> None:
    world.restart()
    world.run(1)
    assert names(world, older=30 * DAY) == ["cam-1", "test-1"]


def test_a_name_that_nobody_has_forgets_nobody(world: World) -> None:
    with pytest.raises(UsageError, match=r"no device 'cam-2' here; did you mean cam-1\?"):
        run(world, "test-1", "cam-2")
    assert world.server.books.devices.to_be_forgotten() == []


def test_names_are_forgotten_without_a_question(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world, "cam-1") == ["cam-1"]
    assert "will forget cam-1 when it is started" in capsys.readouterr().out
    world.run(10)
    assert [row.device for row in world.report().devices] == ["test-1", "test-2"]


def test_a_choice_of_many_is_confirmed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        return len(questions) > 1

    with pytest.raises(UsageError, match="would forget cam-1, test-1: add --yes"):
        run(world, older=30 * DAY)
    with pytest.raises(UsageError, match="add --yes"):
        run(world, "test-*")
    assert run(world, "test-*", ask=ask) == []
    assert run(world, "test-*", ask=ask) == ["test-1", "test-2"]
    assert questions == ["Forget test-1, test-2? [y/N] "] * 2
    assert run(world, older=30 * DAY, is_confirmed=True) == ["cam-1", "test-1", "test-2"]
    assert run(world, older=50 * DAY) == ["cam-1", "test-1", "test-2"]
    assert "no device is that old" in capsys.readouterr().out


def test_a_device_that_is_online_comes_back_and_that_is_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run(world, "test-2")
    assert "test-2 is online: it will be back" in capsys.readouterr().err


def test_of_thousands_the_number_is_said_and_some_names(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        world.device(f"old-{number}").report(Status(online=True, task="leaves", release=1))
    world.run()
    with pytest.raises(UsageError, match=r"30 devices \(old-0, old-1, .*, old-19 and 10 more\)"):
        run(world, "old-*")
    assert len(run(world, "old-*", is_confirmed=True)) == 30
    said = capsys.readouterr()
    assert said.out.count("\n") == said.err.count("\n") == 1
    assert len(said.out + said.err) < 800


@pytest.mark.parametrize(
    ("text", "seconds"), [("12h", 12 * 3600), ("30d", 30 * DAY), ("8w", 56 * DAY)]
)
def test_ages_are_in_hours_days_or_weeks(text: str, seconds: float) -> None:
    assert age_s(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "1.5d", "30 d", "1y", "99999d"])
def test_other_ages_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="30d"):
        age_s(text)
