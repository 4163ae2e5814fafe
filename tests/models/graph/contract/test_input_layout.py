"""Axes of a sample are turned where one order fits, and never reshaped into each other."""

import numpy as np
import pytest

from models.errors import UsageError
from models.graph.contract.input_layout import Layout, find_layout


def arranged(x: np.ndarray, layout: Layout) -> np.ndarray:
    return x.transpose(layout.order).reshape(layout.shape)


def counted(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((3, 64), (3, 64)),
        ((28, 28), (1, 28, 28)),
        ((28, 28), (28, 28, 1)),
        ((28, 28, 1), (1, 28, 28)),
        ((1, 28, 28), (28, 28)),
        ((64,), (1, 64)),
        ((64,), (64, 1)),
        ((1, 64), (64,)),
        ((64, 1), (1, 64)),
        ((5, 1, 7), (5, 7)),
        ((6, 7), (1, None, None)),
        ((6, 7), (None, None, None)),
        ((6, 7), (None, None, 1)),
        ((3, 6, 7), (3, None, None)),
        ((64, 3), (None, 3)),
        ((5, 8, 9, 3), (5, 8, 9, 3)),
    ],
)
def test_axes_of_one_come_and_go_and_the_order_stays(
    stored: tuple[int, ...], wanted: tuple[int | None, ...]
) -> None:
    layout = find_layout(stored, wanted)
    assert not layout.turns
    assert np.prod(layout.shape) == np.prod(stored)
    assert len(layout.shape) == len(wanted)
    assert all(w in (None, n) for w, n in zip(wanted, layout.shape, strict=True))
    assert bool(layout.words) is (stored != layout.shape)
    assert not layout.note


@pytest.mark.parametrize(
    ("stored", "wanted", "order", "words"),
    [
        ((64, 3), (3, 64), (1, 0), "the two axes exchanged, [3, 64]"),
        ((9, 128), (128, 9), (1, 0), "the two axes exchanged, [128, 9]"),
        ((8, 10, 3), (3, 8, 10), (2, 0, 1), "channels put first, [3, 8, 10]"),
        ((3, 8, 10), (8, 10, 3), (1, 2, 0), "channels put last, [8, 10, 3]"),
        ((32, 32, 3), (3, 32, 32), (2, 0, 1), "channels put first, [3, 32, 32]"),
        ((3, 32, 32), (32, 32, 3), (1, 2, 0), "channels put last, [32, 32, 3]"),
        ((5, 8, 9, 3), (3, 5, 8, 9), (3, 0, 1, 2), "channels put first, [3, 5, 8, 9]"),
        ((5, 8, 9, 3), (5, 3, 8, 9), (0, 3, 1, 2), "axes put in the order [0, 3, 1, 2], "),
        ((1, 64, 3), (3, 64), (2, 1, 0), "the two axes exchanged, [3, 64]"),
        ((64, 3), (3, None), (1, 0), "the two axes exchanged, [3, 64]"),
        ((8, 10, 3), (3, None, None), (2, 0, 1), "channels put first, [3, 8, 10]"),
        ((3, 8, 10), (None, None, 3), (1, 2, 0), "channels put last, [8, 10, 3]"),
    ],
)
def test_the_one_order_that_fits_is_taken_and_said(
    stored: tuple[int, ...],
    wanted: tuple[int | None, ...],
    order: tuple[int, ...],
    words: str,
) -> None:
    layout = find_layout(stored, wanted)
    x = counted(*stored)
    plural = [axis for axis in order if stored[axis] != 1]
    expected = x.squeeze().transpose(np.argsort(np.argsort(plural)))
    np.testing.assert_array_equal(arranged(x, layout).squeeze(), expected)
    assert layout.words.startswith(words)


