"""``edgefold bench`` compares like with like, and says what it cannot measure."""

import json
from pathlib import Path

import pytest

from tools import cli
from tools.local_fleet.local_broker import find_mosquitto


@pytest.mark.slow
def test_both_sides_compute_the_same_and_the_report_says_what_it_cost(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = [
        "bench",
        "train",
        "--nets",
        "har_cnn",
        "--batch",
        "8",
        "--steps",
        "3",
        "--repeats",
        "1",
        "--report",
    ]
    assert cli.main([*words, str(report)]) == 0
    (figures,) = json.loads(report.read_text())["results"]
    assert figures["net"] == "har_cnn"
    assert figures["edgefold"]["loss"] == pytest.approx(figures["torch"]["loss"], abs=1e-4)
    for side in ("torch", "edgefold"):
        assert figures[side]["ms_min"] > 0
    assert figures["rss_ratio"] < 0.45, "torch alone takes 200 MB"


@pytest.mark.slow
def test_norms_that_adapt_are_measured_beside_frozen_ones(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = "bench train --nets cnn_norm --norms personal --batch 8 --steps 3 --repeats 1 --report"
    assert cli.main([*words.split(), str(report)]) == 0
    (figures,) = json.loads(report.read_text())["results"]
    assert figures["edgefold"]["loss"] == pytest.approx(figures["torch"]["loss"], abs=1e-4)
    assert figures["edgefold"]["loss"] != pytest.approx(figures["frozen"]["loss"], abs=1e-4)
    assert figures["norms_time_ratio"] > 0
    assert figures["norms_rss_ratio"] < 1.5


@pytest.mark.slow
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_a_server_folds_what_many_devices_send_and_the_report_says_how_fast(
    tmp_path: Path,
) -> None:
    report = tmp_path / "bench.json"
    words = "bench server --data digits --net mlp --fold 10 --updates 35 --plain-updates 20"
    fleet = "--devices 7 --known 50 --past 200"
    assert cli.main([*words.split(), *fleet.split(), "--report", str(report)]) == 0
    found = json.loads(report.read_text())
    stored, mqtt, memory, plain = found["sides"]
    assert stored["updates"] == 35
    assert 25 < mqtt["updates"] <= 35  # what is left is too few for a release
    assert 25 < memory["updates"] <= 35
    assert plain["updates"] == 20
    assert mqtt["bytes_per_update"] == memory["bytes_per_update"] < plain["bytes_per_update"]
    assert all(side["updates_per_second"] > 0 for side in found["sides"])
    assert found["restart"]["seconds"] > 0


@pytest.mark.parametrize(
    "words",
    [
        "bench train --nets lstm",
        "bench train --nets cnn --steps 0",
        "bench train --batch 0",
        "bench server --updates 50",
        "bench server --devices 0",
        "bench server --rule telepathy",
        "bench server --known 100 --past 150",
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
