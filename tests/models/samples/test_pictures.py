"""Pictures as samples, from files that Pillow wrote: upright, in the task's colors and size."""

import io
from typing import Any

import numpy as np
import pytest

from models.errors import PayloadError, UsageError
from models.samples.pictures import layout_of, pixels_in, read_picture
from models.task.spec import ArraySpec

Image = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(0)
COLORS = RANDOM.integers(0, 256, (6, 8, 3)).astype(np.uint8)
GRAY = RANDOM.integers(0, 256, (6, 8)).astype(np.uint8)


def saved(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def read(data: bytes, shape: tuple[int, ...], dtype: Any = "uint8", **options: Any) -> np.ndarray:
    return read_picture(data, ArraySpec(dtype, shape), task="t", **options)


def refused(data: bytes, shape: tuple[int, ...], dtype: Any = "uint8") -> str:
    with pytest.raises(UsageError) as caught:
        read(data, shape, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((6, 8), (6, 8, 1, None)),
        ((1, 6, 8), (6, 8, 1, 0)),
        ((6, 8, 1), (6, 8, 1, 2)),
        ((3, 6, 8), (6, 8, 3, 0)),
        ((6, 8, 3), (6, 8, 3, 2)),
        ((4, 6, 8), (6, 8, 4, 0)),
        ((2, 2, 3), (2, 2, 3, 2)),
        ((3, 4, 4), (4, 4, 3, 0)),
        ((48,), None),
        ((64,), (8, 8, 1, None)),
        ((2, 6, 8), None),
        ((1, 3, 6, 8), None),
    ],
)
def test_shapes_say_where_colors_are(shape: tuple[int, ...], layout: Any) -> None:
    assert layout_of(shape) == layout


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 8, 3), COLORS),
        ((3, 6, 8), np.moveaxis(COLORS, -1, 0)),
        ((4, 6, 8), np.concatenate([np.moveaxis(COLORS, -1, 0), np.full((1, 6, 8), 255)])),
    ],
)
def test_colors_are_where_the_task_has_them(shape: tuple[int, ...], expected: Any) -> None:
    np.testing.assert_array_equal(read(saved(COLORS), shape), expected)


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (6, 8, 1)])
def test_gray_is_taken_as_it_is_and_colors_become_gray_by_their_brightness(
    shape: tuple[int, ...],
) -> None:
    np.testing.assert_array_equal(read(saved(GRAY), shape), GRAY.reshape(shape))
    luma = COLORS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(saved(COLORS), shape) - luma.reshape(shape)).max() <= 1


def test_a_vector_of_a_square_number_takes_square_pictures_row_after_row() -> None:
    square = RANDOM.integers(0, 256, (8, 8)).astype(np.uint8)
    np.testing.assert_array_equal(read(saved(square), (64,)), square.reshape(-1))
    assert "image of 4 x 16 pixels" in refused(saved(square.reshape(4, 16)), (64,))
    assert read(saved(COLORS), (64,), resize=True).shape == (64,)


def test_gray_in_a_task_of_colors_is_repeated() -> None:
    expected = np.repeat(GRAY[None], 3, axis=0)
    np.testing.assert_array_equal(read(saved(GRAY), (3, 6, 8)), expected)


def test_pixels_for_floats_are_divided_by_255() -> None:
    found = read(saved(GRAY), (6, 8), "float32")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, GRAY / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "back"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: np.swapaxes(a, 0, 1)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(np.swapaxes(a, 0, 1), 2)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_a_picture_is_turned_upright_as_its_camera_says(
    orientation: int, back: Any, kind: str
) -> None:
    """``back`` lays the upright picture down as that camera stores it."""
    upright = np.kron(RANDOM.integers(0, 2, (4, 3)) * 255, np.ones((8, 8))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = saved(np.ascontiguousarray(back(upright)), kind, exif=exif)
    found = read(stored, upright.shape)
    assert np.abs(found.astype(int) - upright).max() < 30
    if orientation > 4:
        assert "image of" in refused(stored, upright.shape[::-1])


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(COLORS).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read(saved(image), (6, 8, 3)), expected)
    assert len(np.unique(read(saved(image), (6, 8)))) > 2, "not its indices"


def test_one_bit_is_black_and_white() -> None:
    found = read(saved(Image.fromarray(GRAY > 127)), (6, 8))
    np.testing.assert_array_equal(found, np.where(GRAY > 127, 255, 0))


def test_cmyk_becomes_rgb() -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = read(saved(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95), (16, 16, 3))
    assert np.abs(found.astype(int) - flat).max() < 12


def with_alpha(alpha: int, mode: str = "RGBA") -> bytes:
    image = Image.fromarray(COLORS).convert(mode)
    bands = [np.asarray(band) for band in image.split()]
    bands[-1] = np.full((6, 8), 255, np.uint8)
    bands[-1][2, 3] = alpha
    return saved(Image.merge(mode, [Image.fromarray(band) for band in bands]))


