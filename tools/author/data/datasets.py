"""Labeled data for author-side programs: files, two built-in sets, and their split into devices."""

import difflib
import gzip
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.host.extras import how_to_install
from models.samples.label_forms import as_texts
from models.task.spec import MAX_NAME, MAX_NAMED_CLASSES, TaskSpec
from tools.author.data.data_files import read_npz
from tools.author.data.data_folders import read_folder

__all__ = [
    "BUILT_IN",
    "Dataset",
    "Part",
    "checked_names",
    "load_dataset",
    "names_of_classes",
    "relabeled",
    "split_devices",
]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

MEMBERS = ("x", "y", "user", "test", "classes")
TEST_SHARE = 0.2  # of a file that has no test rows of its own
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
_SMALLEST_PART = 8  # samples; a device with fewer has nothing to learn from


class Dataset(NamedTuple):
    """``x`` [n, ...], ``y`` [n, ...], ``user`` int64 [n] or None (-1: nobody), ``test`` bool [n].

    ``x`` is uint8, int32, int64 or float32; ``y`` is int64 or float32. What ``y`` is for a model,
    `tools.author.data.targets` knows.
    """

    name: str
    x: Array
    y: Array
    user: Rows | None
    test: npt.NDArray[np.bool_]
    test_is_ours: bool  # the file had no test rows; a fifth was drawn by a fixed seed
    class_names: tuple[str, ...] = ()  # in order of their labels; (): nobody named them
    are_names: bool = False  # y held names; its labels are their places in class_names
    are_pictures: bool = False  # x was read from files of pictures, as a device reads them

    @property
    def classes(self) -> int:
        """The number of labels, 0 for targets that are numbers."""
        return int(self.y.max()) + 1 if self.y.dtype.kind == "i" else 0

    @property
    def train_rows(self) -> Rows:
        return np.flatnonzero(~self.test)

    @property
    def test_rows(self) -> Rows:
        return np.flatnonzero(self.test)


class Part(NamedTuple):
    """One device's rows of a data set, disjoint: to learn from, and to measure itself on."""

    train: Rows
    holdout: Rows


def load_dataset(
    source: str, *, size: tuple[int, int] | None = None, like: TaskSpec | None = None
) -> Dataset:
    """Return a built-in data set (`BUILT_IN`), the npz file or the folder of pictures ``source``.

    A file has ``x`` and ``y`` and may have ``user``, ``test`` (0 train, > 0 test) and ``classes``
    (their names, in order of the labels); other members are ignored. A folder has one folder of
    pictures for each class, which are read as `tools.author.data.data_folders` says.

    Raises:
        UsageError: no such data, or not what the contract says; tells what to do.
    """
    path = Path(source)
    is_folder = source not in BUILT_IN and path.is_dir()
    if size is not None and not is_folder:
        raise UsageError(
            "--size is for folders of pictures: scale the x of an npz where it is made"
        )
    if source in BUILT_IN:
        return BUILT_IN[source]()
    if is_folder:
        return _checked(source, read_folder(path, size=size, like=like))._replace(are_pictures=True)
    if not path.is_file():
        raise UsageError(
            f"no data at {source}: give an npz file with x and y, a folder with a folder of "
            f"pictures for each class, or one of {', '.join(BUILT_IN)}"
        )
    return _checked(source, read_npz(path, MEMBERS))


def split_devices(
    data: Dataset,
    devices: int,
    *,
    seed: int,
    alpha: float = 0.3,
    holdout_share: float = 0.2,
    limit: int | None = None,
) -> list[Part]:
    """Deal the training rows to ``devices``, unevenly, as life does.

    Where the data know their users, each device gets whole users (several where there are more
    users than devices); else each class is dealt by proportions drawn from Dirichlet(``alpha``)
    (Hsu, Qi, Brown, arXiv:1909.06335). ``limit``: at most so many rows for each device.
    No row is dealt twice; each device has at least 8 rows.

    Raises:
        UsageError: not enough data or users for so many devices.
    """
    rows = data.train_rows
    if devices < 1:
        raise UsageError(f"{devices} devices: at least one is needed")
    if len(rows) < devices * _SMALLEST_PART:
        raise UsageError(
            f"{data.name} has {len(rows)} training rows: too few for {devices} devices"
        )
    random = np.random.default_rng(seed)
    by_user = data.user is not None and bool((data.user[rows] >= 0).any())
    shares = (
        _deal_users(data, rows, devices, random, limit)
        if by_user
        else _deal_classes(data, rows, devices, random, alpha)
    )
    parts = []
    for share in shares:
        dealt = random.permutation(share)[:limit]
        held = min(len(dealt) - 1, max(1, round(holdout_share * len(dealt))))
        parts.append(Part(train=np.sort(dealt[held:]), holdout=np.sort(dealt[:held])))
    return parts


