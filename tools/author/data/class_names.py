"""Names of classes in somebody's data: checked, and as labels. Pure."""

import difflib
import unicodedata
from collections.abc import Sequence

import numpy as np

from models.errors import UsageError
from models.samples.label_forms import as_texts
from models.task.spec import MAX_NAME, MAX_NAMED_CLASSES
from tools.author.data.labeled_data import Array, Dataset

__all__ = ["checked_names", "labels_named", "names_in", "names_of_classes", "relabeled"]


def names_in(name: str, classes: Array | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    if classes.ndim != 1 or classes.dtype.kind not in "US":
        raise UsageError(
            f"{name}: classes must be a list of strings, one name for each label, not "
            f"{classes.dtype} of shape {classes.shape}"
        )
    try:
        return checked_names(as_texts("classes", classes))
    except UsageError as error:
        raise UsageError(f"{name}: classes: {error}") from None


def names_of_classes(data: Dataset, given: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return ``given``, else the names in the data, for ``classes`` classes; () for no names.

    Raises:
        UsageError: there are not as many names as classes.
    """
    names = tuple(given) or data.class_names
    if not names:
        return ()
    where = "--classes" if given else f"{data.name}: classes"
    if not classes:
        raise UsageError(
            f"{where}: only labels have class names, and y is learned as numbers, or as 0 "
            "and 1 of outputs: leave the names away"
        )
    if len(names) != classes:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise UsageError(
            f"{where} names {len(names)} ({shown}), and there are {classes} classes: give one name "
            "for each label, from 0"
        )
    return names


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes without the blanks around them, in Unicode's form C.

    Raises:
        UsageError: one is empty or very long, or two are the same.
    """
    stripped = [unicodedata.normalize("NFC", one.strip()) for one in names]
    if not all(stripped):
        raise UsageError(f"the name of class {stripped.index('')} is empty")
    for number, one in enumerate(stripped):
        if len(one) > MAX_NAME:
            raise UsageError(
                f"the name of class {number} has {len(one)} letters, at most {MAX_NAME} are kept"
            )
        if one in stripped[:number]:
            raise UsageError(f"class {stripped.index(one)} and class {number} are both {one!r}")
    return tuple(stripped)


def relabeled(name: str, y: Array, names: Sequence[str], wanted: Sequence[str]) -> Array:
    """Return labels that count in ``names`` as labels that count in ``wanted``.

    Raises:
        UsageError: one that occurs is not among them; says the nearest.
    """
    places = {one: place for place, one in enumerate(wanted)}
    table = np.array([places.get(one, -1) for one in names], np.int64)
    if (y >= len(table)).any() or (y < 0).any():
        return y  # refused by whoever knows how many classes there are
    new: Array = table[y]
    if (new < 0).any():
        row = int(np.argwhere(new < 0)[0][0])
        unknown = names[int(y[new < 0].flat[0])]
        near = difflib.get_close_matches(unknown, wanted, 1)
        some = ", ".join(wanted[:6]) + (", ..." if len(wanted) > 6 else "")
        hint = f"did you mean {near[0]!r}?" if near else f"the classes are {some}"
        raise UsageError(f"{name}: row {row} has the label {unknown!r}, which is no class: {hint}")
    return new


def labels_named(name: str, y: Array, names: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
    """Return names as labels, in the order of ``names`` or else sorted, and the names."""
    if y.ndim < 1 or not y.size:
        raise UsageError(f"{name}: y has shape {y.shape}: one target per sample is needed")
    texts = as_texts(f"{name}: y", y)
    per_row = len(texts) // len(y)
    for place, text in enumerate(texts):
        if text in ("", "nan", "NaN", "<NA>"):
            raise UsageError(
                f"{name}: row {place // per_row} of y has {text!r} for a label: leave such rows "
                "out, or give them a class of their own"
            )
    found = sorted(set(texts))
    if all(text.isascii() and text.isdecimal() for text in found):
        found.sort(key=int)  # not 1, 10, 2
    elif len(found) > 1 and all(map(_is_number, found)):
        raise UsageError(
            f"{name}: y has numbers written as texts ({texts[0]!r} in row 0): save y.astype(float)"
        )
    if not names and len(found) > MAX_NAMED_CLASSES:
        raise UsageError(
            f"{name}: y has {len(found):,} different names, at most {MAX_NAMED_CLASSES:,} can be "
            "classes"
        )
    places = {text: place for place, text in enumerate(found)}
    labels = np.array([places[text] for text in texts], np.int64).reshape(y.shape)
    if names:
        return relabeled(name, labels, found, names), names
    try:
        return labels, checked_names(found)
    except UsageError as error:
        raise UsageError(f"{name}: y: {error}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
