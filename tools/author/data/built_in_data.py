"""Data sets that are there without a download: digits and Fashion-MNIST."""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.host.extras import how_to_install
from tools.author.data.labeled_data import Dataset, draw_test_rows

__all__ = ["digits", "fashion_mnist", "read_digits"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, uint8 [8, 8], levels 0..16 spread over 0..255."""
    levels, y = read_digits()
    x = np.round(levels * (255 / 16)).astype(np.uint8)
    return Dataset("digits", x, y, None, draw_test_rows(len(x)), test_is_ours=True)


def read_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return scikit-learn's 1,797 images [8, 8] of levels 0..16, and their labels 0..9.

    Its file is read without the library, which takes a second to import.

    Raises:
        UsageError: scikit-learn is not there.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "datasets/data/digits.csv.gz"  # a line is 64 levels and the label
        if path.is_file():
            table: npt.NDArray[np.uint8] = np.loadtxt(path, delimiter=",", dtype=np.uint8)
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    raise UsageError(
        f"the digits come with scikit-learn; {how_to_install('sklearn')}; or give an npz file"
    )


def fashion_mnist() -> Dataset:
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
