"""A task as its author hands it over: a directory with two graphs and a spec."""

from pathlib import Path
from typing import NamedTuple

from models.errors import NoPermissionError, PayloadError, UsageError
from models.protocol.manifest import MAX_ARTIFACT_BYTES
from models.task.spec import TaskSpec, decode_spec, encode_spec

__all__ = ["FILES", "Bundle", "bundle_of", "read_bundle"]

FILES = ("infer.onnx", "train.onnx", "spec.json")


class Bundle(NamedTuple):
    """What makes a task run and learn; see docs/bundle.md."""

    spec: TaskSpec
    infer: bytes
    train: bytes
    spec_json: bytes  # as devices get it


def bundle_of(spec: TaskSpec, infer: bytes, train: bytes) -> Bundle:
    """Return a bundle that was made here."""
    return Bundle(spec, infer, train, encode_spec(spec))


def read_bundle(directory: Path) -> Bundle:
    """Read the three files of a bundle.

    Raises:
        NoPermissionError: one of them may not be read by us.
        UsageError: a file is missing or too large.
        PayloadError: its spec is damaged.
    """
    contents = []
    for name in FILES:
        path = directory / name
        try:
            if path.stat().st_size > MAX_ARTIFACT_BYTES:
                raise UsageError(f"{path} is larger than {MAX_ARTIFACT_BYTES >> 20} MiB")
            contents.append(path.read_bytes())
        except PermissionError:
            raise NoPermissionError(f"{path}: no permission to read it") from None
        except OSError as error:
            raise UsageError(
                f"{directory} is not a bundle: cannot read {name} ({error.strerror}); "
                "`edgefold task create` makes a bundle"
            ) from None
    infer, train, spec_json = contents
    try:
        return Bundle(decode_spec(spec_json), infer, train, spec_json)
    except PayloadError as error:
        raise PayloadError(f"bundle {directory}: {error}") from None
