"""``edgefold reproduce``: figures, their verdicts, and files for machines and for people."""

import importlib
import inspect
import json
from pathlib import Path

import pytest

from tools.cli import main
from tools.experiments.figures import figure
from tools.experiments.reproduce import EXPERIMENTS, chosen, table


def test_a_figure_is_judged_by_its_mean_in_its_direction() -> None:
    up = figure("a", "points", [1.0, 3.0], seeds=(0, 1), must_reach=2.0, moonshot=2.5)
    assert (up.ours, up.reached, up.moonshot_reached) == (2.0, True, False)
    down = figure("b", "ratio", [1.0, 1.2], seeds=(0, 1), must_reach=1.05, direction="most")
    assert down.reached is False
    nowhere = figure("c", "ratio", [float("inf")], seeds=(0,), must_reach=9.0, direction="most")
    assert nowhere.reached is False
    text = table("some", (up, down), 3.0)
    assert "seeds 0, 1" in text
    assert "NO" in text


def test_it_writes_a_report_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = tmp_path / "figures.json"
    arguments = ["gdsec", "--seeds", "1", "--report", str(report), "--pictures", str(tmp_path)]
    assert main(["reproduce", *arguments]) == 0
    found = json.loads(report.read_text())
    assert found["seeds"] == [0]
    assert {"published", "must_reach", "reached", "values"} <= found["experiments"][0].keys()
    assert (tmp_path / "gdsec.png").stat().st_size > 10_000
    assert "of bits saved" in capsys.readouterr().out


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "telepathy"])
    assert "gdsec" in capsys.readouterr().err
    assert main(["reproduce", "gdsec", "--seeds", "0"]) == 2
    assert all(row.summary for row in EXPERIMENTS.values())


def test_what_takes_hours_is_not_part_of_all_but_comes_when_it_is_named() -> None:
    assert not {"niid-full", "niid-others"} & set(chosen(["all"]))
    assert {"gdsec", "niid"} <= set(chosen(["all"]))
    named = chosen(["niid-full", "all", "gdsec"])
    assert named[:2] == ["niid-full", "gdsec"]
    assert sorted(named) == sorted(set(named))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_where_its_row_says(name: str) -> None:
    closure = inspect.getclosurevars(EXPERIMENTS[name].run).nonlocals
    module = importlib.import_module(closure["module"])
    assert list(inspect.signature(getattr(module, closure["name"])).parameters) == [
        "seeds", "is_small", "told",
    ]  # fmt: skip
