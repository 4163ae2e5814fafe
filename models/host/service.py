"""Life as a service: logging to stderr, stopping on SIGTERM, and systemd's notify protocol."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import ClassVar

__all__ = ["Cleaner", "Notifier", "configure_logging", "reload_on_hangup", "stop_on_signals"]

CLEAN_EVERY_S = 300.0


class Notifier:
    """Tells systemd that we are ready and alive; does nothing outside systemd.

    Protocol: sd_notify(3). ``NOTIFY_SOCKET`` may name an abstract socket with a leading ``@``.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            try:
                sender.sendto(text.encode(), address)
            except OSError:  # systemd went away; the watchdog is its business, not ours
                return

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self, status: str) -> None:
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self) -> None:
        self._send("STOPPING=1")


class Cleaner:
    """Has the oldest generation of garbage collected every five minutes.

    Python does so by itself when enough objects have grown old, which a process as steady as ours
    sees every few hours. Until then its free lists fill (up to 2000 tuples of each length; what
    ``tuple(generator)`` makes goes into them and comes from elsewhere), and only that empties them.
    """

    def __init__(self) -> None:
        self._next_at = 0.0

    def tick(self) -> None:
        if (now := time.monotonic()) >= self._next_at:
            gc.collect()
            self._next_at = now + CLEAN_EVERY_S


class SignalEvent(threading.Event):
    """An event without a lock, for signal handlers.

    They run in the middle of whatever the main thread does. Where that is `threading.Event.set`,
    be it for the signal before, its lock is held, and the second call waits for it for ever.
    """

    _LOOK_EVERY_S = 0.1

    def __init__(self) -> None:
        super().__init__()
        self._happened = False

    def is_set(self) -> bool:
        return self._happened

    def set(self) -> None:
        self._happened = True

    def clear(self) -> None:
        self._happened = False

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while not self._happened and (end is None or time.monotonic() < end):
            time.sleep(self._LOOK_EVERY_S)
        return self._happened


def configure_logging(level: str) -> None:
    """Log lines to stderr; under systemd with its priorities and without a second time stamp."""
    under_systemd = "JOURNAL_STREAM" in os.environ
    form = "%(message)s" if under_systemd else "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form, priorities=under_systemd))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = SignalEvent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def reload_on_hangup(stop: threading.Event) -> threading.Event:
    """Return an event that SIGHUP sets, which asks to read the settings again.

    Where a terminal started us and is gone, SIGHUP says so, and sets ``stop`` as ever.
    """
    asked = SignalEvent()
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]

    def on_hangup(*_: object) -> None:
        is_here = all(os.isatty(number) for number in terminals)
        (asked if is_here else stop).set()

    signal.signal(signal.SIGHUP, on_hangup)
    return asked


class _Formatter(logging.Formatter):
    _PRIORITY: ClassVar[dict[int, str]] = {
        logging.DEBUG: "<7>",
        logging.INFO: "<6>",
        logging.WARNING: "<4>",
        logging.ERROR: "<3>",
        logging.CRITICAL: "<2>",
    }

    def __init__(self, form: str, *, priorities: bool) -> None:
        super().__init__(form)
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return self._PRIORITY.get(record.levelno, "<6>") + line if self._priorities else line
