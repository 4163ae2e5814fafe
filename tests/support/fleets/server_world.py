"""A tiny task, and a whole server over a broker in memory, driven by hand: no thread, no clock."""

import functools
import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from broker.assembly import assemble, read_tasks
from broker.config import Config, FoldPolicy, TaskConfig
from broker.reports.fleet_report import FleetReport, read_report
from broker.server import Server
from models.codec.payload import compress
from models.protocol.chunked_transfer import split
from models.protocol.manifest import FOLLOWS, CodecPlan, Manifest, decode_manifest
from models.protocol.messages import (
    Receipt,
    Receipts,
    Request,
    Status,
    decode_message,
    encode_message,
)
from models.protocol.npz import read_vector
from models.protocol.topics import DeviceTopic, Topics
from models.protocol.update import Extras, UpdateHeader, encode_update
from models.task.params import Vector
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec
from models.transport.link import Received
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink

FEATURES, CLASSES = 6, 3


def linear_spec(
    task: str = "leaves", *, features: int = FEATURES, own: Role = Role.PERSONAL
) -> TaskSpec:
    return TaskSpec(
        format=1,
        task=task,
        net="linear",
        tensors=(
            TensorSpec("weight", (features, CLASSES), Role.SHARED),
            TensorSpec("own_bias", (CLASSES,), own),
            TensorSpec("bias", (CLASSES,), Role.SHARED),
        ),
        x=ArraySpec("float32", (features,)),
        y=ArraySpec("int64", ()),
        classes=CLASSES,
        loss="cross_entropy",
        metric="accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="logits",
        slots=("momentum/weight", "momentum/own_bias", "momentum/bias"),
    )


