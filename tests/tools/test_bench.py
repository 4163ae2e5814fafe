"""``edgefold bench train`` compares like with like."""

import json
from pathlib import Path

import pytest

from tools import cli


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


@pytest.mark.parametrize(
    "words",
    ["bench train --nets lstm", "bench train --nets cnn --steps 0", "bench train --batch 0"],
)
def test_what_cannot_be_measured_is_a_usage_error(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
