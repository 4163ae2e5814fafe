"""Folders of pictures in the inbox: stored upright, scaled only for a task that says so."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_fleet import tiny_spec

from edge_agent.inbox.labeled_folders import read_sample
from edge_agent.samples.entry_fate import NotHereError, Wait
from models.errors import PayloadError
from models.task.spec import ArraySpec, TaskSpec, decode_spec, encode_spec

Image = pytest.importorskip("PIL.Image")


def spec_of(shape: tuple[int, ...], **changes: Any) -> TaskSpec:
    return tiny_spec(x=ArraySpec("uint8", shape), **changes)


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """A picture, white above and black below as it is stored."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[: height // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_a_telephone_held_upright_gives_an_upright_sample() -> None:
    found = read_sample("a.jpg", jpeg(16, 32, orientation=3), spec_of((32, 16)))
    assert found[:14].max() < 60
    assert found[18:].min() > 200
    found = read_sample("a.jpg", jpeg(32, 16, orientation=6), spec_of((32, 16)))
    assert found[:, 10:].min() > 200, "what was above is at the right"


@pytest.mark.parametrize("shape", [(16, 8), (8, 64), (128,), (3, 8, 16), (8, 16, 3)])
def test_pictures_of_another_size_wait_for_another_release(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotHereError) as caught:
        read_sample("a.jpg", jpeg(16, 9), spec_of(shape))
    assert caught.value.wait is Wait.SPEC


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (8, 8, 1), (3, 8, 8), (8, 8, 3)])
def test_a_task_that_resizes_takes_pictures_of_any_size(shape: tuple[int, ...]) -> None:
    spec = spec_of(shape, resize_images=True)
    assert decode_spec(encode_spec(spec)) == spec
    found = read_sample("a.jpg", jpeg(64, 48), spec)
    assert found.shape == shape
    light, dark = found.reshape(-1)[: 2 * 8], found.reshape(-1)[-2 * 8 :]
    if shape[0] != 3:
        assert light.min() > 200
        assert dark.max() < 60


def test_a_picture_that_is_cut_off_is_damaged() -> None:
    data = jpeg(64, 48)
    for spec in (spec_of((48, 64)), spec_of((8, 8), resize_images=True)):
        with pytest.raises(PayloadError):
            read_sample("a.jpg", data[: len(data) // 2], spec)


def test_an_old_spec_knows_nothing_of_resizing_and_weights() -> None:
    data = encode_spec(spec_of((8, 8)))
    assert b"resize" not in data
    assert b"weights" not in data


def test_the_authors_option_is_what_the_device_obeys(tmp_path: Path) -> None:
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.task_options import TaskOptions
    from tools.author.data.labeled_data import Dataset

    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    data = Dataset("d", x, np.arange(40) % 2, None, np.arange(40) % 5 == 0, False)
    for resize in (False, True):
        spec = create_task("t", data, TaskOptions(net="cnn", resize=resize)).spec
        assert spec.resize_images == resize
    assert read_sample("a.jpg", jpeg(64, 48), spec).shape == (8, 8, 3)
