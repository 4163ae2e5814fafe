"""Somebody's file of samples, opened without trusting it: an npz, or a sentence on what it is."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UsageError
from models.samples.foreign_files import SAVE, foreign_kind
from models.samples.npz_layouts import about_missing
from tools.author.data.labeled_data import Array

__all__ = ["read_npz"]


MAX_BYTES = 8 << 30  # unpacked; a file that claims more is refused before anything is read


def read_npz(path: Path, wanted: Sequence[str]) -> dict[str, Array]:
    """Return those of the arrays ``wanted`` that an npz has.

    Raises:
        UsageError: it is no npz, damaged, too large, holds objects, or has no x or no y.
    """
    try:
        with open(path, "rb") as opened:
            head = opened.read(16)
        if not head.startswith(b"PK") and (what := foreign_kind(head, path.name)):
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
                f"it and save them: {SAVE}"
            )
        with np.load(path, allow_pickle=False) as file:
            if not {"x", "y"} <= set(file.files):
                raise UsageError(f"{path}: {about_missing(file.files, file=path.name)}")
            return {name: _read(path, file, name) for name in wanted if name in file.files}
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (
        ValueError,
        SyntaxError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
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
        how = f"{name}.astype(str)" if name in ("y", "classes") else f"{name}.astype(float)"
        raise UsageError(
            f"{path}: {name} holds Python objects (pickle), which are never loaded: save plain "
            f"arrays, {how}; rows of unequal length must be cut or padded to one"
        ) from None
