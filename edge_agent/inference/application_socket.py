"""The socket at which applications ask: where it is, whom it lets in, and that it stays there.

It takes no other file's place, and what is wrong with it is one sentence: releases are loaded and
tested over another socket, so the device goes on without it until that is mended.
"""

import contextlib
import errno
import grp
import logging
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edge_agent.client.edgefold_client import unix_name
from models.errors import UsageError

__all__ = ["USUAL_GROUP", "ApplicationSocket", "Settings", "bound", "default_path"]

log = logging.getLogger("inference")

USUAL_GROUP = "edgefold"  # the unit's Group=
BACKLOG = 32


def default_path(directory: Path, environment: Mapping[str, str], process: int) -> Path:
    """Return where applications find the agent of the state directory ``directory``.

    That is the unit's RuntimeDirectory=, if systemd itself started this ``process``: a state
    directory is private. An agent that a service starts for itself, as a demo does, has none.
    """
    folders = environment.get("RUNTIME_DIRECTORY", "")
    if folders and environment.get("SYSTEMD_EXEC_PID") == str(process):
        directory = Path(folders.split(":")[0])
    return directory / "inference.sock"


class Settings(NamedTuple):
    """Where applications shall find the socket, and who may use it."""

    path: Path
    group: str | None  # None: `USUAL_GROUP` where this process is in it, else no group
    mode: int | None  # None: 0660 with a group, 0600 without


class ApplicationSocket:
    """A listening socket that comes back when somebody deletes it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.path
        self.listener: socket.socket | None = None
        self.problem = ""  # why there is none, or why it is of no use
        self._made: tuple[int, int] | None = None  # device and inode of the file that is ours

    def keep(self) -> None:
        """Make the socket unless it is there; ``listener`` is another one then, or none."""
        if self.listener is not None:
            if _identity(self.path) == self._made:
                return
            self.listener.close()
            self.listener = None
        try:
            group = _group_of(self._settings)
            mode = self._settings.mode or (0o660 if group is not None else 0o600)
            self.listener = _made_at(self.path, group, mode)
            self._made = _identity(self.path)
            log.info("applications may ask socket=%s mode=%04o group=%s", self.path, mode, group)
            self.problem = _out_of_reach(self._settings, group, mode)
        except UsageError as error:
            self.problem = str(error)

    def close(self) -> None:
        """Stop listening, and take the file away if it is still ours."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
            if _identity(self.path) == self._made:
                self.path.unlink(missing_ok=True)


def bound(path: Path) -> socket.socket:
    """Return a socket that is bound to ``path`` and that only this user may connect to.

    Raises:
        OSError: it cannot be made there.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # from the first moment on nobody else can connect
    try:
        with unix_name(path) as name:
            made.bind(name)
    except OSError:
        made.close()
        raise
    finally:
        os.umask(mask)
    return made


def _group_of(settings: Settings) -> int | None:
    """Return the group that shall own the socket; None: the one that it gets by itself."""
    try:
        found = grp.getgrnam(settings.group or USUAL_GROUP).gr_gid
    except KeyError:
        if settings.group is None:
            return None
        raise UsageError(
            f"there is no group {settings.group!r} on this device: groupadd --system "
            f"{settings.group}, or change [inference] group"
        ) from None
    is_ours = found in {os.getegid(), *os.getgroups()}
    return found if settings.group is not None or is_ours else None


def _made_at(path: Path, group: int | None, mode: int) -> socket.socket:
    """Return a new listening socket at ``path``.

    Raises:
        UsageError: it cannot be; what to do.
    """
    try:
        _make_room(path)
        listener = bound(path)
    except OSError as error:
        raise UsageError(_told(path, error)) from None
    try:
        if group is not None and path.lstat().st_gid != group:
            os.chown(path, -1, group, follow_symlinks=False)
        path.chmod(mode)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink()
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise UsageError(_told(path, error)) from None
        name = grp.getgrgid(group).gr_name if group is not None else ""
        raise UsageError(
            f"{path} cannot be given to the group {name}: the agent is not in it; under systemd "
            f"Group={name} in the unit, elsewhere usermod -aG"
        ) from None


def _make_room(path: Path) -> None:
    """Take away the socket of a process that is gone; refuse to take away anything else."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(
            f"{path} is there already and is no socket: move it away, or name another "
            "[inference] socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with unix_name(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # alive, and busy
    raise UsageError(
        f"another process answers at {path}: give each agent an [inference] socket of its own"
    )


def _told(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"{path.parent} is no directory: make it, or name another [inference] socket"
        case errno.EACCES | errno.EROFS | errno.EPERM:
            return (
                f"the agent may not write in {path.parent}: let it, under systemd with "
                "ReadWritePaths= or RuntimeDirectory=, or name another [inference] socket"
            )
        case None | errno.ENAMETOOLONG:  # None: Python's own "AF_UNIX path too long"
            return f"{path.name} is too long a name for a socket: shorten [inference] socket"
        case _:
            return f"no socket at {path}: {error.strerror}"


def _out_of_reach(settings: Settings, group: int | None, mode: int) -> str:
    """Return why those who were let in by name do not even get to the socket; "" if they do."""
    everybody = bool(mode & stat.S_IWOTH)
    if not everybody and settings.group is None:
        return ""
    for folder in settings.path.parents:
        try:
            found = folder.stat()
        except OSError:
            continue
        as_group = found.st_gid == group and found.st_mode & stat.S_IXGRP and not everybody
        if not (found.st_mode & stat.S_IXOTH or as_group):
            who = "everybody" if everybody else f"the group {settings.group}"
            return (
                f"{settings.path} is for {who}, whom {folder} keeps out: open that directory, or "
                "name another [inference] socket"
            )
    return ""


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
