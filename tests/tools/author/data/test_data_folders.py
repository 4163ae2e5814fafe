"""A folder of pictures as data: the classes are its folders, the pixels as a device sees them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.inbox.labeled_folders import label_of, read_sample
from models.errors import UsageError
from models.task.bundle import read_bundle
from tools import cli
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset

Image = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(0)


def fill(folder: Path, count: int, shape: tuple[int, ...] = (8, 10, 3), kind: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = RANDOM.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{kind}")


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_dataset(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_are_the_classes(tmp_path: Path) -> None:
    for name, count in (("wet", 3), ("dry", 2)):
        fill(tmp_path / "d" / name, count)
    (tmp_path / "d" / "wet" / ".DS_Store").write_bytes(b"")
    data = load_dataset(str(tmp_path / "d"))
    assert (data.x.dtype, data.x.shape) == (np.uint8, (5, 8, 10, 3))
    assert (data.class_names, data.y.tolist()) == (("dry", "wet"), [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.x[0], np.asarray(Image.open(tmp_path / "d/dry/0.png")))


@pytest.mark.parametrize("test", ["test", "val", "Validation"])
def test_train_and_test_may_be_apart(tmp_path: Path, test: str) -> None:
    for part, count in (("train", 4), (test, 2)):
        for name in ("a", "b"):
            fill(tmp_path / "d" / part / name, count)
    data = load_dataset(str(tmp_path / "d"))
    assert (len(data.train_rows), len(data.test_rows), data.class_names) == (8, 4, ("a", "b"))


def test_gray_pictures_have_no_axis_of_colors(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "a", 2, (8, 10))
    fill(tmp_path / "d" / "b", 2, (8, 10))
    assert load_dataset(str(tmp_path / "d")).x.shape == (4, 8, 10)
    fill(tmp_path / "d" / "c", 1)
    assert load_dataset(str(tmp_path / "d")).x.shape == (5, 8, 10, 3)


def test_dark_pictures_are_pictures_all_the_same(tmp_path: Path) -> None:
    """Of an npz such values say that they are no pixels; here they were read from pictures."""
    for name in ("night", "fog"):
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = RANDOM.integers(0, 40, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = load_dataset(str(tmp_path / "d"))
    assert create_task("a", data, TaskOptions(net="mlp")).spec.pixels == "plain"


def test_what_is_no_such_folder_is_refused_with_the_place(tmp_path: Path) -> None:
    root = tmp_path / "d"
    root.mkdir()
    assert "has no pictures: one folder for each class" in refused(root)
    fill(root / "a", 2)
    (root / "a" / "notes.txt").write_text("hello")
    assert "notes.txt is no picture (.bmp, .jpeg, .jpg, .pgm, .png, .ppm): convert" in refused(root)
    (root / "a" / "notes.txt").unlink()
    fill(root, 1)
    assert "0.png lies in no folder of a class: d/CLASS/ is needed" in refused(root)
    (root / "0.png").unlink()
    (root / "a" / "9.png").write_bytes((root / "a" / "0.png").read_bytes()[:60])
    assert "9.png: not an image" in refused(root)


def test_pictures_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    root = tmp_path / "d"
    fill(root / "a", 2)
    fill(root / "b", 2, (20, 10, 3))
    assert "0.png of 20 x 10: --size HEIGHTxWIDTH scales them" in refused(root)
    assert load_dataset(str(root), size=(6, 6)).x.shape == (4, 6, 6, 3)
    assert "--size is for folders" in refused(Path("digits"), size=(6, 6))


def test_a_task_made_of_a_folder_reads_other_folders_as_its_devices_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "d", tmp_path / "task"
    fill(root / "dry", 20)
    fill(root / "wet", 20, (30, 20, 3), "jpg")
    words = ["task", "create", "t", "--net", "cnn", "--data", str(root), "--out", str(out)]
    assert cli.main(words) == 2
    assert "--size HEIGHTxWIDTH" in capsys.readouterr().err
    assert cli.main([*words, "--size", "8x12"]) == 0
    assert "2 classes: 0 dry (20), 1 wet (20)" in capsys.readouterr().out
    spec = read_bundle(out).spec
    assert (spec.x.shape, spec.resize_images) == ((8, 12, 3), True)
    data = load_dataset(str(root), like=spec)
    wet = root / "wet" / "0.jpg"
    assert label_of("wet", spec) == data.y[20] == 1
    np.testing.assert_array_equal(read_sample(wet.name, wet.read_bytes(), spec), data.x[20])
    assert cli.main(["task", "train", str(out), "--data", str(root), "--epochs", "1"]) == 0
