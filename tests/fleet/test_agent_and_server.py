"""The real agent and the real server over a broker in memory: patches down, context up."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fresh_module import fresh_module

from broker.assembly import assemble, read_tasks
from broker.config import load_config
from edge_agent.updates.outbox_facts import OutboxFacts
from models.protocol.npz import read_vector
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink

CONFIG = """
[fleet]
name = "orchard"
broker = "mqtt://localhost"
[storage]
directory = "server"
[[task]]
bundle = "bundle"
releases = 8
[task.aggregation]
updates = 1
seconds = 1
min_seconds = 0
patience = 0
"""


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """The agent's tiny task, wide enough that a release is worth a patch."""
    return fresh_module("tiny_fleet", FEATURES=500)


class RealServer:
    """The server, stepped by the device's loop."""

    def __init__(self, directory: Path, broker: MemoryBroker, now: Callable[[], float]) -> None:
        self._now = now
        self._config = load_config(directory / "broker.toml")
        self._broker = broker
        self.start()

    def start(self) -> None:
        self.link = MemoryLink(self._broker, client_id="edgefold-broker")
        self.server = assemble(
            self._config, read_tasks(self._config), self.link, self._now(), self._now()
        )
        (self.line,) = [lane.line for lane in self.server.lanes.values()]
        self.link.start()

    def restart(self) -> None:
        self._broker.drop_link("edgefold-broker", "killed")
        self.start()

    def step(self) -> None:
        for event in self.link.poll(0.0):
            self.server.handle(event, self._now(), self._now())
        self.server.tick(self._now(), self._now())


class Pair:
    def __init__(self, tiny: ModuleType, directory: Path) -> None:
        (directory / "server").mkdir()
        (directory / "bundle").mkdir()
        (directory / "bundle" / "infer.onnx").write_bytes(tiny.infer_model())
        (directory / "bundle" / "train.onnx").write_bytes(tiny.train_model())
        (directory / "bundle" / "spec.json").write_bytes(tiny.encode_spec(tiny.tiny_spec()))
        (directory / "broker.toml").write_text(CONFIG)
        self.size = tiny.tiny_spec().shared_size
        clock = tiny.Clock()
        broker = MemoryBroker(clock)
        self.server = RealServer(directory, broker, clock)
        self.device: Any = tiny.Device(directory, broker, clock, server=self.server)
        self.seeds = 0

    def run_until(self, release: int) -> None:
        """Let the device learn, from new samples each time, until it has ``release``."""
        known = self.device.status.release if self.seeds else 1
        for number in range(known + 1, release + 1):
            self.seeds += 1
            self.device.add_samples(64, seed=self.seeds)
            assert self.device.run(
                3000,
                until=lambda n=number: self.device.status.release >= n,  # type: ignore[misc]
            ), self.device.status

    def facts(self) -> OutboxFacts:
        facts: OutboxFacts = self.device.agent.parts.outbox.facts.read()
        return facts

    def check_same_parameters(self) -> None:
        slots = self.device.agent.parts.slots
        data = Path(slots.path(slots.active, "parameters")).read_bytes()
        published = self.server.line.published
        np.testing.assert_array_equal(read_vector(data, size=self.size), published)


@pytest.fixture
def pair(tiny: ModuleType, tmp_path: Path) -> Pair:
    return Pair(tiny, tmp_path)


def test_a_device_follows_by_patches_and_sends_in_the_context_of_the_last_release(
    pair: Pair,
) -> None:
    pair.run_until(2)
    down = pair.device.status.bytes_down
    pair.run_until(6)
    assert (pair.device.status.bytes_down - down) / 4 < 3000, (
        "of 6 kB as float32, manifest included"
    )
    assert [c for c in pair.server.line.vectors.contexts.values() if c is not None]
    pair.run_until(8)
    pair.device.run(60)
    pair.check_same_parameters()
    facts = pair.facts()
    assert facts.folded == facts.made
    assert facts.refused == 0
    assert not list((pair.device.config.storage.directory / "codec").glob("context-*"))


def test_an_update_whose_context_the_server_lost_is_refunded_and_comes_again(pair: Pair) -> None:
    pair.run_until(3)
    pair.server.line.vectors.changed = lambda number: None  # type: ignore[method-assign]
    pair.server.line.vectors.contexts.clear()
    pair.device.add_samples(64, seed=99)
    assert pair.device.run(600, until=lambda: pair.facts().refused >= 1)
    del pair.server.line.vectors.changed  # type: ignore[method-assign]
    pair.server.line.vectors.contexts.clear()
    pair.device.add_samples(64, seed=2)
    pair.run_until(8)
    pair.device.run(60)
    facts = pair.facts()
    assert facts.refunds_lost == 0
    assert facts.folded + facts.refused == facts.made
    pair.check_same_parameters()


def test_restarts_of_both_sides_keep_patches_and_contexts(pair: Pair) -> None:
    for release in range(2, 8):
        pair.run_until(release)
        pair.server.restart()
        pair.device.restart()
    pair.run_until(8)
    pair.device.run(60)
    pair.check_same_parameters()
    facts = pair.facts()
    assert facts.folded == facts.made
    assert facts.refunds_lost == 0
