"""A task small enough to read, a server in a few lines, and an agent that runs in virtual time."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent.agent import Agent
from edge_agent.board.children import Child
from edge_agent.board.installation import open_installation
from edge_agent.board.pace import Pace
from edge_agent.build import Surroundings, assemble
from edge_agent.config import Config, parse_config
from edge_agent.inbox import intake, intake_job
from edge_agent.inbox.intake_job import IntakeJob
from edge_agent.releases import apply_patches, patching
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.release_life import ReleaseState, TrackedRelease
from edge_agent.training import trainer, training_job
from edge_agent.training.governor import Vitals
from edge_agent.training.training_job import RESULT, decode_job
from models.errors import EdgefoldError
from models.host.durable import atomic_write
from models.protocol.manifest import (
    Artifact,
    CodecPlan,
    Kind,
    Manifest,
    TrainingPlan,
    encode_manifest,
)
from models.protocol.messages import (
    Receipt,
    Receipts,
    Request,
    Status,
    decode_message,
    encode_message,
)
from models.protocol.npz import write_vector
from models.protocol.topics import DeviceTopic, Topics, UpdateChunk
from models.protocol.update import UpdateHeader, decode_header, decode_update
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec
from models.transport.link import Connected, Link, Received
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink

FLEET, TASK, DEVICE = "orchard", "blobs", "board-1"
FEATURES, CLASSES = 4, 3
COOL = Vitals(celsius=40.0, throttled=False, free_mb=4e3, load=0.1, rss_mb=30.0, peak_rss_mb=31.0)


def tiny_spec(bias: Role = Role.SHARED, **changes: Any) -> TaskSpec:
    """Softmax regression: x W + b."""
    spec = TaskSpec(
        format=1,
        task=TASK,
        net="softmax regression",
        tensors=(
            TensorSpec("W", (FEATURES, CLASSES), Role.SHARED),
            TensorSpec("b", (CLASSES,), bias),
        ),
        x=ArraySpec("float32", (FEATURES,)),
        y=ArraySpec("int64", ()),
        classes=CLASSES,
        loss="cross_entropy",
        metric="accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="logits",
        slots=("momentum/W", "momentum/b"),
    )
    return msgspec.structs.replace(spec, **changes)


def infer_model() -> bytes:
    """Return infer.onnx; its own b is (1, 2, 3), so that one sees where values come from."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "infer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(np.zeros((FEATURES, CLASSES), np.float32), "W"),
            numpy_helper.from_array(np.array([1, 2, 3], np.float32), "b"),
        ],
    )
    return _serialized(graph)


