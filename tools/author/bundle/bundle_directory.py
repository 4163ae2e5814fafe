"""A bundle as a directory: written whole or not at all, never put over something else."""

import os
import shutil
from pathlib import Path

from models.errors import UsageError
from models.host.durable import atomic_write, sync_directory
from models.task.bundle import FILES, Bundle

__all__ = ["check_replaceable", "place_aside", "write_bundle"]


def write_bundle(bundle: Bundle, directory: Path, *, aside: Path | None = None) -> None:
    """Write the bundle; ``directory`` is complete or as it was, whatever happens.

    A bundle that is already there is replaced; with ``aside`` it is kept there, in the place of
    the bundle that was kept there before.

    Raises:
        UsageError: one of the directories holds something else.
        OSError: the disk is full or failing.
    """
    check_replaceable(directory)
    if aside is not None:
        check_replaceable(aside)
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.with_name(f".{directory.name}.draft-{os.getpid()}")
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    try:
        draft.mkdir()
        contents = (bundle.infer, bundle.train, bundle.spec_json)
        for name, content in zip(FILES, contents, strict=True):
            atomic_write(draft / name, content)
        if directory.exists():
            directory.rename(old)
        draft.rename(directory)
        if aside is not None and old.exists():
            shutil.rmtree(aside, ignore_errors=True)
            old.rename(aside)
        sync_directory(directory.parent)
    except OSError:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if aside is None:
            shutil.rmtree(old, ignore_errors=True)


def check_replaceable(directory: Path) -> None:
    """Raise UsageError unless ``directory`` is free, empty, or a bundle and nothing else."""
    if directory.is_dir():
        strange = sorted({entry.name for entry in directory.iterdir()} - set(FILES))
        if strange:
            raise UsageError(f"{directory} holds other files ({strange[0]}): choose another --out")
    elif directory.exists() or directory.is_symlink():
        raise UsageError(f"{directory} is not a directory: choose another --out")


def place_aside(directory: Path) -> Path:
    """Return where the bundle in ``directory`` is kept when another takes its place.

    Raises:
        UsageError: something else than a bundle is there.
    """
    aside = directory.with_name(f"{directory.name}.replaced")
    try:
        check_replaceable(aside)
    except UsageError as error:
        raise UsageError(
            f"{directory} holds another bundle, which would be kept as {aside}, but {error}; "
            "--force keeps nothing of it"
        ) from None
    return aside