def _deal_users(
    data: Dataset, rows: Rows, devices: int, random: np.random.Generator, limit: int | None
) -> list[Rows]:
    assert data.user is not None
    owners = data.user[rows]
    users, counts = np.unique(owners[owners >= 0], return_counts=True)
    able = random.permutation(users[counts >= _SMALLEST_PART])
    if len(able) < devices:
        raise UsageError(
            f"{data.name} has {len(able)} users with at least {_SMALLEST_PART} training rows: "
            f"too few for {devices} devices"
        )
    shares: list[list[Rows]] = [[] for _ in range(devices)]
    for turn, user in enumerate(able):
        share = shares[turn % devices]
        if limit is None or sum(map(len, share)) < limit:  # few users each keep parts different
            share.append(rows[owners == user])
    return [np.concatenate(share) for share in shares]


def _deal_classes(
    data: Dataset, rows: Rows, devices: int, random: np.random.Generator, alpha: float
) -> list[Rows]:
    labels = data.y[rows].reshape(len(rows), -1)[:, 0] if data.classes else np.zeros(len(rows))
    for _ in range(100):
        shares: list[list[Rows]] = [[] for _ in range(devices)]
        for label in np.unique(labels):
            mine = random.permutation(rows[labels == label])
            ends = np.cumsum(random.dirichlet(np.full(devices, alpha)))[:-1] * len(mine)
            for share, piece in zip(shares, np.split(mine, ends.astype(int)), strict=True):
                share.append(piece)
        dealt = [np.concatenate(share) for share in shares]
        if min(map(len, dealt)) >= _SMALLEST_PART:
            return dealt
    for share_index in np.argsort([len(share) for share in dealt]):  # never lucky: the rich give
        while len(dealt[share_index]) < _SMALLEST_PART:
            richest = int(np.argmax([len(share) for share in dealt]))
            dealt[share_index] = np.append(dealt[share_index], dealt[richest][-1])
            dealt[richest] = dealt[richest][:-1]
    return dealt


def _checked(name: str, arrays: dict[str, Array]) -> Dataset:
    x, names = _samples(name, arrays["x"]), _names(name, arrays.pop("classes", None))
    are_names = arrays["y"].dtype.kind in "US"
    if are_names:
        y, names = _named(name, arrays["y"], names)
    else:
        y = _targets(name, arrays["y"])
    for member, array in arrays.items():
        if array.ndim < 1 or len(array) != len(x):
            raise UsageError(
                f"{name}: {member} has shape {array.shape}, x has {len(x)} samples: "
                f"the first axes must agree"
            )
    user = arrays.get("user")
    if user is not None and (user.ndim != 1 or user.dtype.kind not in "iub"):
        remedy = ""
        if user.dtype.kind in "US":
            remedy = ": save user=np.unique(user, return_inverse=True)[1]"
        raise UsageError(f"{name}: user must be one integer per sample, not {user.dtype}{remedy}")
    test = arrays.get("test")
    if test is not None and (test.ndim != 1 or test.dtype.kind not in "iubf"):
        remedy = ": save test=(test == 'NAME')" if test.dtype.kind in "US" else ""
        raise UsageError(f"{name}: test must be one number per sample, not {test.dtype}{remedy}")
    owners = None if user is None else user.astype(np.int64)
    if test is None or not (test > 0).any():
        return Dataset(name, x, y, owners, _draw_test_rows(len(x)), True, names, are_names)
    if (test > 0).all():
        raise UsageError(f"{name}: all samples have test > 0, none is left to train on")
    return Dataset(name, x, y, owners, test > 0, False, names, are_names)


def _names(name: str, classes: Array | None) -> tuple[str, ...]:
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


