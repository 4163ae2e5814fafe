"""Somebody's file of samples, opened without trusting it: an npz, or a sentence on what it is."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.npz_layouts import about_missing

__all__ = ["read_npz"]

Array = npt.NDArray[Any]

MAX_BYTES = 8 << 30  # unpacked; a file that claims more is refused before anything is read
_SAVE = "np.savez('samples.npz', x=x, y=y)"
_MAGIC = (  # how files begin that people keep samples in, what they are, how to read them
    (b"\x93NUMPY", "one numpy array (.npy)", "x = np.load({file!r})"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "read its arrays with h5py"),
    (b"MATLAB 5.0", "a MATLAB file", "d = scipy.io.loadmat({file!r})"),
    (b"PAR1", "a Parquet file", "read it with pandas.read_parquet({file!r})"),
    (b"ARROW1", "an Arrow file", "read it with pandas.read_feather({file!r})"),
    (b"SQLite format 3\0", "an SQLite database", "read it with pandas.read_sql"),
    (b"\x1f\x8b", "a file packed by gzip", "unpack it"),
    (b"\x89PNG", "one picture", "put pictures into arrays with Pillow"),
    (b"\xff\xd8\xff", "one picture", "put pictures into arrays with Pillow"),
)
_SUFFIXES = {
    ".csv": ("a table of text", "d = np.genfromtxt({file!r}, delimiter=',', skip_header=1)"),
    ".tsv": ("a table of text", "d = np.genfromtxt({file!r}, skip_header=1)"),
    ".txt": ("a text", "d = np.loadtxt({file!r})"),
    ".json": ("a JSON file", "make arrays of it"),
    ".jsonl": ("a JSON file", "make arrays of it"),
    ".arff": ("an ARFF file", "d = scipy.io.arff.loadarff({file!r})"),
}
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, Array]:
    """Return those of the arrays ``wanted`` that an npz has.

    Raises:
        UsageError: it is no npz, damaged, too large, holds objects, or has no x or no y.
    """
    try:
        if what := _foreign(path):
            raise UsageError(f"{path} is {what}")
        with zipfile.ZipFile(path) as archive:
            members = [entry.filename for entry in archive.infolist()]
            size = sum(entry.file_size for entry in archive.infolist())
        if len(set(members)) != len(members):
            raise UsageError(f"{path}: two members have the same name")
        if size > MAX_BYTES:
            raise UsageError(
                f"{path}: {size >> 20} MiB unpacked, at most {MAX_BYTES >> 20} are read"
            )
        if not any(member.endswith(".npy") for member in members):
            raise UsageError(
                f"{path} is a zip file without arrays ({', '.join(members[:4])}): make arrays of "
                f"it and save them: {_SAVE}"
            )
        with np.load(path, allow_pickle=False) as file:
            if not {"x", "y"} <= set(file.files):
                raise UsageError(f"{path}: {about_missing(file.files, file=path.name)}")
            return {name: _read(path, file, name) for name in wanted if name in file.files}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (
        ValueError,
        SyntaxError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        words = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: not a valid npz file ({words})") from None
    except MemoryError:
        raise UsageError(f"{path}: an array does not fit into memory") from None


def _read(path: Path, file: Any, name: str) -> Array:
    try:
        return np.asarray(file[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        how = "y.astype(str) of labels" if name in ("y", "classes") else f"{name}.astype(float)"
        raise UsageError(
            f"{path}: {name} holds Python objects (pickle), which are never loaded: save plain "
            f"arrays, {how}; rows of unequal length must be cut or padded to one"
        ) from None


def _foreign(path: Path) -> str:
    """Say what a file is that is no zip archive and that people keep samples in; else nothing."""
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"PK"):
        return ""
    suffix = path.suffix.lower()
    if (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5") or suffix in _PICKLES:
        return f"a pickle, which is never loaded: load it where it was made, then {_SAVE}"
    for magic, what, how in _MAGIC:
        if head.startswith(magic):
            return f"{what}: {how.format(file=path.name)}, then {_SAVE}"
    if suffix in _SUFFIXES:
        what, how = _SUFFIXES[suffix]
        return f"{what}: {how.format(file=path.name)}, then {_SAVE}"
    return ""