@pytest.mark.parametrize(
    ("stored", "wanted", "words", "is_doubted"),
    [
        ((28, 28), (784,), "flattened, [784]", False),
        ((28, 28), (784, 1), "flattened, [784, 1]", False),
        ((28, 28), (1, 784, 1), "flattened, [1, 784, 1]", False),
        ((32, 32, 3), (3072,), "flattened, [3072]", True),
        ((64, 3), (192,), "flattened, [192]", True),
        ((784,), (1, 28, 28), "unflattened, [1, 28, 28]", False),
        ((784,), (28, 28, 1), "unflattened, [28, 28, 1]", False),
        ((3072,), (3, 32, 32), "unflattened, [3, 32, 32]", True),
        ((192,), (3, 64), "unflattened, [3, 64]", True),
    ],
)
def test_a_sample_is_flattened_whole_and_doubts_are_said(
    stored: tuple[int, ...], wanted: tuple[int, ...], words: str, is_doubted: bool
) -> None:
    layout = find_layout(stored, wanted)
    x = counted(*stored)
    np.testing.assert_array_equal(arranged(x, layout), x.reshape(wanted))
    assert (layout.words, bool(layout.note)) == (words, is_doubted)


@pytest.mark.parametrize(
    ("stored", "wanted", "advice"),
    [
        ((64, 64), (64, 64), "--transpose 1 0"),
        ((3, 3, 3), (3, 3, 3), "--transpose 2 0 1"),
        ((9, 9), (None, 9), "--transpose 1 0"),
        ((64, 3), (None, None), "--transpose 1 0"),
        ((3, 8, 3), (3, None, None), "--transpose 2 0 1"),
    ],
)
def test_what_fits_in_more_than_one_order_is_taken_as_it_is_with_a_note(
    stored: tuple[int, ...], wanted: tuple[int | None, ...], advice: str
) -> None:
    layout = find_layout(stored, wanted)
    assert not layout.turns
    assert advice in layout.note


@pytest.mark.parametrize(
    ("stored", "wanted", "says"),
    [
        ((28, 28), (7, 112), r"\[28, 28\], but the model wants \[7, 112\]: as many values"),
        ((64, 6), (3, 128), "reshaping them would mix them up"),
        ((4, 6, 10), (6, 5, 8), "reshaping them would mix them up"),
        ((10, 8, 8), (10, 64), "reshaping them would mix them up"),
        ((28, 28), (3, 28, 28), r"gray and the model takes 3 .*np.repeat\(x\[:, None\], 3, axis=1"),
        ((28, 28, 1), (28, 28, 3), r"reshape\(-1, 28, 28\)\[..., None\], 3, axis=3"),
        ((1, 28, 28), (3, None, None), "gray and the model takes 3"),
        ((28, 14), (1, 14, 28), "--transpose 1 0"),
        ((10, 8, 3), (3, 8, 10), "--transpose 2 1 0"),
        ((8, 8, 3), (3, 9, 9), "--resize does it for pictures"),
        ((5,), (6,), r"\[5\], but the model wants \[6\]"),
        ((6, 6, 6, 5), (5, 6, 6, 6), None),
        ((5, 6, 6, 6), (6, 5, 6, 6), "in several orders: say which, --transpose"),
    ],
)
def test_all_else_is_refused_with_both_shapes_and_the_remedy(
    stored: tuple[int, ...], wanted: tuple[int | None, ...], says: str | None
) -> None:
    if says is None:
        assert find_layout(stored, wanted).turns
        return
    with pytest.raises(UsageError, match=says):
        find_layout(stored, wanted)


@pytest.mark.parametrize(
    ("stored", "wanted", "order"),
    [
        ((64, 64), (64, 64), (1, 0)),
        ((28, 14), (1, 14, 28), (1, 0)),
        ((10, 8, 3), (3, 8, 10), (2, 1, 0)),
        ((32, 32, 3), (3072,), (2, 0, 1)),
        ((3, 3, 3), (3, 3, 3), (0, 1, 2)),
    ],
)
def test_an_order_that_was_asked_for_is_taken(
    stored: tuple[int, ...], wanted: tuple[int, ...], order: tuple[int, ...]
) -> None:
    layout = find_layout(stored, wanted, transpose=order)
    x = counted(*stored)
    np.testing.assert_array_equal(arranged(x, layout), x.transpose(order).reshape(wanted))
    assert not layout.note


@pytest.mark.parametrize("order", [(0,), (0, 0), (1, 2), (0, 1, 2), (-1, 0), (0, 1)])
def test_an_order_that_is_none_or_does_not_fit_is_refused(order: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="--transpose"):
        find_layout((64, 3), (3, 64), transpose=order)
