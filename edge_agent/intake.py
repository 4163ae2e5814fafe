"""The child program that parses what lies in the inbox: `python -m edge_agent.intake JOB.json`.

The only place where files from outside are opened, bounded in memory and time. A good file becomes
segments and is deleted, a bad one is moved aside with its reason. Repeating an intake that a crash
ended adds nothing twice. It has no network.
"""

import errno
import hashlib
import io
import os
import resource
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.children import settle_in
from edge_agent.problems import told
from edge_agent.sample_inbox import IntakeJob, IntakeResult, is_taken, reject
from edge_agent.samples import segment_name, segments
from models.durable import atomic_write, remove
from models.errors import EdgefoldError, PayloadError, UsageError
from models.payload.npz import read_arrays
from models.spec import TaskSpec, decode_spec

__all__ = ["main", "read_labeled_folder", "read_npz", "read_x", "store", "take_in"]

Array = npt.NDArray[Any]

SEGMENT_SAMPLES = 256
SEGMENT_BYTES = 1 << 20
CPU_SECONDS = 120
ADDRESS_SPACE = 2 << 30
IMAGES = {".png", ".pgm", ".ppm", ".bmp", ".jpg", ".jpeg"}
MAX_PIXELS = 4096 * 4096
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nothing can be stored: all entries wait


def main(arguments: list[str] | None = None) -> int:
    """Take in what the job names; write what came of it beside the job."""
    (job_file,) = arguments or sys.argv[1:]
    settle_in()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    path = Path(job_file)
    try:
        job = msgspec.json.decode(path.read_bytes(), type=IntakeJob)
        result = take_in(job)
        (path.parent / "result.json").write_bytes(msgspec.json.encode(result))
    except (OSError, EdgefoldError) as error:
        print(told(error), file=sys.stderr)
        return 1
    return 0


def take_in(job: IntakeJob) -> IntakeResult:
    """Carry out ``job``: every entry is stored or rejected, one after the other.

    What cannot be read or moved is left where it is, and does not keep the others waiting.

    Raises:
        OSError: the disk is full or read-only; what was not taken is still in the inbox.
    """
    spec = decode_spec(Path(job.spec).read_bytes())
    added, reasons, left = 0, [], []
    for entry in map(Path, job.entries):
        try:
            if entry.is_dir() and not entry.is_symlink():
                count, bad = _take_folder(entry, spec, job)
                reasons += bad
            else:
                count = _take_file(entry, spec, job)
            added += count
        except FileNotFoundError:
            continue  # whoever put it there took it away again
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            left.append((entry.name, error.strerror or type(error).__name__))
        except (EdgefoldError, MemoryError) as error:
            reason = told(error) if isinstance(error, EdgefoldError) else "it takes too much memory"
            try:
                reject(Path(job.inbox), entry, reason)
            except OSError as refused:
                if refused.errno in NO_ROOM:
                    raise
                left.append((entry.name, reason))
            else:
                reasons.append(f"{entry.name}: {reason}")
    return IntakeResult(added=added, rejected=tuple(reasons), left=tuple(left))


def _take_file(entry: Path, spec: TaskSpec, job: IntakeJob) -> int:
    if entry.suffix != ".npz" or not stat.S_ISREG(entry.lstat().st_mode):
        raise UsageError("neither an .npz file with x and y, nor a folder LABEL/ of samples")
    status = entry.stat()
    if status.st_size > job.max_bytes:
        raise UsageError(
            f"{status.st_size / 1e6:.0f} MB; at most {job.max_bytes / 1e6:.0f} are taken: split it"
        )
    x, y, test = read_npz(entry.read_bytes(), spec, max_bytes=job.max_bytes)
    source = _source(entry.name, status.st_size, status.st_mtime_ns)
    count = store(x, y, test, source, job)
    remove(entry)
    return count


