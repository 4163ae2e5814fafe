"""How the axes of a stored sample become those that a model takes. Pure; shapes only.

Axes are exchanged, or a sample is reshaped, only where that cannot mix its values up: axes of one
are added or dropped, channels go from the last place to the first or back, a sample is flattened or
unflattened whole. Everything else is refused, however well the number of values agrees.
"""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

from models.errors import UsageError

__all__ = ["Layout", "checked_order", "find_layout"]

Dims = Sequence[int | None]  # None: open
# Orders that put channels (or the frames before them) elsewhere, by the number of axes.
MOVES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 0),),
    3: ((2, 0, 1), (1, 2, 0)),
    4: ((3, 0, 1, 2), (1, 2, 3, 0), (0, 3, 1, 2), (0, 2, 3, 1), (1, 0, 2, 3)),
    5: ((4, 0, 1, 2, 3), (1, 2, 3, 4, 0)),
}
COLORS = (3, 4)


class Layout(NamedTuple):
    """What is done to the axes of one sample."""

    order: tuple[int, ...]  # of the stored axes, as `numpy.transpose` takes it
    shape: tuple[int, ...]  # of the model's sample: what it is reshaped to then
    words: str = ""  # what that is, for people; "" where nothing is done
    note: str = ""  # what else it could be

    @property
    def turns(self) -> bool:
        return self.order != tuple(range(len(self.order)))


def find_layout(
    stored: Sequence[int], wanted: Dims, *, transpose: Sequence[int] | None = None
) -> Layout:
    """Return how samples of shape ``stored`` become samples of shape ``wanted``.

    ``transpose`` is the order of the stored axes that somebody asked for.

    Raises:
        UsageError: there is no way, or there are several and none is plain; says both shapes.
    """
    stored = tuple(stored)
    straight = tuple(range(len(stored)))
    if transpose is not None:
        return _asked(stored, wanted, tuple(transpose))
    turned = _turned(stored, wanted)
    if (shape := _filled(stored, wanted)) is not None:
        return Layout(straight, shape, _about_ones(stored, shape), _doubt(stored, shape, turned))
    if len(turned) == 1:
        ((order, shape),) = turned.items()
        return Layout(order, shape, f"{_move_words(stored, order)}, {list(shape)}")
    if turned:
        options = " or ".join(f"--transpose {_numbers(order)}" for order in turned)
        raise UsageError(
            f"one sample of x has shape {list(stored)}, and its axes fit the model's "
            f"{_text(wanted)} in several orders: say which, {options}"
        )
    if (flat := _flat(stored, wanted)) is not None:
        return Layout(straight, *flat)
    raise UsageError(_refusal(stored, wanted))


