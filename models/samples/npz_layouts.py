"""Other people's layouts of npz files: named, with the line of numpy that makes x and y. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["about_missing"]

SAMPLES = (
    "x", "data", "features", "images", "image", "inputs", "input", "samples", "imgs", "arr_0",
)  # fmt: skip
LABELS = (
    "y", "target", "targets", "labels", "label", "outputs", "output", "classes", "arr_1",
)  # fmt: skip
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
SHOWN = 8


class _Split(NamedTuple):
    """The names of a file that keeps training and test rows apart."""

    x: str
    y: str
    x_test: str
    y_test: str


def about_missing(names: Sequence[str], *, file: str = "FILE.npz") -> str:
    """Return a sentence on an npz with the arrays ``names``, of which x or y is none.

    It says which is missing, what is there, and the line of numpy to paste that makes a file of x
    and y, where the names are those of a layout that people use.
    """
    missing = "x" if "x" not in names else "y"
    there = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    said = f"no array {missing!r} among {there or 'none'}"
    opened = f"d = np.load({file!r}); np.savez('samples.npz', "
    if split := _split(names):
        joined = ", ".join(
            f"{ours}=np.concatenate([d[{one!r}], d[{other!r}]])"
            for ours, one, other in (("x", split.x, split.x_test), ("y", split.y, split.y_test))
        )
        test = f"test=np.repeat([0, 1], [len(d[{split.x!r}]), len(d[{split.x_test!r}])])"
        return f"{said}; put both parts into one: {opened}{joined}, {test})"
    x, y = (_one_of(names, wanted) for wanted in (SAMPLES, LABELS))
    x, y = x or _trained(names, SAMPLES), y or _trained(names, LABELS)
    if x and y and x != y:
        return f"{said}; name them: {opened}x=d[{x!r}], y=d[{y!r}])"
    if x and not y:
        return f"{said}; add them: {opened}x=d[{x!r}], y=LABELS)"
    return f"{said}; write it with np.savez('samples.npz', x=..., y=...)"


def _one_of(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the name that is the first of ``wanted``, in whatever case."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[one] for one in wanted if one in by_lower), None)


def _split(names: Sequence[str]) -> _Split | None:
    x, y = _trained(names, SAMPLES), _trained(names, LABELS)
    x_test, y_test = (_tested(names, wanted) for wanted in (SAMPLES, LABELS))
    return _Split(x, y, x_test, y_test) if x and y and x_test and y_test else None


def _trained(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return _one_of(names, _paired(wanted, TRAIN))


def _tested(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return _one_of(names, _paired(wanted, TEST))


def _paired(wanted: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Return x_train, train_x, xtrain, ... for each of them."""
    return [
        text
        for part in parts
        for one in wanted
        for text in (f"{one}_{part}", f"{part}_{one}", f"{one}{part}", f"{part}{one}")
    ]
