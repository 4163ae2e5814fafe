"""The identity of a state directory: whose it is, how often started, and who holds it now."""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from models.errors import UsageError
from models.host.directory_lock import is_locked, lock
from models.host.durable import atomic_write
from models.protocol.names import Digits

__all__ = [
    "Installation",
    "hold",
    "is_held",
    "new_digits",
    "open_installation",
    "read_installation",
    "renamed",
    "write_installation",
]

log = logging.getLogger("edge_agent")

_FILE = "installation.json"
_LOCK = "agent.lock"


class Installation(msgspec.Struct, frozen=True):
    """Whose a state directory is."""

    installation: Digits  # as its outbox has them
    device: str
    task: str
    boot: int  # how often it was started


def new_digits() -> str:
    """Return what makes the update numbers of a new outbox unique."""
    return secrets.token_hex(4)


def open_installation(
    directory: Path, *, device: str, task: str, digits: Callable[[], str] = new_digits
) -> Installation:
    """Return the identity of ``directory``, which is made if need be, and count this start.

    Raises:
        UsageError: it belongs to another device or task.
        OSError: it cannot be written.
    """
    known = read_installation(directory)
    if known is None:
        known = Installation(digits(), device, task, 0)
    for name, found, wanted in (("device", known.device, device), ("task", known.task, task)):
        if found != wanted:
            raise UsageError(
                f"{directory} belongs to {name} {found}, the configuration says {wanted}: to keep "
                "the samples, stop the agent and run `edgefold-agent adopt`; or give it a "
                "storage.directory of its own"
            )
    started = msgspec.structs.replace(known, boot=known.boot + 1)
    try:
        write_installation(directory, started)
    except OSError as error:
        if not known.boot:
            raise
        log.warning("start not counted, the disk does not take it reason=%s", error.strerror)
    return started


def renamed(directory: Path, installation: Installation, digits: str) -> Installation:
    """Return ``installation`` with the digits that its outbox has; the file is only a copy."""
    if digits == installation.installation:
        return installation
    log.warning("installation is %s, as its outbox says", digits)
    found = msgspec.structs.replace(installation, installation=digits)
    try:
        write_installation(directory, found)
    except OSError as error:
        log.warning("identity not noted, the disk does not take it reason=%s", error.strerror)
    return found


def write_installation(directory: Path, installation: Installation) -> None:
    """Note whose ``directory`` is, durably.

    Raises:
        OSError: the disk is full or failing; it is as it was.
    """
    atomic_write(directory / _FILE, msgspec.json.encode(installation))


def read_installation(directory: Path) -> Installation | None:
    """Return the identity of ``directory``; None if it has none, or a damaged one.

    Raises:
        UsageError: it is no directory.
        OSError: it cannot be read, or we may not.
    """
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=Installation)
    except NotADirectoryError:
        raise UsageError(f"{directory} is not a directory: name one in storage.directory") from None
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def hold(directory: Path) -> int:
    """Take the directory for this process, until it ends; return the descriptor to keep open.

    Raises:
        UsageError: another agent holds it.
        OSError: it cannot be written.
    """
    return lock(
        directory / _LOCK,
        otherwise=f"another agent runs on {directory}: stop it first, or give this one a "
        "storage.directory of its own",
    )


def is_held(directory: Path) -> bool:
    """Whether an agent runs on ``directory`` now.

    Raises:
        OSError: it cannot be told, as where we may not look.
    """
    return is_locked(directory / _LOCK)