def write_bundle(directory: Path, spec: TaskSpec, *, seed: int = 0) -> Path:
    """Write a bundle of a linear classifier; its train.onnx is never run here."""
    generator = np.random.default_rng(seed)
    initializers = [
        numpy_helper.from_array(
            generator.normal(0, 0.01, tensor.shape).astype(np.float32), tensor.name
        )
        for tensor in spec.tensors
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["shifted"]),
            helper.make_node("Add", ["shifted", "own_bias"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *spec.x.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "infer.onnx").write_bytes(model.SerializeToString())
    (directory / "train.onnx").write_bytes(b"a training graph" * 100)
    (directory / "spec.json").write_bytes(encode_spec(spec))
    return directory


def separable(seed: int = 1, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Samples of three classes that a linear classifier can tell apart."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, count)
    x = generator.normal(0, 0.3, (count, FEATURES)).astype(np.float32)
    x[np.arange(count), y] += 1
    return x, y.astype(np.int64)


def good_direction() -> Vector:
    """A delta towards telling the classes of `separable` apart."""
    weight = np.zeros((FEATURES, CLASSES), np.float32)
    weight[np.arange(CLASSES), np.arange(CLASSES)] = 1
    return np.concatenate([weight.reshape(-1), np.zeros(CLASSES, np.float32)])


def exact_plan() -> CodecPlan:
    """Return the plan that keeps all of a delta with at most 256 different values."""
    return CodecPlan(method="coreset", keep=1.0, centers=256)


@functools.lru_cache(maxsize=64)
def _compressed(delta: bytes, tensors: tuple[TensorSpec, ...]) -> bytes:
    """Exact for deltas of at most 256 different values."""
    return compress(np.frombuffer(delta, np.float32), tensors, exact_plan())


@dataclass
class FakeDevice:
    """Sends updates as a device does, and keeps what it is told."""

    name: str
    topics: Topics
    link: MemoryLink
    spec: TaskSpec
    installation: int = 0xA0A0A0A0
    receipts: dict[str, Receipt] = field(default_factory=dict)
    told: list[Receipt] = field(default_factory=list)
    messages: list[Received] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def update(
        self,
        delta: Vector,
        *,
        base: int = 1,
        samples: int = 10,
        task: str | None = None,
        accuracy: float | None = 0.5,
        extras: Extras | None = None,
    ) -> tuple[str, bytes]:
        """Return the id and the bytes of a new update."""
        payload = _compressed(delta.tobytes(), self.spec.shared)
        header = UpdateHeader(
            task=task or self.spec.task,
            base=base,
            samples=samples,
            steps=5,
            loss_first=1.0,
            loss_last=0.5,
            accuracy=accuracy,
            payload_size=len(payload),
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            extras=extras,
        )
        return f"{self.installation:08x}-{next(self._numbers)}", encode_update(header, payload)

    def send(self, update_id: str, data: bytes, *, chunk_size: int = 65536) -> None:
        for number, chunk in enumerate(split(data, chunk_size)):
            self.publish(self.topics.update(self.name, update_id, number), chunk)

    def send_delta(
        self, delta: Vector, *, base: int = 1, samples: int = 10, accuracy: float = 0.5
    ) -> str:
        update_id, data = self.update(delta, base=base, samples=samples, accuracy=accuracy)
        self.send(update_id, data)
        return update_id

    def request(self, request: Request) -> None:
        self.publish(self.topics.request(self.name), encode_message(request))

    def report(self, status: Status, *, follows: int = FOLLOWS) -> None:
        status = msgspec.structs.replace(status, follows=follows)
        self.publish(self.topics.status(self.name), encode_message(status), retain=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.listen()
        self.link.publish(topic, payload, retain=retain)

    def listen(self) -> None:
        for event in self.link.poll(0.0):
            if isinstance(event, Received):
                self.link.acknowledge(event)
                self.messages.append(event)
                if self.topics.parse(event.topic) == DeviceTopic(self.name, "receipt"):
                    for receipt in decode_message(event.payload, Receipts).receipts:
                        self.receipts[receipt.update] = receipt
                        self.told.append(receipt)

    def state(self, update_id: str) -> str:
        self.listen()
        receipt = self.receipts.get(update_id)
        return receipt.state if receipt else "nothing"


class World:
    """A fleet in memory: one server, and devices by name. ``now`` is what the test says.

    ``skew`` is what somebody set the clock on the wall forward or back by.
    """

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory = directory
        self.config = _hasty(config)
        self.now = 5000.0
        self.skew = 0.0
        self.broker = MemoryBroker(lambda: self.now)
        self.topics = Topics(config.fleet.name)
        self.spec = read_tasks(config)[0].bundle.spec
        self.devices: dict[str, FakeDevice] = {}
        self.start()
        self.run()

    @property
    def wall(self) -> float:
        return 1_700_000_000.0 + self.now + self.skew

    def start(self) -> None:
        self.link = MemoryLink(self.broker, client_id="edgefold-broker")
        self.server: Server = assemble(
            self.config, read_tasks(self.config), self.link, self.now, self.wall
        )
        self.link.start()

    def restart(self, **changes: object) -> None:
        """Kill the server, change the first task's settings maybe, and start it again."""
        self.broker.drop_link("edgefold-broker", "killed")
        if changes:
            task = msgspec.structs.replace(self.config.task[0], **changes)
            self.config = msgspec.structs.replace(self.config, task=(task, *self.config.task[1:]))
        self.start()

    def back_up(self) -> dict[Path, bytes]:
        """Stop the server, return its files, and start it again."""
        self._stop("stopped for a backup")
        files = [path for path in (self.directory / "server").rglob("*") if path.is_file()]
        backup = {path: path.read_bytes() for path in files}
        self.start()
        return backup

    def restore(self, backup: dict[Path, bytes]) -> None:
        """Kill the server, and leave what ``backup`` has; what came later is artifacts alone."""
        self._stop("killed")
        for path in (self.directory / "server").glob("registry*"):
            path.unlink()
        for path, data in backup.items():
            path.write_bytes(data)

    def _stop(self, reason: str) -> None:
        self.broker.drop_link("edgefold-broker", reason)
        self.server.close()

    def run(self, seconds: float = 0.0) -> None:
        """Let the server do all that it can, then let time pass, then again."""
        for passed in (0.0, seconds):
            self.now += passed
            for _ in range(200):
                events = self.link.poll(0.0)
                for event in events:
                    self.server.handle(event, self.now, self.wall)
                window = self.link.window()
                self.server.tick(self.now, self.wall)
                if not events and self.link.window() == window:
                    break
        for device in self.devices.values():
            device.listen()

    def device(self, name: str = "dev-1") -> FakeDevice:
        if name not in self.devices:
            link = MemoryLink(self.broker, client_id=name)
            link.start()
            self.devices[name] = FakeDevice(name, self.topics, link, self.spec)
            link.subscribe([self.topics.receipt(name)])
            self.devices[name].listen()
        return self.devices[name]

    def manifest(self) -> Manifest:
        return decode_manifest(self.broker.retained[self.topics.release(self.spec.task)])

    def blob(self, sha256: str) -> bytes:
        parts = []
        while (topic := self.topics.blob(sha256, len(parts))) in self.broker.retained:
            parts.append(self.broker.retained[topic])
        return b"".join(parts)

    def parameters(self) -> Vector:
        """The newest release's, as a device gets them."""
        artifact = self.manifest().artifacts["parameters"]
        return read_vector(self.blob(artifact.sha256), size=self.spec.shared_size)

    def report(self) -> FleetReport:
        return read_report(self.directory / "server", self.wall)


def _hasty(config: Config) -> Config:
    """Let releases follow each other at once, for ever, where a test does not set their pace."""

    def hasty(task: TaskConfig) -> TaskConfig:
        if task.aggregation.min_seconds != FoldPolicy().min_seconds:
            return task
        policy = msgspec.structs.replace(task.aggregation, min_seconds=0.0, patience=0)
        return msgspec.structs.replace(task, aggregation=policy)

    return msgspec.structs.replace(config, task=tuple(hasty(task) for task in config.task))


CONFIG = """
[fleet]
name = "test"
broker = "mqtt://localhost"
chunk_kib = 8
[storage]
directory = "server"
[[task]]
bundle = "bundle"
"""
