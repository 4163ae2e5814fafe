"""`edgefold bench compress`, on a model small enough for a test."""

import pytest

from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.bench.bench_compress import Setting, measure
from tools.cli import main
from tools.compress.compress_subject import read_subject, split


@pytest.mark.slow
def test_every_row_keeps_its_bytes_and_tells_points_against_the_dense_model(tmp_path) -> None:
    data = load_dataset("digits")
    bundle = create_task("digits", data, TaskOptions(net="mlp", pretrain=8, learning_rate=0.05))
    write_bundle(bundle, tmp_path / "digits")
    subject = read_subject(tmp_path / "digits", None)
    found = measure(subject, split(data), (0.9,), [(0.95, 4)], Setting(batch=32), seed=0)
    assert found["dense_bytes"] == subject.weights.nbytes
    alone, tuned = found["rows"]
    assert (alone["epochs"], tuned["epochs"]) == (0, 4)
    for row, share in ((alone, 0.9), (tuned, 0.95)):
        assert row["reduction"] >= share
        points = 100 * (row["accuracy"] - found["accuracy"])
        assert row["points"] == pytest.approx(points, abs=0.02)
    assert alone["points"] > -3


@pytest.mark.parametrize(
    "wrong", [["--fine-tune", "0.99"], ["--fine-tune", "2:5"], ["--reductions", "1.5"]]
)
def test_wrong_wishes_are_refused_before_anything_is_trained(wrong, capsys) -> None:
    assert main(["bench", "compress", *wrong]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
