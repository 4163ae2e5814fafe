"""The server's machine in a simulated fleet; the aggregator is made by its own ``assemble``."""

from collections.abc import Callable

import broker.assembly
from broker.assembly import ServedTask
from broker.config import Config
from broker.releases.release_line import ReleaseLine
from broker.server import Server
from models.transport.link import Received
from tools.simulation.machines.machine import Machine, Place
from tools.simulation.machines.virtual_network import VirtualLink

__all__ = ["ServerMachine"]


class ServerMachine(Machine):
    """The machine with the aggregator."""

    def __init__(self, place: Place, config: Config, task: ServedTask) -> None:
        super().__init__(place)
        self.config = config
        self.task = task  # of the next start
        self.server: Server | None = None
        self.after_step: Callable[[], None] = lambda: None
        self.on_publish: Callable[[str, bytes], None] = lambda topic, payload: None
        self.on_acknowledge: Callable[[Received], None] = lambda message: None

    def wake_published(self) -> None:
        """An acknowledgment: devices may wait for what follows it, if anything does."""
        server = self.server
        if server is None or server.publisher.backlog or len(server.reception.receipts):
            self.wake_now()
        else:
            self.wake()

    @property
    def release_line(self) -> ReleaseLine | None:
        """The line of its one task's releases, while it runs."""
        return next(iter(self.server.lanes.values())).line if self.server is not None else None

    def _build(self) -> None:
        self.link = _WatchedLink(self)
        self.server = broker.assembly.assemble(
            self.config, [self.task], self.link, self.clock.monotonic(), self.clock.wall()
        )
        self.link.start()

    def _run_once(self) -> float:
        assert self.server is not None
        assert self.link is not None
        now, wall = self.clock.monotonic(), self.clock.wall()
        for event in self.link.poll(0):
            self.server.handle(event, now, wall)
        wake_at = self.server.tick(now, wall)
        self.after_step()
        return wake_at - now


class _WatchedLink(VirtualLink):
    """The server's link: what it promises and acknowledges is noted."""

    def __init__(self, watch: "ServerMachine") -> None:
        super().__init__(
            watch.place.network,
            client_id="edgefold-broker",
            line=watch.line,
            wake=watch.wake,
            wake_published=watch.wake_published,
            before_io=watch.before_io,
        )
        self._watch = watch

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        token = super().publish(topic, payload, retain=retain)
        self._watch.on_publish(topic, payload)
        return token

    def acknowledge(self, message: Received) -> None:
        super().acknowledge(message)
        self._watch.on_acknowledge(message)
