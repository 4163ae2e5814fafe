"""Takes changed settings over on SIGHUP, into a process that goes on: those to log in with.

All others need a start, and the log says which have changed.
"""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from models.access.credentials import CREDENTIAL_KEYS, CredentialSource, Login
from models.errors import UsageError
from models.host.credential_copies import outdated_copy

__all__ = ["Reload", "changed_settings"]

log = logging.getLogger(__name__)

TAKEN_OVER = {f"fleet.{key}" for key in CREDENTIAL_KEYS}

Settings = TypeVar("Settings", bound=msgspec.Struct)


class Reload(Generic[Settings]):
    """Reads the settings again when ``asked`` is set, and looks after ``credentials``.

    ``read`` returns the settings of the file, ``login`` what they say about logging in.
    """

    def __init__(
        self,
        running: Settings,
        credentials: CredentialSource,
        asked: threading.Event,
        *,
        read: Callable[[], Settings],
        login: Callable[[Settings], Login],
    ) -> None:
        self._running = running
        self._credentials = credentials
        self._asked = asked
        self._read = read
        self._login = login
        self._mistake = ""
        self._reads_seen = 0
        self._warned = ""
        self.wants_start = False  # only a new process gets what has changed

    def tick(self) -> str:
        """Do what was asked; return what is wrong with the settings now, empty when all is well."""
        credentials = self._credentials
        if is_asked := self._asked.is_set():
            self._asked.clear()
            self._mistake = self._take_over()
        if credentials.reads != self._reads_seen:
            self._reads_seen = credentials.reads
            if credentials.warning and credentials.warning != self._warned:
                log.warning("%s", credentials.warning)
            self._warned = credentials.warning
            is_asked = True
        if is_asked and (changed := outdated_copy()):
            log.warning(
                "%s has changed since systemd made our copy: stopping for a new one", changed
            )
            self.wants_start = True
        return self._mistake or credentials.problem

    def _take_over(self) -> str:
        try:
            settings = self._read()
        except UsageError as error:
            return f"{error}; the settings from before stay in force"
        changed = changed_settings(self._running, settings)
        if "fleet.broker" in changed:  # the old broker shall not hear a password of the new one
            others = changed
        else:
            others = [name for name in changed if name not in TAKEN_OVER]
            self._credentials.replace(self._login(settings))
        log.info("settings read again changed=%s", ", ".join(changed) or "none")
        if others:
            log.warning("changed settings that need a restart: %s", ", ".join(others))
        return ""


def changed_settings(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    """Return the names of the settings that differ, as ``section.key``; never their values."""
    return _differences("", old, new)


def _differences(prefix: str, old: object, new: object) -> list[str]:
    if isinstance(old, msgspec.Struct) and isinstance(new, type(old)):
        return [
            name
            for field in old.__struct_fields__
            for name in _differences(
                f"{prefix}.{field}" if prefix else field, getattr(old, field), getattr(new, field)
            )
        ]
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return list(
            dict.fromkeys(
                name for pair in zip(old, new, strict=True) for name in _differences(prefix, *pair)
            )
        )
    return [] if old == new else [prefix]
