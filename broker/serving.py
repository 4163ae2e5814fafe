"""The loop around a server in a real process: the only clocks and the only sleep of it."""

import logging
import threading
import time
from typing import Any

import msgspec

from broker.lease.leaseholder import Leaseholder
from broker.lease.server_state import ServerState, StateFile
from broker.retry import RETRY_S
from broker.server import IDLE_S
from models.access.reload import Reload
from models.errors import UsageError
from models.host.service import Cleaner, Notifier

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(
    server: Leaseholder,
    stop: threading.Event,
    notifier: Notifier,
    state_file: StateFile,
    reload: Reload[Any] | None = None,
) -> None:
    """Serve until ``stop`` is set, or stand by while another server of this fleet serves."""
    server.start(time.time())
    notifier.ready(server.status)
    cleaner = Cleaner()
    started = time.time()
    wake_at = said_at = time.monotonic()
    mistake = ""
    while not stop.is_set():
        # At most a second: a signal does not wake up a poll.
        events = server.poll(min(max(wake_at - time.monotonic(), 0.0), 1.0))
        now, wall = time.monotonic(), time.time()
        try:
            for event in events:
                server.handle(event, now, wall)
            wake_at = server.tick(now, wall)
        except UsageError:  # the registry or a bundle is damaged: for a person to see to
            raise
        except Exception:
            log.exception("unexpected, dropping the message that it happened with")
            server.drop_suspect()
            wake_at = now + RETRY_S
        cleaner.tick()
        if reload is not None:
            before, mistake = mistake, reload.tick()
            if mistake and mistake != before:
                log.warning("%s", mistake)
            if reload.wants_start:
                break
        state_file.tell(_with_problem(server.state(started, wall), mistake), now)
        if now - said_at >= IDLE_S:
            notifier.alive(f"{server.status}; {mistake}" if mistake else server.status)
            said_at = now
    notifier.stopping()
    state_file.write(_with_problem(server.state(started, time.time()), mistake))
    server.close()


def _with_problem(state: ServerState, mistake: str) -> ServerState:
    problem = "; ".join(filter(None, (state.problem, mistake)))
    return msgspec.structs.replace(state, problem=problem)
