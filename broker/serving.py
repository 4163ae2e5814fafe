"""The loop around a server in a real process: the only clock and the only sleep of it."""

import logging
import threading
from collections.abc import Callable
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
    clock: Callable[[], float],
    state_file: StateFile,
    reload: Reload[Any] | None = None,
) -> None:
    """Serve until ``stop`` is set, or stand by while another server of this fleet serves."""
    server.start()
    notifier.ready(server.status)
    cleaner = Cleaner()
    wake_at = said_at = started = clock()
    mistake = ""
    while not stop.is_set():
        # At most a second: a signal does not wake up a poll.
        events = server.poll(min(max(wake_at - clock(), 0.0), 1.0))
        now = clock()
        try:
            for event in events:
                server.handle(event, now)
            wake_at = server.tick(now)
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
        state_file.tell(_with_problem(server.state(started, now), mistake))
        if not 0 <= now - said_at < IDLE_S:
            notifier.alive(f"{server.status}; {mistake}" if mistake else server.status)
            said_at = now
    notifier.stopping()
    state_file.write(_with_problem(server.state(started, clock()), mistake))
    server.close()


def _with_problem(state: ServerState, mistake: str) -> ServerState:
    problem = "; ".join(filter(None, (state.problem, mistake)))
    return msgspec.structs.replace(state, problem=problem)
