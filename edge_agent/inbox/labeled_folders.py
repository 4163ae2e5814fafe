"""Folders named after a class, with one sample in each file: arrays, or images by Pillow.

The class may be named as the task names it, or by its number. Images are scaled only for a task
that says so (`models.samples.pictures`).
"""

import importlib
import math
import os

from edge_agent.inbox.sample_inbox import LIBRARY
from edge_agent.samples.entry_fate import NotHereError, Wait
from edge_agent.samples.fitting import Array
from models.errors import PayloadError, UsageError
from models.host.extras import how_to_install
from models.protocol.npz import read_npy
from models.samples.label_forms import UnknownClassError, label_named
from models.samples.pictures import SUFFIXES, read_picture
from models.task.spec import TaskSpec

__all__ = [
    "ARRAYS",
    "IMAGES",
    "is_clutter",
    "is_sample_name",
    "label_of",
    "missing_library",
    "read_sample",
]

ARRAYS = {".npy"}
IMAGES = SUFFIXES
CLUTTER = {"thumbs.db", "desktop.ini"}  # what desktops leave in a folder of pictures
HEADER_BYTES = 64 + 4096  # of an .npy


def label_of(folder: str, spec: TaskSpec) -> int:
    """Return the label that a folder's name stands for.

    Raises:
        NotHereError: none of this task, or one of two: says what to do.
    """
    if spec.classes == 0 or spec.y.shape:
        raise NotHereError(
            Wait.SPEC, f"task {spec.task} has no classes to name a folder after: use .npz files"
        )
    try:
        return label_named(folder, spec, what="a folder")
    except UnknownClassError as error:
        raise NotHereError(Wait.SPEC, f"{error}") from None


def is_clutter(name: str) -> bool:
    """Whether a file is nobody's sample, and nobody misses it."""
    return name.startswith(".") or name.lower() in CLUTTER


def is_sample_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ARRAYS | IMAGES


def missing_library(name: str) -> NotHereError | None:
    """Return what is missing here to read files that are named like this one."""
    if os.path.splitext(name)[1].lower() not in IMAGES:
        return None
    try:
        importlib.import_module(f"{LIBRARY}.Image")
    except ImportError:
        return NotHereError(
            Wait.LIBRARY,
            f"images need Pillow, which is not installed here: {how_to_install('pillow')}",
        )
    return None


def read_sample(name: str, data: bytes, spec: TaskSpec) -> Array:
    """Return the sample in the file ``name`` that holds ``data``; see `missing_library`.

    Raises:
        PayloadError: damaged, or cut off.
        NotHereError: not a sample that this task or this device can read.
    """
    suffix = os.path.splitext(name)[1].lower()
    return _read_array(data, spec) if suffix in ARRAYS else _read_image(data, spec)


def _read_array(data: bytes, spec: TaskSpec) -> Array:
    if len(data) > HEADER_BYTES + 8 * math.prod(spec.x.shape):
        raise NotHereError(Wait.SPEC, f"larger than a sample of task {spec.task}")
    try:
        return read_npy(data)  # numpy's own reader believes a header, and raises what it likes
    except PayloadError as error:
        raise type(error)(f"not an .npy array that can be read: it {error}") from None


def _read_image(data: bytes, spec: TaskSpec) -> Array:
    try:
        return read_picture(
            data, spec.x, task=spec.task, resize=spec.resize_images, pixels=spec.pixels
        )
    except UsageError as error:
        raise NotHereError(Wait.SPEC, str(error)) from None
