"""One device's uplink and one server, both real, over real MQTT links, driven by one thread."""

import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from broker.assembly import ServedTask, assemble
from broker.config import Config, FleetConfig, FoldPolicy, StorageConfig, TaskConfig
from broker.records.registry import DATABASE
from edge_agent.board.problems import Problems
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Trained
from edge_agent.updates.uplink import Uplink
from models.host.durable import open_database
from models.protocol.manifest import CodecPlan
from models.protocol.messages import Receipts, Request, decode_message, encode_message
from models.protocol.topics import Topics
from models.protocol.update import UpdateHeader, encode_update
from models.transport.link import Connected, Disconnected, Event, Published, Received
from models.transport.mqtt import MqttLink
from tools.simulation.learning.light_codec import compress
from tools.simulation.learning.light_learning import bundle

FLEET, TASK, DEVICE = "hand-over", "light", "device-1"
INSTALLATION = "0badcafe"
log = logging.getLogger(__name__)


class HandOver:
    """``make`` updates, ``run`` until they are answered for, read the books afterwards."""

    def __init__(
        self,
        directory: Path,
        *,
        device_port: int,
        server_port: int,
        parameters: int,
        fold_at: int,
        keepalive_s: int = 10,
        max_waiting: int = 1000,
    ) -> None:
        self.topics = Topics(FLEET)
        self.task = bundle(TASK, parameters)
        self.directory = directory
        section = TaskConfig(
            bundle="",
            aggregation=FoldPolicy(min_seconds=0, patience=0, updates=fold_at, seconds=3600),
        )
        config = Config(
            fleet=FleetConfig(FLEET, "mqtt://here"),
            storage=StorageConfig(str(directory / "server")),
            task=(section,),
        )
        (directory / "server").mkdir()
        self.server_link = self._link(server_port, "server", 1)
        self.server = assemble(
            config,
            [ServedTask(section, self.task, None)],
            self.server_link,
            time.monotonic(),
            time.time(),
        )
        self.link = self._link(device_port, DEVICE, 2, keepalive_s=keepalive_s)
        self.outbox = Outbox(
            directory / "outbox.db",
            max_bytes=1 << 26,
            max_waiting=max_waiting,
            installation=INSTALLATION,
        )
        self.requests: deque[Request] = deque()
        self.uplink = Uplink(
            link=self.link,
            topics=self.topics,
            device=DEVICE,
            outbox=self.outbox,
            problems=Problems(),
            rng=random.Random(3),
            ask=self.requests.append,
        )
        self.drops = 0
        self._connected = False
        self._rng = np.random.default_rng(4)

    @staticmethod
    def _link(port: int, name: str, seed: int, *, keepalive_s: int = 60) -> MqttLink:
        return MqttLink(
            "127.0.0.1", port, client_id=name, will=None, keepalive_s=keepalive_s, seed=seed
        )

    def start(self) -> None:
        """Connect the server, then the device: a first update that nobody hears is asked for
        after a minute only.
        """
        self.server_link.start()
        self.run(lambda: self.server_link.window() > 0, within_s=30)
        self.link.start()
        self.run(lambda: self._connected, within_s=30)

    def close(self) -> None:
        self.link.close()
        self.server_link.close()
        self.outbox.close()

    def make(self, job: int, *, chunk_size: int = 65536) -> int:
        """Put one update into the outbox; return its size in bytes."""
        wanted = self._rng.standard_normal(self.task.spec.shared_size).astype(np.float32)
        payload = compress(wanted * 0.01, self.task.spec.shared, CodecPlan())
        header = UpdateHeader(
            TASK, 1, 10, 4, 1.0, 0.5, None, len(payload), hashlib.sha256(payload).hexdigest()
        )
        data = encode_update(header, payload)
        trained = Trained(
            job=job,
            base=1,
            header=data[: -len(payload)],
            payload=payload,
            residual=None,
            personal=None,
            merged=(),
            lost=0,
        )
        self.outbox.commit(trained, chunk_size=chunk_size, facts={})
        return len(data)

    def run(self, until: Callable[[], bool], *, within_s: float) -> float:
        """Let both sides work until ``until`` holds; return the seconds that it took."""
        began = time.monotonic()
        while not until():
            if time.monotonic() > began + within_s:
                raise AssertionError(f"not within {within_s:.0f} s: {self.outbox.waiting()[:5]}")
            for event in self.link.poll(0.005):
                self._handle(event, time.monotonic())
            self.uplink.tick(time.monotonic())
            while self._connected and self.requests and self.link.window() > 0:
                topic = self.topics.request(DEVICE)
                self.link.publish(topic, encode_message(self.requests.popleft()))
            for event in self.server_link.poll(0.005):
                self.server.handle(event, time.monotonic(), time.time())
            self.server.tick(time.monotonic(), time.time())
        return time.monotonic() - began

    def _handle(self, event: Event, now: float) -> None:
        match event:
            case Connected():
                self._connected = True
                self.requests.clear()
                self.uplink.on_connected(now)
            case Disconnected():
                self.drops += self._connected
                self._connected = False
                self.uplink.on_disconnected()
            case Published(token, refused):
                self.uplink.on_published(token, refused, now)
            case Received():
                if event.topic == self.topics.receipt(DEVICE):
                    self.uplink.on_receipts(decode_message(event.payload, Receipts), now)
                self.link.acknowledge(event)

    def stored(self) -> list[tuple[int, str]]:
        """Return number and state of every update that the server's registry has."""
        database = open_database(self.directory / "server" / DATABASE)
        try:
            return database.execute("SELECT sequence, state FROM updates ORDER BY 1").fetchall()
        finally:
            database.close()
