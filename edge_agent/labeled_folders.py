"""Folders named after a class, with one sample in each file: arrays, or images by Pillow.

The class may be named as the task names it, or by its number. Images are not scaled.
"""

import importlib
import io
import math
import os

import numpy as np

from edge_agent.entry_fate import NotHereError, Wait
from edge_agent.fitting import Array
from edge_agent.sample_inbox import LIBRARY
from models.errors import PayloadError
from models.extras import how_to_install
from models.label_forms import UnknownClassError, label_named
from models.spec import TaskSpec

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
IMAGES = {".png", ".pgm", ".ppm", ".bmp", ".jpg", ".jpeg"}
CLUTTER = {"thumbs.db", "desktop.ini"}  # what desktops leave in a folder of pictures
MAX_PIXELS = 4096 * 4096
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
        sample: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, OSError) as error:
        raise PayloadError(f"not an .npy array: {error}") from None
    if not isinstance(sample, np.ndarray):
        raise PayloadError("not an .npy array")
    return sample


def _read_image(data: bytes, spec: TaskSpec) -> Array:
    from PIL import Image, UnidentifiedImageError

    shape = spec.x.shape
    is_rgb = len(shape) == 3 and 3 in (shape[0], shape[-1])
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.height, image.width, 3 if is_rgb else 1, spec)
            if image.mode.startswith(("I", "F")):  # Pillow would cut its values off at 255
                raise NotHereError(
                    Wait.SPEC,
                    "image with more than 8 bits a value: convert it to 8 bits, or use .npy",
                )
            pixels = np.asarray(image.convert("RGB" if is_rgb else "L"))
    except Image.DecompressionBombError:
        most = 2 * MAX_PIXELS / 1e6  # Pillow's own bound; nothing says that the image is broken
        raise NotHereError(
            Wait.SPEC, f"image of more than {most:.0f} million pixels: scale it"
        ) from None
    except UnidentifiedImageError:  # its own words hold an address, another one each time
        raise PayloadError("not an image, or of a kind that Pillow does not read here") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise PayloadError(f"not an image that can be read: {error}") from None
    if is_rgb and shape[0] == 3 and shape[-1] != 3:
        pixels = np.moveaxis(pixels, -1, 0)
    pixels = pixels.reshape(shape)
    return pixels if spec.x.dtype == "uint8" else (pixels / np.float32(255)).astype(np.float32)


def _check_size(height: int, width: int, bands: int, spec: TaskSpec) -> None:
    """Raise what is wrong with an image's size, before all of it is unpacked."""
    shape = spec.x.shape
    sides = [side for side in shape if side != 1]
    if bands == 3:
        sides.remove(3)
    fits = height * width * bands == math.prod(shape)
    if not fits or (len(sides) == 2 and sides != [height, width]):
        raise NotHereError(
            Wait.SPEC,
            f"image of {height} x {width} pixels, task {spec.task} takes {shape}: scale it",
        )
