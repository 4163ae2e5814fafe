"""A picture as a sample: upright, in the colors and the size of a task. Needs Pillow.

The one rule for the device's inbox and for the author's folders of pictures. What would have to be
guessed is refused: what lies behind transparent parts, how bright 16 bits of gray are, what a
vector's height is.
"""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import ForeignError, PayloadError, UsageError
from models.protocol.npz import begins_as
from models.task.spec import ArraySpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "Facts", "Layout", "layout_of", "picture_facts", "pixels_in", "read_picture"]

Array = npt.NDArray[Any]
Pixels = Literal["plain", "bytes", "none"]

SUFFIXES = frozenset({".png", ".pgm", ".ppm", ".bmp", ".jpg", ".jpeg"})
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", *(b"P%d" % kind for kind in range(1, 7)))
DARK = 63  # what never gets higher is hardly bytes of pictures
MAX_PIXELS = 4096 * 4096
PLAIN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBA", "LA", "PA")
WITH_ALPHA = ("RGBA", "LA", "PA")
GRAY = ("1", "L", "LA")
ORIENTATION = 0x0112  # EXIF's tag: how the camera was held
SIDEWAYS = (5, 6, 7, 8)
BANDS = {1: "L", 3: "RGB", 4: "RGBA"}


class Layout(NamedTuple):
    """Where a sample's shape has rows, columns and colors."""

    height: int
    width: int
    channels: int  # 1, 3 or 4
    axis: int | None  # of the channels; None: it has none


class Facts(NamedTuple):
    """What is known of a picture before all of it is unpacked."""

    height: int
    width: int
    has_colors: bool


def layout_of(shape: Sequence[int]) -> Layout | None:
    """Return how samples of ``shape`` are pictures; None: they are none.

    [height, width], [channels, height, width], or [height, width, channels], with 1, 3 or 4
    channels. Where both are possible, as in [3, 4, 4], the channels are first, as for the nets of
    the zoo. A vector whose length is a square is a square picture of gray, row after row.
    """
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0] > 1:
        return Layout(math.isqrt(shape[0]), math.isqrt(shape[0]), 1, None)
    if len(shape) == 2:
        return Layout(shape[0], shape[1], 1, None)
    if len(shape) != 3:
        return None
    if shape[2] in BANDS and (shape[0] > 4 or shape[0] not in BANDS):
        return Layout(shape[0], shape[1], shape[2], 2)
    return Layout(shape[1], shape[2], shape[0], 0) if shape[0] in BANDS else None


def read_picture(
    data: bytes,
    wanted: ArraySpec,
    *,
    task: str,
    resize: bool = False,
    pixels: Pixels = "plain",
) -> Array:
    """Return the picture in the bytes of a file as a sample like ``wanted``.

    Upright as its EXIF says; gray is repeated for three colors, colors become gray by their
    brightness (ITU-R 601), CMYK becomes RGB. Bytes for uint8, divided by 255 for float32, or as
    ``pixels`` of a `TaskSpec` says. 16 bits of gray are taken only by a task of int32 or int64, as
    they are. With ``resize`` another size is
    scaled, bilinearly with antialiasing, and stretched where the sides are of another proportion.

    Raises:
        PayloadError: damaged or cut off; `ForeignError`: no picture.
        UsageError: a picture that this task does not take; says what to do.
    """
    layout = layout_of(wanted.shape)
    if layout is None:
        raise UsageError(
            f"task {task} takes samples of shape {wanted.shape}, which says no height and width of "
            "pictures: use .npy"
        )
    if pixels == "none":
        raise UsageError(
            f"task {task} takes samples whose values are not those of pixels, 0 to 255 or 0 to 1: "
            "use .npy as its author made them"
        )
    with _opened(data) as image:
        _check_size(image, layout, wanted, task, resize=resize, either_way=True)
        if resize:  # a JPEG then unpacks to no more than needed
            side = 2 * max(layout.height, layout.width)
            image.draft(None, (side, side))
        upright = _upright(image)
        _check_size(upright, layout, wanted, task, resize=resize)
        return _array(_colored(upright, layout, wanted, task), layout, wanted, pixels)


