"""Units of --mean and --std, and classes without a training row: said before anybody trains."""

from pathlib import Path

import numpy as np
import pytest

from tools import cli

PICTURES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(60) % 3


def create(tmp_path: Path, *words: str, **more: np.ndarray) -> int:
    np.savez(tmp_path / "d.npz", **({"x": PICTURES, "y": LABELS} | more))
    line = ["task", "create", "a", "--net", "cnn", "--data", str(tmp_path / "d.npz")]
    return cli.main([*line, "--out", str(tmp_path / "a"), *words])


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("--mean 123.675 116.28 103.53", "give --mean 0.485 0.456 0.406, or --input-scale 1"),
        ("--mean 0.5 --std 58 57 57", "give --std 0.2275 0.2235 0.2235, or --input-scale 1"),
    ],
)
def test_a_mean_of_bytes_is_not_subtracted_from_what_was_divided_by_255(
    words: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(tmp_path, *words.split()) == 2
    assert remedy in capsys.readouterr().err
    assert create(tmp_path, *words.split(), "--input-scale", "1") == 0


def test_a_mean_and_deviation_of_0_to_1_are_taken(tmp_path: Path) -> None:
    assert (
        create(tmp_path, *["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"])
        == 0
    )


def test_a_class_without_a_training_row_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(tmp_path, test=LABELS == 2, classes=np.array(["a", "b", "c"])) == 0
    assert "all samples of class 2 c are test rows: none is trained on" in capsys.readouterr().out
    assert create(tmp_path) == 0
    assert "none is trained on" not in capsys.readouterr().out
