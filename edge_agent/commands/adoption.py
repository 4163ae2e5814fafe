"""`edgefold-agent adopt`: a state directory goes to another device id or task, with its samples.

The order makes it safe to be killed anywhere: whose the directory is changes last, and until then
no agent starts on it with the new settings, so that the command is given again. What was done
before is right for the old owner too.
"""

import os
import shutil
from pathlib import Path

import msgspec

from edge_agent.board.installation import (
    Installation,
    hold,
    new_digits,
    read_installation,
    write_installation,
)
from edge_agent.samples.sample_store import segments
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_file import DamagedError, put_aside
from models.errors import CommandLineError
from models.host.durable import remove, sync_directory

__all__ = ["adopt"]

# Of another task: what runs first, so that no release is there in part.
_RELEASES = ("active.json", "slot-a.json", "slot-b.json")
_DAMAGED = (
    "lost: outbox.db was damaged and is put aside, and with it its updates and what was learned "
    "beside the releases"
)
_FOLDERS = ("jobs", "downloads", "patching", "artifacts", "codec")


def adopt(directory: Path, *, device: str, task: str) -> str:
    """Give the stopped device in ``directory`` another id or task; return what became of it.

    Samples and hold-out stay. For another id what was learned stays too, except for updates that
    have left: the server may fold them yet. For another task nothing of it means anything.

    Raises:
        CommandLineError: there is nothing to adopt.
        UsageError: an agent runs on it.
        TransientError: the outbox cannot be opened now. Nothing was changed.
        OSError: the disk is full or failing, or it is not ours to change; give the command again.
    """
    known = read_installation(directory)
    if known is None:
        raise CommandLineError(
            f"no agent was ever started on {directory}: there is nothing to adopt"
        )
    lock = hold(directory)
    umask = os.umask(0o022)  # the service reads what root writes here
    try:
        if (known.device, known.task) == (device, task):
            return f"{directory} belongs to device {device}, task {task} already: nothing to do"
        kept, dropped, is_damaged = _outbox_anew(directory, known, keeps_learned=known.task == task)
        if known.task != task:
            _drop_releases(directory)
        write_installation(directory, msgspec.structs.replace(known, device=device, task=task))
        for name in ("installation.json", "agent.lock"):
            _belongs_to_owner(directory / name)
    finally:
        os.umask(umask)
        os.close(lock)
    lines = _told(directory, known, device=device, task=task, kept=kept, dropped=dropped)
    return "\n".join([*lines[:2], _DAMAGED, lines[-1]] if is_damaged else lines)


def _outbox_anew(
    directory: Path, known: Installation, *, keeps_learned: bool
) -> tuple[int, int, bool]:
    path = directory / "outbox.db"

    def opened() -> Outbox:
        return Outbox(
            path,
            max_bytes=1 << 40,
            max_waiting=1 << 20,
            installation=new_digits(),
            earlier=known.installation,
        )

    is_damaged = False
    try:
        outbox = opened()
    except DamagedError:
        put_aside(path)
        outbox, is_damaged = opened(), True
    try:
        return (*outbox.begin_anew(new_digits(), keeps_learned=keeps_learned), is_damaged)
    finally:
        outbox.close()
        _belongs_to_owner(path)


def _drop_releases(directory: Path) -> None:
    for name in _RELEASES:
        remove(directory / name)
    for name in _FOLDERS:
        folder = directory / name
        if folder.exists():
            shutil.rmtree(folder)
    sync_directory(directory)


def _belongs_to_owner(path: Path) -> None:
    """Give what root wrote here to whom the directory belongs: that is who runs the service."""
    if os.geteuid() == 0 and path.exists():
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _told(
    directory: Path, known: Installation, *, device: str, task: str, kept: int, dropped: int
) -> list[str]:
    held, held_out = (
        sum(segment.samples for segment in segments(directory / name))
        if (directory / name).exists()
        else 0
        for name in ("samples", "holdout")
    )
    lines = [
        f"{directory} belongs to device {device}, task {task} now "
        f"(before: {known.device}, {known.task})",
        f"kept: {held} samples and a hold-out of {held_out}",
    ]
    if known.task != task:
        lines.append(
            f"dropped: releases and what was learned of task {known.task}, {dropped} updates of it"
        )
    else:
        lines.append(f"kept: what was learned; updates that had not left go into the next: {kept}")
        if dropped:
            lines.append(
                f"dropped: updates that had left: {dropped}; the server folds what arrived, under "
                "the old id"
            )
    return [*lines, "start the agent now"]