def picture_facts(data: bytes) -> Facts:
    """Return the size of a picture as it is upright, and whether it has colors.

    Raises:
        PayloadError, UsageError: as `read_picture`.
    """
    with _opened(data) as image:
        sideways = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
        height, width = (image.width, image.height) if sideways else (image.height, image.width)
        return Facts(height, width, not (image.mode in GRAY or image.mode.startswith(("I", "F"))))


@contextmanager
def _opened(data: bytes) -> Iterator["Image"]:
    """Open a picture, and say what is wrong with it when it is read."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except Image.DecompressionBombError:
        most = 2 * MAX_PIXELS / 1e6  # Pillow's own bound; nothing says that the image is broken
        raise UsageError(f"image of more than {most:.0f} million pixels: scale it") from None
    except UnidentifiedImageError:  # its own words hold an address, another one each time
        error = PayloadError if begins_as(data, MAGIC) else ForeignError
        raise error("not an image, or of a kind that Pillow does not read here") from None
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, struct.error) as error:
        raise PayloadError(f"not an image that can be read: {error}") from None


def _check_size(
    image: "Image",
    layout: Layout,
    wanted: ArraySpec,
    task: str,
    *,
    resize: bool,
    either_way: bool = False,  # the EXIF of a PNG is known only when all of it was unpacked
) -> None:
    found, size = (image.height, image.width), (layout.height, layout.width)
    if not resize and found != size and not (either_way and found == size[::-1]):
        raise UsageError(
            f"image of {found[0]} x {found[1]} pixels, task {task} takes {wanted.shape}: scale it, "
            "or make the task with --resize"
        )


def _upright(image: "Image") -> "Image":
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(image.getexif().get(ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _colored(image: "Image", layout: Layout, wanted: ArraySpec, task: str) -> "Image":
    """Return ``image`` with the bands and the size of ``layout``, 8 bits each; or 16 of gray."""
    from PIL.Image import Resampling

    is_deep = image.mode.startswith(("I", "F"))
    if wanted.dtype in ("int32", "int64"):
        if not image.mode.startswith("I") or layout.channels != 1:
            raise UsageError(
                f"task {task} takes {wanted.dtype}, which only images of 16 bits of gray have: "
                "use .npy"
            )
    elif is_deep:  # Pillow would cut its values off at 255
        raise UsageError("image with more than 8 bits a value: convert it to 8 bits, or use .npy")
    elif image.mode not in PLAIN:
        raise UsageError(f"image with colors of kind {image.mode}: convert it to RGB")
    else:
        if image.mode in WITH_ALPHA or "transparency" in image.info:
            image = image.convert("RGBA")
            if layout.channels != 4 and image.getchannel("A").getextrema() != (255, 255):
                raise UsageError(
                    "image with transparent parts, behind which may be any color: put it onto a "
                    "background"
                )
        image = image.convert(BANDS[layout.channels])
    size = (layout.width, layout.height)
    return image if image.size == size else image.resize(size, Resampling.BILINEAR)


def pixels_in(x: Array) -> Pixels:
    """Return how somebody's samples ``x`` [n, ...] hold pixels, as far as their values tell."""
    if layout_of(x.shape[1:]) is None or x.dtype.kind == "i":
        return "plain"  # which is not asked for
    low, high = float(x.min()), float(x.max())
    if x.dtype == np.uint8:
        return "plain" if high > DARK else "none"  # truth values, 16 shades
    if low < 0 or high > 255:
        return "none"
    return "plain" if high <= 1 else "bytes" if high > DARK else "none"


def _array(image: "Image", layout: Layout, wanted: ArraySpec, pixels: Pixels) -> Array:
    values = np.asarray(image)
    if len(wanted.shape) == 1:
        values = values.reshape(-1)
    if layout.axis == 0 and layout.channels > 1:
        values = np.moveaxis(values, -1, 0)
    elif layout.axis is not None and layout.channels == 1:
        values = np.expand_dims(values, layout.axis)
    if wanted.dtype == "float32" and pixels == "plain":
        return (values / np.float32(255)).astype(np.float32)
    return np.ascontiguousarray(values, wanted.dtype)