def test_alpha_that_hides_nothing_is_left_out() -> None:
    np.testing.assert_array_equal(read(with_alpha(255), (6, 8, 3)), COLORS)
    assert read(with_alpha(255, "LA"), (6, 8)).shape == (6, 8)
    assert read(with_alpha(9), (6, 8, 4))[2, 3, 3] == 9


def test_what_lies_behind_transparent_parts_is_not_guessed() -> None:
    keyed = saved(COLORS, transparency=tuple(int(value) for value in COLORS[0, 0]))
    palette = saved(Image.fromarray(COLORS).quantize(16), transparency=0)
    for data in (with_alpha(0), with_alpha(254), with_alpha(0, "LA"), keyed, palette):
        assert "transparent parts" in refused(data, (6, 8, 3))
        assert "transparent parts" in refused(data, (6, 8))


def test_16_bits_of_gray_are_taken_only_where_the_task_has_such_numbers() -> None:
    deep = GRAY.astype(np.uint16) * 13
    data = saved(deep)
    assert "more than 8 bits a value: convert it" in refused(data, (6, 8))
    assert "more than 8 bits" in refused(data, (6, 8), "float32")
    found = read(data, (6, 8), "int32")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, deep)
    assert "which only images of 16 bits of gray have" in refused(saved(GRAY), (6, 8), "int32")
    assert "more than 8 bits" in refused(saved(GRAY.astype(np.float32), "TIFF"), (6, 8))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((8, 6), "image of 6 x 8 pixels, task t takes (8, 6): scale it, or make the task with --r"),
        ((4, 12), "image of 6 x 8"),
        ((3, 8, 6), "image of 6 x 8"),
        ((48,), "task t takes samples of shape (48,), which says no height and width"),
        ((2, 6, 8), "which says no height and width"),
    ],
)
def test_height_and_width_must_match_and_not_only_their_product(
    shape: tuple[int, ...], says: str
) -> None:
    assert says in refused(saved(GRAY), shape)


@pytest.mark.parametrize("size", [(60, 80), (3, 4), (80, 60), (6, 8)])
def test_another_size_is_scaled_where_the_task_says_so(size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 250, size[1]).astype(np.uint8)[None].repeat(size[0], axis=0)
    for kind in ("PNG", "JPEG"):
        found = read(saved(ramp, kind), (6, 8), resize=True)
        expected = np.asarray(Image.fromarray(ramp).resize((8, 6), Image.Resampling.BILINEAR))
        assert np.abs(found.astype(int) - expected).max() < 6


def test_a_large_photograph_is_scaled_without_unpacking_all_of_it() -> None:
    tracker = pytest.importorskip("resource")
    data = saved(Image.new("RGB", (5600, 4200), (10, 200, 30)), "JPEG")
    before = tracker.getrusage(tracker.RUSAGE_SELF).ru_maxrss
    found = read(data, (3, 32, 32), resize=True)
    grown_mb = (tracker.getrusage(tracker.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 40, "70 MB whole"
    assert np.abs(found.astype(int) - np.array([10, 200, 30])[:, None, None]).max() < 6


def test_damaged_pictures_are_damaged_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for whole in (saved(COLORS, exif=exif), saved(COLORS, "JPEG", exif=exif), saved(GRAY, "BMP")):
        for at in range(0, len(whole), max(1, len(whole) // 60)):
            damaged = bytearray(whole)
            damaged[at] ^= 0xFF
            for data in (whole[:at], bytes(damaged)):
                for resize in (False, True):
                    try:
                        found = read(data, (6, 8, 3), resize=resize)
                    except (PayloadError, UsageError):
                        continue
                    assert found.shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("x", "pixels"),
    [
        (np.full((3, 6, 8), 255, np.uint8), "plain"),
        (np.ones((3, 6, 8), np.uint8), "none"),
        (np.full((3, 6, 8), 16, np.uint8), "none"),
        (np.linspace(0, 1, 144).reshape(3, 6, 8), "plain"),
        (np.linspace(0, 255, 144).reshape(3, 6, 8), "bytes"),
        (np.linspace(0, 16, 144).reshape(3, 6, 8), "none"),
        (np.linspace(-2, 2.6, 144).reshape(3, 6, 8), "none"),
        (np.linspace(-2, 2.6, 144).reshape(3, 48), "plain"),
    ],
)
def test_how_an_author_holds_pixels_is_seen_in_the_values(x: np.ndarray, pixels: str) -> None:
    assert pixels_in(x) == pixels


def test_a_device_makes_the_values_that_the_author_has_or_none() -> None:
    data = saved(GRAY)
    np.testing.assert_array_equal(read(data, (6, 8), "float32", pixels="bytes"), GRAY)
    with pytest.raises(UsageError, match="whose values are not those of pixels"):
        read(data, (6, 8), "float32", pixels="none")
