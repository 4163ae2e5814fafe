"""Ways to have links: in memory, on virtual time, and to real brokers through a bad line."""

import itertools
import os
import time
from collections.abc import Callable
from typing import Protocol

from bad_link import BadLink

from models.transport.link import Connected, Disconnected, Event, Link, Published, Received
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_network import Line, VirtualBroker, VirtualLink

_RUN = f"{os.getpid()}"
_NUMBERS = itertools.count()


class World(Protocol):
    """A broker and the means to do to it what the field does."""

    def link(
        self,
        name: str,
        *,
        will: tuple[str, bytes] | None = None,
        is_passing: bool = False,
        waits: bool = False,
    ) -> MemoryLink | MqttLink | VirtualLink:
        """Return a link that was not started yet."""

    def cut(self, name: str) -> None:
        """Break the connection; it can be made again at once."""

    def set_reachable(self, name: str, reachable: bool) -> None:
        """Let ``name`` reach the broker, or not."""

    def lose_all_state(self) -> None:
        """Crash the broker, and start it again with nothing in it."""

    def topic(self, name: str) -> str:
        """Return a topic that no other test uses."""

    def close(self) -> None:
        """End everything."""


class MemoryWorld:
    def __init__(self) -> None:
        self._broker = MemoryBroker()

    def link(
        self,
        name: str,
        *,
        will: tuple[str, bytes] | None = None,
        is_passing: bool = False,
        waits: bool = False,
    ) -> MemoryLink:
        return MemoryLink(
            self._broker, client_id=name, will=will, is_passing=is_passing, waits=waits
        )

    def cut(self, name: str) -> None:
        self._broker.drop_link(name)

    def set_reachable(self, name: str, reachable: bool) -> None:
        self._broker.set_reachable(name, reachable)

    def lose_all_state(self) -> None:
        self._broker.lose_all_state()

    def topic(self, name: str) -> str:
        return f"test/{name}"

    def close(self) -> None:
        return


class VirtualWorld:
    def __init__(self) -> None:
        self._broker = VirtualBroker(Timeline(seed=0))
        self._links: dict[str, VirtualLink] = {}

    def link(
        self,
        name: str,
        *,
        will: tuple[str, bytes] | None = None,
        is_passing: bool = False,
        waits: bool = False,
    ) -> VirtualLink:
        line = self._links[name].line if name in self._links else Line()
        self._links[name] = VirtualLink(
            self._broker, client_id=name, line=line, will=will, is_passing=is_passing, waits=waits
        )
        return self._links[name]

    def cut(self, name: str) -> None:
        self._links[name].cut()

    def set_reachable(self, name: str, reachable: bool) -> None:
        self._links[name].line.up = reachable
        if not reachable:
            self.cut(name)

    def lose_all_state(self) -> None:
        self._broker.stop(wiped=True)
        self._broker.start()

    def topic(self, name: str) -> str:
        return f"test/{name}"

    def close(self) -> None:
        return


class MqttWorld:
    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker
        self._number = next(_NUMBERS)
        self._proxies: dict[str, BadLink] = {}
        self._links: list[MqttLink] = []

    def link(
        self,
        name: str,
        *,
        will: tuple[str, bytes] | None = None,
        is_passing: bool = False,
        waits: bool = False,
    ) -> MqttLink:
        if name not in self._proxies:
            self._proxies[name] = BadLink((self._broker.host, self._broker.port)).__enter__()
        link = MqttLink(
            self._proxies[name].host,
            self._proxies[name].port,
            client_id=f"{name}-{_RUN}-{self._number}",
            will=will,
            username=self._broker.username,
            password=self._broker.password,
            seed=len(self._links),
            is_passing=is_passing,
            waits=waits,
        )
        self._links.append(link)
        return link

    def cut(self, name: str) -> None:
        self._proxies[name].cut()

    def set_reachable(self, name: str, reachable: bool) -> None:
        if reachable:
            self._proxies[name].open()
        else:
            self._proxies[name].close()

    def lose_all_state(self) -> None:
        self._broker.wipe()
        self._broker.start()

    def topic(self, name: str) -> str:
        return f"test/{_RUN}/{self._number}/{name}"

    def close(self) -> None:
        for link in self._links:
            link.close()
        for proxy in self._proxies.values():
            proxy.__exit__(None, None, None)


def poll_until(
    link: Link, is_enough: Callable[[list[Event]], object], *, timeout_s: float = 15.0
) -> list[Event]:
    """Poll until the events so far are enough, and return them."""
    events: list[Event] = []
    deadline = time.monotonic() + timeout_s
    while not is_enough(events):
        assert time.monotonic() < deadline, f"this is not enough: {events}"
        events += link.poll(0.2)
    return events


def received(events: list[Event]) -> list[Received]:
    return [event for event in events if isinstance(event, Received)]


def connected(events: list[Event]) -> list[Connected]:
    return [event for event in events if isinstance(event, Connected)]


def disconnected(events: list[Event]) -> list[Disconnected]:
    return [event for event in events if isinstance(event, Disconnected)]


def published(events: list[Event]) -> list[Published]:
    return [event for event in events if isinstance(event, Published)]
