"""The MQTT broker of a demo: one of our own, or somebody's, which is left as it was found."""

import contextlib
import secrets
import time
from pathlib import Path
from typing import Literal, NamedTuple

from models.access.broker_address import broker_address
from models.errors import UsageError
from models.protocol.topics import Topics
from models.transport.link import Connected, Disconnected, Received
from models.transport.mqtt import MqttLink
from tools.local_fleet.fleet_processes import Access
from tools.local_fleet.local_broker import LocalBroker

__all__ = ["KINDS", "Found", "find_broker"]

KINDS: dict[str, Literal["auto", "mosquitto", "embedded"]] = {
    "auto": "auto",
    "mosquitto": "mosquitto",
    "embedded": "embedded",
}
ANSWER_S = 20.0  # for a broker that was named, including one try with MQTT 3.1.1
QUIET_S = 1.0  # without another retained message, none is left


class Found(NamedTuple):
    """A broker that answers."""

    access: Access
    name: str  # its kind, or its address
    local: LocalBroker | None
    remark: str  # what a person should know about the choice


def find_broker(wanted: str, directory: Path, stack: contextlib.ExitStack) -> Found:
    """Start a broker in ``directory``, or connect to the one at the URL ``wanted``.

    ``stack`` ends ours; on somebody's broker it removes all that the demo's fleet retained.

    Raises:
        UsageError: no such kind, or it does not answer.
    """
    if "://" in wanted:
        host, port, tls = broker_address(wanted)
        if tls:
            raise UsageError("the demo's relays speak plain MQTT: give mqtt://HOST:PORT")
        # A name that cannot be that of a fleet which is at work there.
        access = Access(f"demo-{secrets.token_hex(4)}", host, port, None, None)
        link = MqttLink(host, port, client_id=f"{access.fleet}-demo", will=None)
        stack.callback(link.close)
        _await_broker(link, wanted)
        stack.callback(_clear, link, Topics(access.fleet).prefix + "#")
        return Found(access, wanted, None, "")
    if wanted not in KINDS:
        raise UsageError(f"--broker {wanted}: take {', '.join(KINDS)} or mqtt://HOST:PORT")
    broker = LocalBroker(KINDS[wanted], directory=directory)
    stack.enter_context(broker)
    access = Access("demo", broker.host, broker.port, broker.username, broker.password)
    return Found(access, broker.kind, broker, broker.why or "")


def _await_broker(link: MqttLink, url: str) -> None:
    deadline = time.monotonic() + ANSWER_S
    link.start()
    while time.monotonic() < deadline:
        for event in link.poll(0.5):
            if isinstance(event, Connected):
                return
            if isinstance(event, Disconnected):
                raise UsageError(f"--broker {url}: {event.reason}")
    raise UsageError(f"--broker {url}: no answer for {ANSWER_S:.0f} s")


def _clear(link: MqttLink, pattern: str) -> None:
    """Remove all retained messages below ``pattern``."""
    link.subscribe([pattern])
    until = time.monotonic() + QUIET_S
    waiting: list[str] = []
    while time.monotonic() < until or waiting:
        for event in link.poll(0.1):
            if isinstance(event, Received):
                link.acknowledge(event)
                if event.retained and event.payload:
                    waiting.append(event.topic)
                    until = time.monotonic() + QUIET_S
            elif isinstance(event, Disconnected):
                return  # nothing more that we could do
        while waiting and link.window():
            link.publish(waiting.pop(), b"", retain=True)
