"""Labeled data for author-side programs: files, two built-in sets, and their split into devices."""

from pathlib import Path

import numpy as np

from models.errors import UsageError
from models.task.spec import TaskSpec
from tools.author.data.built_in_data import digits, fashion_mnist
from tools.author.data.class_names import labels_named, names_in
from tools.author.data.data_files import read_npz
from tools.author.data.data_folders import read_folder
from tools.author.data.labeled_data import Array, Dataset, draw_test_rows

__all__ = ["BUILT_IN", "load_dataset"]


MEMBERS = ("x", "y", "user", "test", "classes")


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


def _checked(name: str, arrays: dict[str, Array]) -> Dataset:
    x, names = _samples(name, arrays["x"]), names_in(name, arrays.pop("classes", None))
    are_names = arrays["y"].dtype.kind in "US"
    if are_names:
        y, names = labels_named(name, arrays["y"], names)
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
        return Dataset(name, x, y, owners, draw_test_rows(len(x)), True, names, are_names)
    if (test > 0).all():
        raise UsageError(f"{name}: all samples have test > 0, none is left to train on")
    return Dataset(name, x, y, owners, test > 0, False, names, are_names)


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


BUILT_IN = {"digits": digits, "fashion-mnist": fashion_mnist}
