"""The real agent and the real server, which remembers it: both hold the same bits."""

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fresh_module import fresh_module

from broker.assembly import assemble, read_tasks
from broker.config import load_config
from edge_agent.updates.outbox_facts import OutboxFacts
from models.protocol.npz import read_vector
from models.task.params import Vector
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
[task.aggregation]
updates = 1
seconds = 1
min_seconds = 0
patience = 0
"""
METHODS = {
    "memory": '[task.learning]\nfeedback = "memory"\n',
    "own context": '[task.learning]\nfeedback = "memory"\n[task.codec]\ncontext = "own"\n',
    "gd-sec": '[task.learning]\nfeedback = "gd-sec"\nbeta = 0.25\nthreshold = 0.5\n',
}


class Remembering:
    """One device and its server over a broker in memory; the server is stepped with the device."""

    def __init__(self, tiny: ModuleType, directory: Path, task: str) -> None:
        (directory / "server").mkdir()
        (directory / "bundle").mkdir()
        (directory / "bundle" / "infer.onnx").write_bytes(tiny.infer_model())
        (directory / "bundle" / "train.onnx").write_bytes(tiny.train_model())
        (directory / "bundle" / "spec.json").write_bytes(tiny.encode_spec(tiny.tiny_spec()))
        self.directory = directory
        self.configure(task)
        self.size = tiny.tiny_spec().shared_size
        self.clock = tiny.Clock()
        self.broker = MemoryBroker(self.clock)
        self.start()
        self.device = tiny.Device(directory, self.broker, self.clock, server=self)
        self.seeds = 0

    def configure(self, task: str) -> None:
        """Let the server be told ``task`` at its next start."""
        (self.directory / "broker.toml").write_text(CONFIG + task)

    def start(self) -> None:
        config = load_config(self.directory / "broker.toml")
        self.link = MemoryLink(self.broker, client_id="edgefold-broker")
        self.server = assemble(config, read_tasks(config), self.link, self.clock(), self.clock())
        (self.line,) = [lane.line for lane in self.server.lanes.values()]
        self.link.start()

    def restart(self) -> None:
        self.broker.drop_link("edgefold-broker", "killed")
        self.start()

    def step(self) -> None:
        for event in self.link.poll(0.0):
            self.server.handle(event, self.clock(), self.clock())
        self.server.tick(self.clock(), self.clock())

    def learn_until(self, folded: int) -> None:
        while self.facts().folded < folded:
            self.seeds += 1
            before = self.facts().folded
            self.device.add_samples(64, seed=self.seeds)
            assert self.device.run(
                3000, until=lambda before=before: self.facts().folded > before
            ), self.device.status
        self.device.run(30)

    def facts(self) -> OutboxFacts:
        facts: OutboxFacts = self.device.agent.parts.outbox.facts.read()
        return facts

    def held(self) -> Vector | None:
        """What the device holds."""
        name = self.device.agent.parts.outbox.carried.read().history
        if name is None:
            return None
        path = self.device.config.storage.directory / "codec" / name
        return read_vector(path.read_bytes(), size=self.size, name="history")

    def remembered(self) -> Vector:
        (row,) = self.line.memory.records.rows(self.line.task)
        return self.line.memory.get(row).history


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    return fresh_module("tiny_fleet", FEATURES=500)


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_hold_the_same_bits_over_restarts_and_a_lost_memory(
    tiny: ModuleType, tmp_path: Path, method: str
) -> None:
    pair = Remembering(tiny, tmp_path, METHODS[method])
    pair.learn_until(3)
    np.testing.assert_array_equal(pair.held(), pair.remembered())
    pair.restart()
    pair.learn_until(5)
    np.testing.assert_array_equal(pair.held(), pair.remembered())
    assert pair.facts().refused == 0
    with pair.server.books.registry.transaction():  # as in a registry of another day
        pair.line.memory.records.drop_all(pair.line.task)
    pair.learn_until(7)
    assert pair.facts().refused == 1, "told to begin anew, once"
    np.testing.assert_array_equal(pair.held(), pair.remembered())


def test_a_server_of_yesterday_tells_its_device_once(tiny: ModuleType, tmp_path: Path) -> None:
    """The device has newer releases than it, and another memory."""
    pair = Remembering(tiny, tmp_path, METHODS["memory"])
    pair.learn_until(3)
    pair.restart()  # nothing of it is on its way to the disk
    yesterday = tmp_path / "yesterday"
    shutil.copytree(tmp_path / "server", yesterday)
    pair.learn_until(5)
    lost = pair.line.newest
    pair.server.close()
    shutil.rmtree(tmp_path / "server")
    yesterday.rename(tmp_path / "server")
    pair.restart()
    assert pair.line.newest < lost
    pair.learn_until(7)
    assert pair.line.newest > lost
    assert pair.facts().refused == 1
    np.testing.assert_array_equal(pair.held(), pair.remembered())


def test_a_device_whose_outbox_is_lost_begins_anew_by_itself(
    tiny: ModuleType, tmp_path: Path
) -> None:
    pair = Remembering(tiny, tmp_path, METHODS["memory"])
    pair.learn_until(3)
    before = pair.remembered()
    for file in pair.device.config.storage.directory.glob("outbox.db*"):
        file.unlink()
    pair.device.restart()
    assert pair.held() is None
    pair.learn_until(1)
    assert pair.facts().refused == 0
    assert not np.array_equal(before, pair.remembered()), "the old share is taken out"
    np.testing.assert_array_equal(pair.held(), pair.remembered())


def test_methods_follow_each_other_while_updates_wait(tiny: ModuleType, tmp_path: Path) -> None:
    pair = Remembering(tiny, tmp_path, "")
    pair.learn_until(2)
    for method in ("memory", "gd-sec", "", "own context", "memory", ""):
        folded = pair.facts().folded
        pair.broker.drop_link("edgefold-broker", "killed")
        pair.device.server = None
        for _ in range(2):  # what it learns meanwhile, by the old method
            pair.seeds += 1
            pair.device.add_samples(64, seed=pair.seeds)
            pair.device.run(3000)
        pair.configure(METHODS.get(method, ""))
        pair.device.server = pair
        pair.restart()
        pair.learn_until(folded + 2)
        rows = [row.device for row in pair.line.memory.records.rows(pair.line.task)]
        assert rows == (["board-1"] if method else [])
        if method:
            np.testing.assert_array_equal(pair.held(), pair.remembered())
        assert pair.device.agent.parts.outbox.waiting() == []


def test_a_card_of_yesterday_agrees_again_by_itself(tiny: ModuleType, tmp_path: Path) -> None:
    """Its numbers go back, so it is told what became of other updates; its memory is not theirs."""
    pair = Remembering(tiny, tmp_path, METHODS["memory"])
    pair.learn_until(3)
    state = pair.device.config.storage.directory
    shutil.copytree(state, tmp_path / "card", ignore=shutil.ignore_patterns("*.sock"))
    pair.learn_until(6)
    shutil.rmtree(state)
    (tmp_path / "card").rename(state)
    pair.device.restart()
    assert not np.array_equal(pair.held(), pair.remembered())
    pair.learn_until(8)
    assert pair.facts().refused == 1
    np.testing.assert_array_equal(pair.held(), pair.remembered())