def train_model() -> bytes:
    """Return train.onnx, its gradient written by hand: SGD with momentum 0.9."""

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, outputs, **attributes)

    nodes = [
        node("MatMul", ["x", "W"], ["z"]),
        node("Add", ["z", "b"], ["logits"]),
        node("LogSoftmax", ["logits"], ["logp"], axis=1),
        node("OneHot", ["y", "depth", "off_on"], ["onehot"]),
        node("Mul", ["onehot", "logp"], ["chosen"]),
        node("ReduceSum", ["chosen", "axis1"], ["loglik"], keepdims=0),
        node("Mul", ["loglik", "sample_weight"], ["weighted"]),
        node("ReduceSum", ["weighted"], ["total"], keepdims=0),
        node("ReduceSum", ["sample_weight"], ["mass"], keepdims=0),
        node("Neg", ["total"], ["negative"]),
        node("Div", ["negative", "mass"], ["loss"]),
        node("Exp", ["logp"], ["p"]),
        node("Sub", ["p", "onehot"], ["error"]),
        node("Div", ["sample_weight", "mass"], ["share"]),
        node("Unsqueeze", ["share", "axis1"], ["column"]),
        node("Mul", ["error", "column"], ["dz"]),
        node("Transpose", ["x"], ["xt"], perm=[1, 0]),
        node("MatMul", ["xt", "dz"], ["dW"]),
        node("ReduceSum", ["dz", "axis0"], ["db"], keepdims=0),
        node("ReduceL2", ["dW"], ["grad_norm"], keepdims=0),
    ]
    for name in ("W", "b"):
        nodes += [
            node("Mul", [f"momentum/{name}", "beta"], [f"kept/{name}"]),
            node("Add", [f"kept/{name}", f"d{name}"], [f"new/momentum/{name}"]),
            node("Mul", [f"new/momentum/{name}", "lr"], [f"step/{name}"]),
            node("Sub", [name, f"step/{name}"], [f"new/{name}"]),
        ]
    shapes = {"W": [FEATURES, CLASSES], "b": [CLASSES]}
    shapes |= {f"momentum/{name}": shape for name, shape in shapes.items()}

    def value(name: str, shape: Sequence[Any], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "train",
        [
            value("x", ["batch", FEATURES]),
            value("y", ["batch"], TensorProto.INT64),
            value("sample_weight", ["batch"]),
            value("lr", []),
            *(value(name, shape) for name, shape in shapes.items()),
        ],
        [
            *(value(f"new/{name}", shape) for name, shape in shapes.items()),
            value("loss", []),
            value("grad_norm", []),
        ],
        [
            numpy_helper.from_array(np.array(CLASSES, np.int64), "depth"),
            numpy_helper.from_array(np.array([0, 1], np.float32), "off_on"),
            numpy_helper.from_array(np.array([0], np.int64), "axis0"),
            numpy_helper.from_array(np.array([1], np.int64), "axis1"),
            numpy_helper.from_array(np.array(0.9, np.float32), "beta"),
        ],
    )
    return _serialized(graph)