def _take_folder(entry: Path, spec: TaskSpec, job: IntakeJob) -> tuple[int, list[str]]:
    """Take a folder of one label. It is renamed first: later files go into a new one."""
    inbox = Path(job.inbox)
    if not is_taken(entry):
        taken = inbox / f".taken-{_source(entry.name, os.getpid(), entry.stat().st_mtime_ns)}"
        taken.mkdir(exist_ok=True)
        entry.rename(taken / entry.name)
        entry = taken
    added, reasons = 0, []
    for folder in sorted(path for path in entry.iterdir() if path.is_dir()):
        try:
            x, y, bad = read_labeled_folder(folder, spec, max_bytes=job.max_bytes)
        except EdgefoldError as error:
            reject(inbox, folder, told(error))
            reasons.append(f"{folder.name}: {told(error)}")
            continue
        for path, reason in bad:
            reject(inbox, path, reason)
            reasons.append(f"{folder.name}/{path.name}: {reason}")
        if len(x):
            source = _source(entry.name, folder.name, 0)
            added += store(x, y, None, source, job)
    for path in sorted(entry.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    entry.rmdir()
    return added, reasons


def read_npz(data: bytes, spec: TaskSpec, *, max_bytes: int) -> tuple[Array, Array, Array | None]:
    """Return ``x``, ``y`` and, if there is one, ``test`` of a user's npz, as the spec has them.

    Raises:
        PayloadError: no such file, or one that unpacks to more than ``max_bytes``.
        UsageError: samples that do not fit the task.
    """
    arrays = read_arrays(data, max_bytes=max_bytes)
    if missing := [name for name in ("x", "y") if name not in arrays]:
        raise UsageError(
            f"no array {missing[0]!r} among {', '.join(sorted(arrays)[:8]) or 'none'}; "
            "write it with numpy.savez(file, x=..., y=...)"
        )
    x, y = fitted(arrays["x"], arrays["y"], spec)
    test = arrays.get("test")
    if test is not None and test.shape != (len(x),):
        raise UsageError(f"test has shape {test.shape}, one number per sample is needed")
    return x, y, None if test is None else test > 0


def read_x(file: Path, spec: TaskSpec, *, max_bytes: int) -> Array:
    """Return the array ``x`` of an npz as samples of the task; other arrays are ignored.

    Raises:
        UsageError, PayloadError: it is not there or does not fit.
    """
    try:
        arrays = read_arrays(file.read_bytes(), max_bytes=max_bytes)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except PayloadError as error:
        raise PayloadError(f"{file}: {error}") from None
    if "x" not in arrays:
        raise UsageError(f"{file}: no array 'x'; write it with numpy.savez(file, x=...)")
    labels = np.zeros((len(arrays["x"]), *spec.y.shape), spec.y.dtype)
    return fitted(arrays["x"], labels, spec)[0]


def fitted(x: Array, y: Array, spec: TaskSpec) -> tuple[Array, Array]:
    """Return ``x`` and ``y`` in the spec's dtypes, if they are samples of the task.

    Raises:
        UsageError: they are not; says what is wrong and what to do.
    """
    for name, array, wanted in (("x", x, spec.x), ("y", y, spec.y)):
        if array.ndim == 0 or array.shape[1:] != wanted.shape:
            shape = ", ".join(map(str, ("n", *wanted.shape)))
            raise UsageError(f"{name} has shape {array.shape}, task {spec.task} takes ({shape})")
    if len(x) != len(y) or len(x) == 0:
        raise UsageError(f"{len(x)} samples with {len(y)} labels: as many of both are needed")
    if y.dtype.kind in "iu" and spec.classes and not ((y >= 0) & (y < spec.classes)).all():
        row = int(np.argmax(((y < 0) | (y >= spec.classes)).reshape(len(y), -1).any(axis=1)))
        raise UsageError(f"label {y[row]} in row {row}; the classes are 0 to {spec.classes - 1}")
    for name, array, wanted in (("x", x, spec.x), ("y", y, spec.y)):
        labels = name == "y" and spec.classes > 0 and array.dtype.kind in "iu"
        same_kind = array.dtype.kind == np.dtype(wanted.dtype).kind == "f"
        if not (labels or same_kind or np.can_cast(array.dtype, np.dtype(wanted.dtype))):
            raise UsageError(f"{name} is {array.dtype}, task {spec.task} takes {wanted.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{name} has values that are not finite")
    return x.astype(spec.x.dtype, copy=False), y.astype(spec.y.dtype, copy=False)


def read_labeled_folder(
    folder: Path, spec: TaskSpec, *, max_bytes: int
) -> tuple[Array, Array, list[tuple[Path, str]]]:
    """Return the samples in a folder named after their class, and what is wrong with the others.

    Raises:
        UsageError: its name is no class of the task.
    """
    if not folder.name.isdigit() or spec.classes == 0 or spec.y.shape:
        raise UsageError("a folder of samples is named after its class: 0, 1, 2, ...")
    label = int(folder.name)
    if label >= spec.classes:
        raise UsageError(f"class {label}; the classes are 0 to {spec.classes - 1}")
    found, bad, size = [], [], 0
    for path in sorted(folder.iterdir()):
        try:
            sample = _read_sample(path, spec)
            x, _ = fitted(sample[np.newaxis], np.array([label]), spec)
            size += x.nbytes
            if size > max_bytes:
                raise UsageError("more than fits at a time: put it into the inbox again")
            found.append(x)
        except (EdgefoldError, OSError) as error:
            bad.append((path, told(error)))
    x = np.concatenate(found) if found else np.zeros((0, *spec.x.shape), spec.x.dtype)
    return x, np.full(len(x), label, spec.y.dtype), bad


def _read_sample(path: Path, spec: TaskSpec) -> Array:
    if path.suffix == ".npy":
        bound = 64 + 8 * int(np.prod(spec.x.shape, dtype=np.int64)) + 4096
        if path.stat().st_size > bound:
            raise UsageError(f"larger than a sample of task {spec.task}")
        try:
            sample: Array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise PayloadError(f"not an .npy array: {error}") from None
        if not isinstance(sample, np.ndarray):
            raise PayloadError("not an .npy array")
        return sample
    if path.suffix.lower() in IMAGES:
        return _read_image(path, spec)
    raise UsageError(f"not a sample: take .npy or one of {', '.join(sorted(IMAGES))}")


def _read_image(path: Path, spec: TaskSpec) -> Array:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(
            "images need Pillow, which is not installed here: pip install pillow, or use .npy"
        ) from None
    shape = spec.x.shape
    is_rgb = len(shape) == 3 and 3 in (shape[0], shape[-1])
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB" if is_rgb else "L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PayloadError(f"not an image that can be read: {error}") from None
    if is_rgb and shape[0] == 3 and shape[-1] != 3:
        pixels = np.moveaxis(pixels, -1, 0)
    if pixels.size != int(np.prod(shape, dtype=np.int64)):
        raise UsageError(f"image of shape {pixels.shape}, task {spec.task} takes {shape}: scale it")
    pixels = pixels.reshape(shape)
    return pixels if spec.x.dtype == "uint8" else (pixels / np.float32(255)).astype(np.float32)


def store(x: Array, y: Array, test: Array | None, source: str, job: IntakeJob) -> int:
    """Write samples as segments, some of them into the hold-out; return how many are new.

    With the same ``source`` again only what is missing is written.
    """
    if test is None:
        test = _chosen(len(x), job.holdout_share, source)
    added = 0
    for folder, rows, limit in (
        (job.holdout, np.flatnonzero(test), job.max_holdout),
        (job.train, np.flatnonzero(~test), job.max_count),
    ):
        added += _write(Path(folder), x, y, rows[max(0, len(rows) - limit) :], source)
    return added


def _chosen(count: int, share: float, source: str) -> npt.NDArray[np.bool_]:
    """Choose the hold-out: the same rows whenever the same source is taken in again."""
    chance = np.random.default_rng(int(source, 16))
    held = int(share * count + chance.random())  # right in the mean for single samples too
    mask = np.zeros(count, np.bool_)
    mask[chance.permutation(count)[:held]] = True
    return mask


def _write(folder: Path, x: Array, y: Array, rows: Array, source: str) -> int:
    present = segments(folder)
    done = {segment.part for segment in present if segment.source == source}
    first = max((segment.first + segment.samples for segment in present), default=0)
    added = 0
    for part, some in enumerate(_portions(rows, x)):
        if part in done:
            continue
        file = io.BytesIO()
        np.savez(file, x=x[some], y=y[some])
        atomic_write(folder / segment_name(first, len(some), source, part), file.getvalue())
        first += len(some)
        added += len(some)
    return added


def _portions(rows: Array, x: Array) -> Iterator[Array]:
    per_sample = max(1, x[:1].nbytes)
    size = max(1, min(SEGMENT_SAMPLES, SEGMENT_BYTES // per_sample))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _source(*facts: object) -> str:
    return hashlib.sha256(_joined(facts).encode()).hexdigest()[:16]


def _joined(facts: Iterable[object]) -> str:
    return "\0".join(map(str, facts))


if __name__ == "__main__":
    raise SystemExit(main())
