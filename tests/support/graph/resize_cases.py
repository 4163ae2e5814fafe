"""Cases of `models.graph.gradients.spatial.gradients_resize`, in one, two and three dimensions."""

from typing import Any

import numpy as np
from gradient_case import BATCH, IMAGE, Case, Const, floats
from torch.nn import functional as nnf

LINE = floats(BATCH, 4, 7)
VOLUME = floats(BATCH, 2, 3, 4, 5)
ONE_PIXEL = floats(BATCH, 4, 1, 1)
MODES = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}


def resize_case(
    label: str,
    x: np.ndarray,
    *,
    scales: tuple[float, ...] = (),
    sizes: tuple[int, ...] = (),
    **attributes: Any,
) -> Case:
    """The axes after the channels resized, as torch's exporters write it."""
    spatial = x.ndim - 2
    given = (
        [np.zeros(0, np.float32), np.array([1, 1, *scales], np.float32)]
        if scales
        else [np.zeros(0, np.float32), None, np.array(sizes, np.int64)]
    )
    if sizes:
        attributes["axes"] = list(range(2, x.ndim))
    mode = attributes["mode"]
    coordinates = attributes["coordinate_transformation_mode"]
    exact = coordinates == "half_pixel" and mode == "nearest"
    options: dict[str, Any] = {
        "mode": "nearest-exact" if exact else MODES.get(mode, {}).get(spatial, mode)
    }
    if mode != "nearest":
        options["align_corners"] = coordinates == "align_corners"
    if scales:
        options["scale_factor"] = scales
        options["recompute_scale_factor"] = False
    else:
        options["size"] = sizes
    inputs = [x, *(None if value is None else Const(value) for value in given)]
    inputs[1] = None  # the region of interest, which no exporter gives
    return Case(
        f"Resize {label}", "Resize", inputs, lambda v: nnf.interpolate(v, **options), attributes
    )


def nearest(label: str, x: np.ndarray, **settings: Any) -> Case:
    """torch's nearest."""
    return resize_case(
        f"nearest {label}",
        x,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        **settings,
    )


def linear(label: str, x: np.ndarray, coordinates: str = "half_pixel", **settings: Any) -> Case:
    return resize_case(
        f"linear {label} {coordinates}",
        x,
        mode="linear",
        coordinate_transformation_mode=coordinates,
        **settings,
    )


def picked(label: str, index: list[int], **attributes: Any) -> Case:
    """Modes that torch lacks: which elements of a line of four are picked, by the definition."""
    x = floats(BATCH, 2, 4)
    scale = Const(np.array([1, 1, len(index) / 4], np.float32))
    return Case(
        f"Resize nearest {label}",
        "Resize",
        [x, None, scale],
        lambda v: v[..., index],
        {"mode": "nearest", **attributes},
    )


RESIZE = [
    nearest("doubled", IMAGE, scales=(2.0, 2.0)),
    nearest("by different factors", IMAGE, scales=(3.0, 1.0)),
    nearest("by a fraction", IMAGE, scales=(1.5, 2.0)),
    nearest("down", IMAGE, scales=(0.5, 0.75)),
    nearest("to a size", IMAGE, sizes=(18, 13)),
    nearest("from one pixel", ONE_PIXEL, sizes=(5, 6)),
    nearest("line", LINE, scales=(2.0,)),
    nearest("line to a size", LINE, sizes=(5,)),
    nearest("volume", VOLUME, scales=(2.0, 2.0, 2.0)),
    nearest("volume to a size", VOLUME, sizes=(4, 8, 3)),
    resize_case(
        "nearest exact",
        IMAGE,
        scales=(2.0, 2.0),
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
    ),
    resize_case(
        "nearest exact to a size",
        IMAGE,
        sizes=(7, 11),
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
    ),
    picked(
        "asymmetric round_prefer_floor",
        [0, 0, 1, 1, 2, 2, 3, 3],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="round_prefer_floor",
    ),
    picked(
        "asymmetric ceil",
        [0, 1, 1, 2, 2, 3, 3, 3],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil",
    ),
    picked(
        "align_corners",
        [0, 0, 1, 1, 2, 2, 3, 3],
        coordinate_transformation_mode="align_corners",
        nearest_mode="round_prefer_floor",
    ),
    picked("by default", [0, 0, 1, 1, 2, 2, 3, 3]),
    linear("doubled", IMAGE, scales=(2.0, 2.0)),
    linear("doubled", IMAGE, "align_corners", scales=(2.0, 2.0)),
    linear("doubled", IMAGE, "pytorch_half_pixel", scales=(2.0, 2.0)),
    linear("by a fraction", IMAGE, scales=(1.3, 0.7)),
    linear("by a fraction", IMAGE, "align_corners", scales=(1.3, 0.7)),
    linear("to a size", IMAGE, sizes=(4, 17)),
    linear("to a size", IMAGE, "align_corners", sizes=(4, 17)),
    linear("to one pixel", IMAGE, "align_corners", sizes=(1, 1)),
    linear("from one pixel", ONE_PIXEL, sizes=(3, 4)),
    linear("line", LINE, scales=(2.0,)),
    linear("line to a size", LINE, "align_corners", sizes=(10,)),
    linear("volume", VOLUME, scales=(2.0, 2.0, 2.0)),
    linear("volume to a size", VOLUME, "align_corners", sizes=(5, 4, 7)),
    resize_case(
        "cubic",
        IMAGE,
        scales=(2.0, 1.5),
        mode="cubic",
        coordinate_transformation_mode="half_pixel",
        cubic_coeff_a=-0.75,
    ),
    resize_case(
        "cubic to a size",
        IMAGE,
        sizes=(6, 13),
        mode="cubic",
        coordinate_transformation_mode="align_corners",
        cubic_coeff_a=-0.75,
    ),
]
