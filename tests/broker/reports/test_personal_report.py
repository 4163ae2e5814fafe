"""How good the devices' models are: means, the worst tenth, the worst device."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from server_world import World

from broker.__main__ import main
from broker.reports.personal_report import Column, column, personal_report, show_personal
from models.protocol.messages import Status

MakeWorld = Callable[..., World]
DAY_S = 86_400.0


def said(accuracy: float | None, **more: object) -> Status:
    return Status(online=True, task="leaves", accuracy=accuracy, holdout=40, **more)  # type: ignore[arg-type]


def test_a_column_is_mean_worst_tenth_and_worst_device() -> None:
    values = {f"dev-{n}": n / 20 for n in range(20)}
    found = column(values)
    assert found is not None
    assert found.mean == pytest.approx(sum(values.values()) / 20)
    assert found.worst_decile == pytest.approx((0 + 1 / 20) / 2)
    assert (found.devices, found.worst, found.worst_device) == (20, 0.0, "dev-0")
    errors = column(values, lower_is_better=True)
    assert errors is not None
    assert errors.worst_device == "dev-19"
    assert errors.worst_decile == pytest.approx((19 / 20 + 18 / 20) / 2)
    assert column({"a": 0.5}) == Column(1, 0.5, 0.5, 0.5, "a")
    assert column({}) is column({"a": float("nan")}) is None


def test_devices_heard_of_within_thirty_days_count(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    world.device("long-gone").report(said(0.1))
    world.run()
    world.now += 31 * DAY_S
    one = said(0.9, accuracy_shared=0.5, accuracy_after=0.8, serves="tuned")
    world.device("dev-1").report(one)
    world.device("dev-2").report(msgspec.structs.replace(said(0.7), holdout=19))
    world.device("elsewhere").report(Status(online=True, task="others", accuracy=0.2))
    world.run()
    (report,) = personal_report(world.report())
    assert (report.task, report.metric) == ("leaves", "accuracy")
    assert (report.devices, report.tuned, report.few) == (2, 1, 1)
    runs, alone = report.columns["runs"], report.columns["alone"]
    assert runs == Column(2, pytest.approx(0.8), 0.7, 0.7, "dev-2")
    assert alone is None
    assert report.columns["shared"] == Column(1, 0.5, 0.5, 0.5, "dev-1")
    show_personal([report])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("2 devices heard of within 30 days, 1 run what they tuned")
    assert lines[1].startswith("1 have fewer than 20 hold-out samples")
    assert lines[4].split()[:5] == ["runs", "2", "0.8000", "0.7000", "0.7000"]


def test_the_command_prints_it_for_people_and_programs(
    make_world: MakeWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    world.device("dev-1").report(said(0.9))
    world.run()
    config = tmp_path / "asked.toml"
    config.write_text(
        f'[fleet]\nname = "test"\nbroker = "mqtt://localhost"\n[storage]\n'
        f'directory = "{world.directory / "server"}"\n[[task]]\nbundle = "{world.directory}"\n'
    )
    assert main(["personal", "--config", str(config)]) == 0
    assert "runs" in capsys.readouterr().out
    assert main(["personal", "--config", str(config), "--json"]) == 0
    (found,) = msgspec.json.decode(capsys.readouterr().out)
    assert (found["task"], found["metric"]) == ("leaves", "accuracy")
    assert list(found["columns"]) == ["shared", "runs", "after", "alone"]