def checked_order(stored: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Return ``order``, an order of all axes of ``stored``.

    Raises:
        UsageError: it is not one.
    """
    if sorted(order) != list(range(len(stored))):
        raise UsageError(
            f"--transpose {_numbers(order)}: a sample of shape {list(stored)} has the axes "
            f"{_numbers(range(len(stored)))}, each of which is named once"
        )
    return tuple(order)


def _asked(stored: tuple[int, ...], wanted: Dims, order: tuple[int, ...]) -> Layout:
    moved = tuple(stored[axis] for axis in checked_order(stored, order))
    shape, words = _filled(moved, wanted), ""
    if shape is None:
        flat = _flat(moved, wanted)
        if flat is None:
            raise UsageError(
                f"--transpose {_numbers(order)}: samples of shape {list(stored)} become "
                f"{list(moved)}, but the model wants {_text(wanted)}"
            )
        shape, words = flat[:2]
    if order == tuple(range(len(stored))):
        return Layout(order, shape, words or _about_ones(stored, shape))
    moves = f"axes put in the order {list(order)}, {list(moved)}"
    return Layout(order, shape, ", ".join(filter(None, (moves, words))))


def _turned(stored: tuple[int, ...], wanted: Dims) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return each order of the stored axes that may be taken unasked and fits, with its shape."""
    plural = [axis for axis, size in enumerate(stored) if size != 1]
    ones = [axis for axis, size in enumerate(stored) if size == 1]
    if len(plural) == 2 and len(wanted) > 2:
        return {}  # a picture on its side, or a window? Nobody knows
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for move in MOVES.get(len(plural), ()):
        order = (*(plural[place] for place in move), *ones)
        shape = _filled(tuple(stored[axis] for axis in order), wanted)
        if shape is not None and order != tuple(range(len(stored))):
            found[order] = shape
    return found


def _filled(shape: tuple[int, ...], wanted: Dims) -> tuple[int, ...] | None:
    """Return ``wanted`` closed by ``shape``, axes of one added or dropped; None: they differ."""
    if len(shape) == len(wanted) and _fits(shape, wanted):
        return shape
    plural = [size for size in shape if size != 1]
    places = [place for place, size in enumerate(wanted) if size != 1]
    surplus = len(places) - len(plural)
    if surplus > 0:  # open axes may have one element: the first ones, as channels come first
        still_open = [place for place in places if wanted[place] is None][:surplus]
        places = [place for place in places if place not in still_open]
    if len(places) != len(plural) or not _fits(plural, [wanted[place] for place in places]):
        return None
    sizes = dict(zip(places, plural, strict=True))
    return tuple(sizes.get(place, 1) for place in range(len(wanted)))


def _fits(shape: Sequence[int], wanted: Dims) -> bool:
    return all(d in (None, n) for d, n in zip(wanted, shape, strict=True))


def _flat(stored: tuple[int, ...], wanted: Dims) -> tuple[tuple[int, ...], str, str] | None:
    """Return shape, words and note where a sample is flattened or unflattened whole."""
    plural = [size for size in stored if size != 1]
    places = [place for place, size in enumerate(wanted) if size != 1]
    size = math.prod(stored)
    if len(places) == 1 and wanted[places[0]] in (None, size):
        shape = tuple(size if place == places[0] else 1 for place in range(len(wanted)))
        return shape, f"flattened, {list(shape)}", _about_flattening(stored, plural)
    known = [d for d in wanted if d is not None]
    if len(plural) <= 1 and len(known) == len(wanted) and math.prod(known) == size:
        shape = tuple(known)
        is_gray = len(places) == 2 and len(shape) > 2
        note = (
            ""
            if is_gray
            else f"the {size} values of a sample are taken in the order of the model's "
            f"{list(shape)}, the last axis fastest; if they were flattened in another order, save "
            "x in the model's shape"
        )
        return shape, f"unflattened, {list(shape)}", note
    return None


def _about_flattening(stored: tuple[int, ...], plural: list[int]) -> str:
    if len(plural) == 2 and len(stored) > 2:
        return ""  # gray
    if len(plural) == 2 and min(plural) > max(COLORS):
        return ""  # as good as certainly a picture, row by row
    other = MOVES[len(plural)][0] if len(plural) == len(stored) and len(plural) in MOVES else None
    if other is None:
        return ""
    return (
        f"a sample of shape {list(stored)} is flattened with its last axis fastest; if the model "
        f"learned another order, --transpose {_numbers(other)} puts the axes in it before"
    )


def _about_ones(stored: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if stored == shape:
        return ""
    what = (
        "a channel axis added"
        if len(shape) > 2 and shape == (1, *stored)
        else "axes of one element added"
        if len(shape) > len(stored)
        else "axes of one element dropped"
        if len(shape) < len(stored)
        else "an axis of one element moved"
    )
    return f"{what}, {list(shape)}"


def _doubt(
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    turned: dict[tuple[int, ...], tuple[int, ...]],
) -> str:
    is_gray = len(stored) != len(shape) and sum(size != 1 for size in stored) == 2
    if not turned or is_gray:
        return ""
    order = next(iter(turned))
    return (
        f"a sample of shape {list(stored)} fits the model in more than one order of its axes, and "
        f"is taken as it is stored; if the model takes another, --transpose {_numbers(order)}"
    )


def _move_words(stored: tuple[int, ...], order: tuple[int, ...]) -> str:
    plural = [axis for axis in order if stored[axis] != 1]
    if len(plural) == 2:
        return "the two axes exchanged"
    if plural[0] == max(plural):
        return "channels put first"
    if plural[-1] == min(plural):
        return "channels put last"
    return f"axes put in the order {plural}"


def _refusal(stored: tuple[int, ...], wanted: Dims) -> str:
    said = f"one sample of x has shape {list(stored)}, but the model wants {_text(wanted)}"
    plural = [size for size in stored if size != 1]
    known = [size for size in wanted if size not in (1, None)]
    channels = [size for size in wanted if size in COLORS]
    if len(plural) == 2 and len(wanted) == 3 and channels:
        axis = 1 if wanted[0] in COLORS else 3
        place = "x[:, None]" if axis == 1 else "x[..., None]"
        if len(stored) == 3:
            place = f"x.reshape(-1, {plural[0]}, {plural[1]}){place[1:]}"
        if _fits_gray(plural, wanted):
            return (
                f"{said}: the data are gray and the model takes {channels[0]} channels; save "
                f"np.repeat({place}, {channels[0]}, axis={axis}), or --resize repeats them"
            )
    for axis in (0, len(stored) - 1):  # alpha
        less = (*stored[:axis], 3, *stored[axis + 1 :])
        if len(stored) == 3 and stored[axis] == 4 and 3 in wanted and _goes(less, wanted):
            place = "x[..., :3]" if axis else "x[:, :3]"
            return f"{said}: the data have 4 channels and the model takes 3; save {place}"
    if sorted(plural) == sorted(known) and len(stored) <= 5:
        for order in permutations(range(len(stored))):
            if _filled(tuple(stored[axis] for axis in order), wanted) is not None:
                return (
                    f"{said}: if its axes only stand in another order, say so with --transpose "
                    f"{_numbers(order)}"
                )
    if None not in wanted and math.prod(stored) == math.prod(d for d in wanted if d is not None):
        return (
            f"{said}: as many values, but in other axes, and reshaping them would mix them up; "
            "save x in the model's shape, or export the model for this one"
        )
    return f"{said}: resize the data (--resize does it for pictures), or export the model for it"


def _goes(stored: tuple[int, ...], wanted: Dims) -> bool:
    return _filled(stored, wanted) is not None or bool(_turned(stored, wanted))


def _fits_gray(plural: Sequence[int], wanted: Dims) -> bool:
    sides = wanted[1:] if wanted[0] in COLORS else wanted[:2]
    return _fits(plural, sides)


def _text(dims: Dims) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def _numbers(order: Sequence[int]) -> str:
    return " ".join(map(str, order))