def _serialized(graph: Any) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def blobs(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return samples of three Gaussian classes that softmax regression separates."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    centers = 2 * np.eye(CLASSES, FEATURES)
    return (centers[y] + rng.normal(0, 0.5, (count, FEATURES))).astype(np.float32), y


class Files:
    """The files of one release, by kind, and its manifest."""

    def __init__(
        self,
        number: int,
        *,
        spec: TaskSpec | None = None,
        parameters: npt.NDArray[np.float32] | None = None,
        is_open: bool = True,
        chunk_size: int = 1024,
    ) -> None:
        spec = spec or tiny_spec()
        self.patches: tuple[bytes, ...] = ()
        if parameters is None:
            parameters = np.full(spec.shared_size, number / 100, np.float32)
        self.files: dict[Kind, bytes] = {
            "infer": infer_model(),
            "train": train_model(),
            "spec": encode_spec(spec),
            "parameters": write_vector(parameters),
        }
        self.manifest = Manifest(
            format=1,
            task=spec.task,
            release=number,
            parent=number - 1,
            artifacts={
                kind: Artifact(hashlib.sha256(data).hexdigest(), len(data))
                for kind, data in self.files.items()
            },
            chunk_size=chunk_size,
            training=TrainingPlan(open=is_open, epochs=2, batch=16, learning_rate=0.1),
            codec=CodecPlan(keep=0.5, centers=4),
        )

    def chunks(self, topics: Topics) -> dict[str, bytes]:
        """Return what the broker retains of the artifacts."""
        size = self.manifest.chunk_size
        return {
            topics.blob(hashlib.sha256(data).hexdigest(), start // size): data[start : start + size]
            for data in (*self.files.values(), *self.patches)
            for start in range(0, len(data), size)
        }

    def offer(self, patches: Mapping[int, bytes]) -> None:
        """Offer ``patches`` from older releases, by the release that each begins with."""
        self.patches = tuple(patches.values())
        offered = {
            number: Artifact(hashlib.sha256(data).hexdigest(), len(data))
            for number, data in patches.items()
        }
        self.manifest = msgspec.structs.replace(self.manifest, patches=offered)

    def replace(self, kind: Kind, data: bytes) -> None:
        """Put another file in the place of one."""
        self.files[kind] = data
        artifact = Artifact(hashlib.sha256(data).hexdigest(), len(data))
        artifacts = {**self.manifest.artifacts, kind: artifact}
        self.manifest = msgspec.structs.replace(self.manifest, artifacts=artifacts)

    def publish(self, broker: MemoryBroker, topics: Topics) -> None:
        for topic, data in self.chunks(topics).items():
            broker.accept(topic, data, retain=True)
        broker.accept(topics.release(TASK), encode_manifest(self.manifest), retain=True)


def put(slots: Slots, files: Files) -> None:
    for kind, data in files.files.items():
        slots.add(files.manifest.artifacts[kind], [data[:100], data[100:]])


def whole(files: Files) -> TrackedRelease:
    """Return a release whose files have come."""
    return TrackedRelease(files.manifest, ReleaseState.WHOLE)


def install(slots: Slots, files: Files) -> None:
    put(slots, files)
    slots.stage(whole(files))
    slots.activate(files.manifest)


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Ended:
    def __init__(self, code: int) -> None:
        self._code = code

    def poll(self) -> int:
        return self._code

    def kill(self) -> None:
        return


def launch_here(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
    """Do a child's work at once, in this process: what it writes is what the child writes."""
    path = Path(arguments[0])
    try:
        match module:
            case training_job.TRAINER:
                result = trainer.carry_out(decode_job(path.read_bytes()), path.parent)
                atomic_write(path.parent / RESULT, msgspec.json.encode(result))
            case intake_job.INTAKE:
                job = msgspec.json.decode(path.read_bytes(), type=IntakeJob)
                taken = intake.take_in(job)
                (path.parent / "result.json").write_bytes(msgspec.json.encode(taken))
            case patching.PATCHER:
                apply_patches.apply_patches(arguments)
            case _:
                raise AssertionError(module)
    except (EdgefoldError, OSError) as error:
        assert log is not None
        Path(log).write_text(str(error))
        return _Ended(1)
    return _Ended(0)


class Device:
    """An agent over a `MemoryBroker`, in virtual time; `restart` is a crash without a warning."""

    def __init__(
        self,
        directory: Path,
        broker: MemoryBroker,
        clock: Clock,
        server: "Server | None" = None,
        **settings: Any,
    ) -> None:
        self.server = server
        self.skew_s = 0.0  # of the board's clock
        self.directory = directory
        self.broker = broker
        self.clock = clock
        self.launch: Callable[..., Child] = launch_here
        self.vitals = COOL
        self.pace = Pace()
        self.config = make_config(directory, **settings)
        self.boot()

    def boot(self) -> None:
        self.link = MemoryLink(self.broker, client_id=DEVICE)
        directory = self.config.storage.directory
        directory.mkdir(parents=True, exist_ok=True)
        installation = open_installation(directory, device=DEVICE, task=TASK)
        surroundings = Surroundings(
            launch=lambda *a, **k: self.launch(*a, **k),
            vitals=lambda: self.vitals,
            wall_clock=lambda: 2e9 + self.clock.now + self.skew_s,
            rng=random.Random(7),
            pace=self.pace,
        )
        self.agent: Agent = assemble(self.config, installation, self.link, surroundings)
        self.agent.start(self.clock.now)
        self.wake_at = self.clock.now

    def restart(self) -> None:
        self.broker.drop_link(DEVICE)
        self.link.close()
        self.boot()

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let virtual time pass; stop early when ``until`` holds, and return whether it did."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            for _ in range(2000):
                if self.server is not None:
                    self.server.step()
                events = self.link.poll(0)
                for event in events:
                    self.agent.handle(event, self.clock.now)
                if events or self.wake_at <= self.clock.now:
                    self.wake_at = self.agent.tick(self.clock.now)
                if until is not None and until():
                    return True
                if not events and self.wake_at > self.clock.now:
                    break
            else:
                raise AssertionError("the agent does not come to rest")
            self.clock.now = min(end, max(self.wake_at, self.clock.now + 0.001))
        return until is None

    @property
    def status(self) -> Status:
        return self.agent.status()

    def add_samples(self, count: int = 64, seed: int = 1) -> None:
        x, y = blobs(count, seed)
        inbox = self.config.inbox
        inbox.mkdir(parents=True, exist_ok=True)
        np.savez(inbox / f"samples-{seed}.npz", x=x, y=y)


def make_config(directory: Path, **settings: Any) -> Config:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    text = f"""
        [device]
        id = "{DEVICE}"
        task = "{TASK}"
        [fleet]
        name = "{FLEET}"
        broker = "mqtt://127.0.0.1:1"
        [storage]
        directory = "state"
        [inference]
        enabled = false
        [training]
        min_minutes = 0
    """
    return parse_config(text, source=directory / "agent.toml", overrides=overrides)


class Server:
    """The server's side of the protocol in a few lines.

    ``verdict`` is what becomes of a whole update; ``folded`` are the payloads it took.
    """

    def __init__(self, link: Link, topics: Topics) -> None:
        self.topics = topics
        self.verdict = "folded"
        self.release = 0  # that updates are folded into
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.updates: dict[str, bytes] = {}
        self.headers: dict[str, UpdateHeader] = {}
        self.arrivals: list[tuple[str, int]] = []
        self.requests: list[Request] = []
        self.statuses: list[Status] = []
        self.link = link
        self.link.start()
        self.is_deaf = False
        self.published: Files | None = None

    def publish(self, files: "Files") -> None:
        """Make ``files`` the current release, and again whenever the broker has lost it."""
        self.published = files
        retained = files.chunks(self.topics)
        retained[self.topics.release(TASK)] = encode_manifest(files.manifest)
        for topic, data in retained.items():
            while self.link.window() == 0:
                self.step(0.05)
            self.link.publish(topic, data, retain=True)

    def step(self, timeout_s: float = 0.0) -> None:
        for event in self.link.poll(timeout_s):
            if isinstance(event, Connected):
                self.link.subscribe(
                    [self.topics.all_updates, self.topics.all_requests, self.topics.all_statuses]
                )
                if self.published and not event.session_present:
                    self.publish(self.published)
            elif isinstance(event, Received):
                if not self.is_deaf:
                    self.take(event)
                self.link.acknowledge(event)

    def take(self, event: Received) -> None:
        match self.topics.parse(event.topic):
            case UpdateChunk(_, update_id, number):
                self.arrivals.append((update_id, number))
                self.chunks.setdefault(update_id, {})[number] = event.payload
                self._complete(update_id)
            case DeviceTopic(_, "request"):
                request = decode_message(event.payload, Request)
                self.requests.append(request)
                if request.receipts:
                    self.answer(*(self.receipt(update) for update in request.receipts))
            case DeviceTopic(_, "status") if event.payload:
                self.statuses.append(decode_message(event.payload, Status))

    def _complete(self, update_id: str) -> None:
        chunks = self.chunks[update_id]
        if 0 not in chunks or update_id in self.updates:
            return
        header, length = decode_header(chunks[0])
        if sum(map(len, chunks.values())) == length + header.payload_size:
            data = b"".join(chunks[number] for number in sorted(chunks))
            self.headers[update_id], self.updates[update_id] = decode_update(data)
            self.answer(self.receipt(update_id))

    def receipt(self, update_id: str) -> Receipt:
        if update_id in self.updates:
            return Receipt(update_id, self.verdict, release=self.release)
        if not (chunks := self.chunks.get(update_id)):
            return Receipt(update_id, "unknown")
        present = set(chunks)
        return Receipt(update_id, "partial", missing=tuple(set(range(max(present) + 2)) - present))

    def answer(self, *receipts: Receipt) -> None:
        self.link.publish(self.topics.receipt(DEVICE), encode_message(Receipts(receipts)))
