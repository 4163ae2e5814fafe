"""A fleet that is planned: its figures are what devices sent, trained and had on the air."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker.config import TaskConfig
from models.errors import UsageError
from tools.simulation.fleet_world import simulate
from tools.simulation.scenario.energy import BOARDS, PI_ZERO_2, joules, parse_board
from tools.simulation.scenario.fault_plan import PLANS
from tools.simulation.scenario.fleet_settings import Milestone, Settings
from tools.simulation.scenario.plan_report import comparison, milestone_at, plan_report, spread
from tools.simulation.scenario.policy import parse_setting, with_policy

DAY = 86400.0
WEEK = Settings(
    devices=12,
    hours=96,
    online=0.3,
    size=64,
    fold_updates=100_000,
    fold_seconds=DAY / 2,
    sample_every_s=DAY / 2,
    session_s=7200,
    max_staleness=0,
    is_planning=True,
    settles=False,
)


@pytest.fixture(scope="module")
def played() -> dict[str, object]:
    outcome = simulate(3, WEEK)
    assert outcome.violations == ()
    return {"outcome": outcome, "report": plan_report(outcome, WEEK, target=0.8)}


def test_energy_is_power_times_time_plus_what_a_byte_costs() -> None:
    found = joules(
        PI_ZERO_2, seconds=DAY, training_s=100, online_s=3600, bytes_up=10_000, bytes_down=20_000
    )
    assert found["idle"] == pytest.approx(0.6 * DAY)
    assert found["training"] == pytest.approx((1.15 - 0.6) * 100)
    assert found["radio"] == pytest.approx(0.1 * 3600 + 5e-6 * 30_000)


def test_a_board_of_ones_own_takes_what_it_does_not_name_from_a_known_one() -> None:
    board = parse_board('like = "pi-4"\nidle_w = 3.5\n', "mine.toml")
    assert (board.idle_w, board.training_w) == (3.5, BOARDS["pi-4"].training_w)
    with pytest.raises(UsageError, match=r"mine\.toml.*idle_watts"):
        parse_board("idle_watts = 3\n", "mine.toml")
    with pytest.raises(UsageError, match="pi-9"):
        parse_board('like = "pi-9"\n', "mine.toml")


def test_policy_keys_are_those_of_the_server_and_short_ones() -> None:
    assert parse_setting("updates=50") == ("aggregation.updates", 50)
    assert parse_setting("downlink=full") == ("downlink.method", "full")
    assert parse_setting("codec.nmse = 0.2") == ("codec.nmse", 0.2)
    for wrong in ("updates", "speed=3", "aggregation.speed=3", "updates=0", "codec.context.x=1"):
        with pytest.raises(UsageError):
            parse_setting(wrong)


def test_policies_add_up() -> None:
    task = with_policy(TaskConfig(bundle=""), [("codec.bytes", 900), ("training.batch", 8)])
    assert (task.codec.bytes, task.training.batch) == (900, 8)


def test_settings_that_want_each_other_are_judged_together() -> None:
    rule, updates = map(parse_setting, ("aggregation.rule=mix", "updates=1"))
    assert with_policy(TaskConfig(bundle=""), [rule, updates]).aggregation.rule == "mix"
    with pytest.raises(UsageError, match="updates = 1, not 10"):
        with_policy(TaskConfig(bundle=""), [rule])


def test_the_95th_percentile_is_a_value_that_occurred() -> None:
    assert spread([float(n) for n in range(1, 101)]) == {"mean": 50.5, "p95": 95.0}
    assert spread([7.0]) == {"mean": 7.0, "p95": 7.0}


def test_a_target_is_met_by_the_first_release_that_is_as_good() -> None:
    points = [
        Milestone(0.0, 1, 0.5, 0, 10, 0),
        Milestone(7200.0, 2, 0.91, 300, 900, 5),
        Milestone(9000.0, 3, 0.95, 400, 1000, 9),
    ]
    found = milestone_at(points, 0.9, lower_is_better=False)
    assert found == (2.0, 2, 300, 900)
    assert milestone_at(points, 0.99, lower_is_better=False) is None
    found = milestone_at(points, 0.6, lower_is_better=True)
    assert found is not None
    assert found.release == 1


def test_a_planned_fleet_learns_and_says_what_it_cost(played: dict[str, object]) -> None:
    outcome, report = played["outcome"], played["report"]
    assert outcome.folded > WEEK.devices  # type: ignore[attr-defined]
    assert outcome.imbalance < 1e-5  # type: ignore[attr-defined]
    usage = outcome.usage  # type: ignore[attr-defined]
    assert sum(use.bytes_up for use in usage) == outcome.bytes_up  # type: ignore[attr-defined]
    assert report["bytes_up"]["mean"] == pytest.approx(  # type: ignore[index]
        sum(use.bytes_up for use in usage) / len(usage) / 4, abs=0.1
    )
    online = sum(use.online_s for use in usage) / len(usage) / (WEEK.hours * 3600)
    assert 0.15 < online < 0.45  # of 0.3 asked for
    assert report["target"]["hours"] is not None  # type: ignore[index]
    metrics = [point.metric for point in outcome.milestones]  # type: ignore[attr-defined]
    assert metrics[-1] > metrics[0]


def test_a_planned_fleet_is_the_same_for_the_same_seed(played: dict[str, object]) -> None:
    again = simulate(3, WEEK)
    before = played["outcome"]
    assert again._replace(wall_s=0.0) == before._replace(wall_s=0.0)  # type: ignore[attr-defined]


def test_a_planned_fleet_comes_to_rest_under_mild_faults() -> None:
    outcome = simulate(5, WEEK._replace(devices=6, plan=PLANS["mild"], settles=True))
    assert outcome.violations == ()
    assert outcome.settled_after_s >= 0
    assert outcome.crashes > 0


def test_smaller_payloads_cost_fewer_bytes_in_a_comparison() -> None:
    reports = []
    for size in (30, 60):
        settings = WEEK._replace(devices=4, policy=(("codec.bytes", size),))
        reports.append(plan_report(simulate(3, settings), settings, target=0.8))
    assert reports[0]["bytes_up"]["mean"] < reports[1]["bytes_up"]["mean"]
    rows = comparison(reports, "codec.bytes")
    assert [row["codec.bytes"] for row in rows] == ["30", "60"]
    assert {"B up/day", "J/day", "h to target"} <= set(rows[0])


def edgefold(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", "simulate", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_command_compares_policies_side_by_side(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    fleet = ("--devices", "4", "--hours", "48", "--target", "0.6", "--energy", "pi-4")
    done = edgefold(*fleet, "--compare", "local_steps=1,20", "--report", str(report))
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert "training.max_steps" in header
    assert len(rows) == 2
    found = json.loads(report.read_text())
    assert [plan["policy"] for plan in found["plan"]] == [
        {"training.max_steps": 1},
        {"training.max_steps": 20},
    ]


@pytest.mark.slow
def test_a_fleet_learns_a_real_task_in_process(tmp_path: Path) -> None:
    """With train.onnx and the product's codec: it gets better, over patches and with contexts."""
    from tools.author.bundle.bundle_directory import write_bundle
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.task_options import TaskOptions
    from tools.author.data.datasets import load_dataset

    bundle = create_task("digits", load_dataset("digits"), TaskOptions(net="mlp"))
    write_bundle(bundle, tmp_path / "digits")
    settings = WEEK._replace(
        devices=2,
        hours=10,
        online=1.0,
        fold_seconds=2 * 3600.0,
        task=str(tmp_path / "digits"),
        data="digits",
        split="dirichlet:1.0",
        policy=(("training.epochs", 3), ("training.learning_rate", 0.2)),
    )
    outcome = simulate(2, settings)
    assert outcome.violations == ()
    metrics = [point.metric or 0.0 for point in outcome.milestones]
    assert max(metrics) > metrics[0] + 0.2
    assert outcome.patched > 0
    assert outcome.with_context > 0
    assert outcome.imbalance < 1e-5


def test_a_task_without_data_is_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="needs --data"):
        simulate(1, WEEK._replace(task="somewhere"))
