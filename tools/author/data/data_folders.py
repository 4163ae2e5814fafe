"""A folder with a folder of pictures for each class, as data: read as by a device."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from models.errors import PayloadError, UsageError
from models.host.extras import how_to_install
from models.samples.pictures import SUFFIXES, picture_facts, read_picture
from models.task.spec import ArraySpec, TaskSpec
from tools.author.data.labeled_data import Array

__all__ = ["read_folder"]

T = TypeVar("T")

MAX_BYTES = 8 << 30
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
CLUTTER = ("thumbs.db", "desktop.ini")


class _Picture(NamedTuple):
    path: Path
    name: str  # of its class
    is_test: bool


def read_folder(
    root: Path, *, size: tuple[int, int] | None = None, like: TaskSpec | None = None
) -> dict[str, Array]:
    """Return the pictures in ROOT/CLASS/ as ``x``, their classes as names ``y``, and ``test``.

    ROOT may have the folders train and test (or val), with those of the classes in each. The
    pictures are read by `pictures.py`: for the task ``like``, or all of ``size`` [height,
    width], or all of the one size that they have; gray if all are.

    Raises:
        UsageError: no such folder, a picture that cannot be read, or pictures of several sizes.
    """
    pictures = list(_pictures(root))
    if not pictures:
        raise UsageError(f"{root} has no pictures: one folder for each class is needed in it")
    try:
        wanted = like.x if like else _wanted(pictures, size)
        needed = len(pictures) * int(np.prod(wanted.shape)) * np.dtype(wanted.dtype).itemsize
        if needed > MAX_BYTES:
            raise UsageError(f"{root}: {needed >> 20} MiB, at most {MAX_BYTES >> 20} are read")
        x = np.zeros((len(pictures), *wanted.shape), wanted.dtype)
        resize = like.resize_images if like else size is not None
        task = like.task if like else "of this folder"
        pixels = like.pixels if like else "plain"
        for row, one in enumerate(pictures):
            x[row] = _told(
                one.path,
                lambda data: read_picture(data, wanted, task=task, resize=resize, pixels=pixels),
            )
    except ImportError:
        raise UsageError(
            f"{root}: pictures need Pillow, which is not installed here: {how_to_install('pillow')}"
        ) from None
    found = {"x": x, "y": np.array([one.name for one in pictures])}
    if any(one.is_test for one in pictures):
        found["test"] = np.array([one.is_test for one in pictures])
    return found


def _pictures(root: Path) -> Iterator[_Picture]:
    folders = _entries(root)
    for entry in folders:
        if not entry.is_dir():
            raise UsageError(f"{entry} lies in no folder of a class: {root.name}/CLASS/ is needed")
    names = [entry.name.lower() for entry in folders]
    if names and set(names) <= {*TRAIN, *TEST} and set(names) & set(TRAIN):
        for part in folders:
            yield from _of_classes(part, is_test=part.name.lower() in TEST)
    else:
        yield from _of_classes(root, is_test=False)


def _of_classes(root: Path, *, is_test: bool) -> Iterator[_Picture]:
    for folder in _entries(root):
        if not folder.is_dir():
            raise UsageError(f"{folder} lies in no folder of a class: {root.name}/CLASS/ is needed")
        for path in _entries(folder):
            if path.suffix.lower() not in SUFFIXES:
                known = ", ".join(sorted(SUFFIXES))
                raise UsageError(f"{path} is no picture ({known}): convert it, or take it away")
            yield _Picture(path, folder.name, is_test)


def _entries(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or error}") from None
    return [one for one in found if not (one.name[0] == "." or one.name.lower() in CLUTTER)]


def _wanted(pictures: Sequence[_Picture], size: tuple[int, int] | None) -> ArraySpec:
    """Return what all of them can be read as: bytes of gray, or of three colors behind."""
    first: tuple[int, int] | None = size
    has_colors = False
    for one in pictures:
        facts = _told(one.path, picture_facts)
        has_colors = has_colors or facts.has_colors
        found = (facts.height, facts.width)
        if first is None:
            first = found
        if size is None and found != first:
            raise UsageError(
                f"{pictures[0].path} is of {first[0]} x {first[1]} pixels, {one.path} of "
                f"{found[0]} x {found[1]}: --size HEIGHTxWIDTH scales them, here and on devices"
            )
    assert first is not None
    return ArraySpec("uint8", (*first, 3) if has_colors else first)


def _told(path: Path, read: Callable[[bytes], T]) -> T:
    try:
        return read(path.read_bytes())
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (PayloadError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None