def _samples(name: str, x: Array) -> Array:
    if x.dtype.names:
        raise UsageError(
            f"{name}: x is a table of records with columns {', '.join(x.dtype.names[:6])}: save "
            "numpy.lib.recfunctions.structured_to_unstructured(x)"
        )
    if x.ndim < 2:
        remedy = "; of one value per sample, save x.reshape(-1, 1)" if x.ndim else ""
        raise UsageError(f"{name}: x has shape {x.shape}; (samples, ...) is needed{remedy}")
    if len(x) < 2 or not x.size:
        raise UsageError(f"{name}: x of shape {x.shape} has not enough samples")
    if x.dtype.kind == "f":
        return _finite(name, "x", x)
    if x.dtype == np.uint8 or x.dtype.kind == "b":
        return np.ascontiguousarray(x, np.uint8)
    if x.dtype.kind in "iu":
        if x.dtype.itemsize == 8 and x.dtype.kind == "u" and int(x.max()) > np.iinfo(np.int64).max:
            raise UsageError(f"{name}: x has numbers up to {x.max()}, beyond int64: save floats")
        return np.ascontiguousarray(x, np.int32 if x.dtype.itemsize < 4 else np.int64)
    raise UsageError(f"{name}: x is {x.dtype}; numbers are needed: {_REMEDIES[x.dtype.kind]}")


_REMEDIES = {  # by the kind of a dtype
    "U": "leave columns of text out, or save a column of 0 and 1 for each of their values",
    "S": "leave columns of text out, or save a column of 0 and 1 for each of their values",
    "c": "save np.stack([x.real, x.imag], 1), or np.abs(x)",
    "M": "save hours, weekdays or the time since the first as numbers",
    "m": "save x / np.timedelta64(1, 's')",
    "V": "save plain numbers",
    "O": "save plain numbers",
}


def _finite(name: str, what: str, array: Array) -> Array:
    """Return ``array`` as float32, or say which rows have no number in it."""
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        rows = np.flatnonzero(bad.reshape(len(array), -1).any(axis=1))
        place = tuple(int(side) for side in np.argwhere(bad)[0])
        value = array[place]
        count = f"; {len(rows):,} of {len(array):,} rows have one" if len(rows) > 1 else ""
        remedy = "leave such rows out, or fill in a number"
        if np.isfinite(value):
            remedy = f"{value:g} is beyond float32: scale it"
        where = f" at {list(place[1:])}" if 0 < len(place[1:]) < 4 else ""
        raise UsageError(
            f"{name}: {what} has a value in row {place[0]} that is not finite{where}{count}: "
            f"{remedy}"
        )
    return values


def _targets(name: str, y: Array) -> Array:
    if y.ndim < 1:
        raise UsageError(f"{name}: y is one number; one target per sample is needed")
    if not y.size:
        raise UsageError(f"{name}: y has shape {y.shape}: one target per sample is needed")
    if y.dtype.kind in "iub":
        if y.dtype.kind == "u" and int(y.max()) > np.iinfo(np.int64).max:
            raise UsageError(f"{name}: y has numbers up to {y.max()}: too large for labels")
        return np.ascontiguousarray(y, np.int64)
    if y.dtype.kind == "f":
        return _finite(name, "y", y)
    remedy = _REMEDIES[y.dtype.kind] if y.dtype.kind in "cMm" else "save plain numbers, or names"
    raise UsageError(f"{name}: y is {y.dtype}; labels or numbers are needed: {remedy}")


def _named(name: str, y: Array, names: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
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


def _draw_test_rows(count: int) -> npt.NDArray[np.bool_]:
    test = np.zeros(count, bool)
    drawn = np.random.default_rng(0).permutation(count)[: max(1, round(TEST_SHARE * count))]
    test[drawn] = True
    return test


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, uint8 [8, 8], levels 0..16 spread over 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            f"the digits come with scikit-learn; {how_to_install('sklearn')}; or give an npz file"
        ) from None
    loaded = load_digits()
    x = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    y = loaded.target.astype(np.int64)
    return Dataset("digits", x, y, None, _draw_test_rows(len(x)), test_is_ours=True)


def _fashion_mnist() -> Dataset:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747), uint8 [28, 28], 10,000 for test."""
    images, labels, test = [], [], []
    for prefix, is_test in (("train", False), ("t10k", True)):
        images.append(_read_idx(FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz", axes=3))
        labels.append(_read_idx(FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz", axes=1))
        test.append(np.full(len(labels[-1]), is_test))
    x, y = np.concatenate(images), np.concatenate(labels).astype(np.int64)
    return Dataset("fashion-mnist", x, y, None, np.concatenate(test), test_is_ours=False)


def _read_idx(path: Path, *, axes: int) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file: magic (0, 0, 8 for uint8, axes), big-endian shape, data."""
    try:
        with gzip.open(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise UsageError(
            "Fashion-MNIST is not installed: apt install dataset-fashion-mnist"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: {error}") from None
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", count=axes, offset=4))
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise UsageError(f"{path}: not an IDX file of {axes} axes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


BUILT_IN = {"digits": _digits, "fashion-mnist": _fashion_mnist}
