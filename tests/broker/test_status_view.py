"""Tables for a terminal."""

from collections.abc import Callable

import pytest
from server_world import World, good_direction

from broker.status_view import duration_text, show_releases, show_status, size_text
from models.payload.messages import Status


def test_the_fleet_is_shown_device_by_device(
    make_world: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    device = world.device("dev-1")
    device.send_delta(good_direction())
    world.run()
    device.report(
        Status(online=True, task="leaves", release=2, accuracy=0.75, problem="\x1b[31mtoo hot\n")
    )
    world.run()
    show_status(world.report(), world.now)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "leaves: release 2, 0 updates waiting"
    assert shown[1].split()[:3] == ["device", "online", "release"]
    assert shown[2].split()[:4] == ["dev-1", "yes", "2", "0.7500"]
    assert "\x1b" not in "".join(shown)
    show_releases(world.report().task("leaves"), world.now + 3600)
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].split()[:5] == ["2", "1", "h", "ago", "1"]


def test_an_empty_fleet_says_so(
    make_world: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    show_status(make_world().report(), 0.0)
    assert "No device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (25_767, "25.8 kB"), (3e12, "3000.0 GB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2 h"), (90_000, "1 d")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
