"""A registry of the version before servers had a state: taken over, copied first, told the same.

The vector was made by that version: two updates folded into release 2, a third one waiting, and the
manifest of release 3 as it published it afterwards.
"""

import base64
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from server_world import CONFIG, World

import models.host.durable
from broker.config import load_config
from broker.records.registry import DATABASE, Registry
from models.errors import TransientError
from models.protocol.manifest import decode_manifest

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "registry_1.json").read_text())
POLICY = "[task.aggregation]\nupdates = 2\nseconds = 60\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The directory of a fleet of that version."""
    for part, files in (("bundle", VECTOR["bundle"]), ("server/artifacts", VECTOR["artifacts"])):
        (tmp_path / part).mkdir(parents=True)
        for name, data in files.items():
            (tmp_path / part / name).write_bytes(base64.b64decode(data))
    with closing(sqlite3.connect(tmp_path / "server" / DATABASE)) as database:
        database.executescript(VECTOR["sql"])
        database.execute("PRAGMA journal_mode=WAL")
    return tmp_path


def world_of(directory: Path, task: str = "") -> World:
    (directory / "broker.toml").write_text(CONFIG + POLICY + task)
    return World(directory, load_config(directory / "broker.toml"))


def content(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return [*database.iterdump(), *database.execute("PRAGMA user_version")]


def test_it_goes_on_and_tells_devices_the_same_bytes(old: Path) -> None:
    before = content(old / "server" / DATABASE)
    world = world_of(old)
    assert world.manifest().release == 3, "no release for settings that nobody changed"
    found = world.broker.retained[world.topics.release(world.spec.task)]
    assert found.decode() == VECTOR["manifest"]
    assert content(old / "server" / f"{DATABASE}.version1") == before
    assert world.report().tasks[0].waiting == 0


def test_an_average_begins_where_it_is_asked_for_and_then_stays(old: Path) -> None:
    world = world_of(old, "[task.learning]\naverage = 0.8\n")
    first = world.server.books.releases.get("leaves", 3)
    assert first is not None
    assert (first.updates, first.manifest.averaged, first.manifest.plan.average) == (0, 0, 0.8)
    assert (world.manifest().release, world.manifest().averaged) == (4, 1)
    assert world.manifest().runs == "average"


def test_memories_begin_with_nothing(old: Path) -> None:
    world = world_of(old, '[task.learning]\nfeedback = "memory"\n')
    assert world.manifest().plan.feedback == "memory"
    states = world.server.books.registry.query("SELECT reason FROM updates WHERE state = 'refused'")
    assert states == [("made for feedback = residual, now it is memory",)]


def test_a_copy_that_cannot_be_made_stops_the_takeover(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old / "server" / DATABASE
    before = content(path)
    (old / "server" / f"{DATABASE}.version1.draft").write_bytes(b"of a copy that was cut off")

    def full(*rest: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as here:
        here.setattr(models.host.durable.os, "fsync", full)
        with pytest.raises(TransientError, match=r"cannot keep a copy .*version1: No space left"):
            Registry(path, "test")
    assert content(path) == before
    assert sorted(p.name for p in path.parent.glob("*version1*")) == []
    Registry(path, "test").close()
    assert content(old / "server" / f"{DATABASE}.version1") == before


def test_every_manifest_that_it_has_is_read(old: Path) -> None:
    registry = Registry(old / "server" / DATABASE, "test")
    manifests = [row[0] for row in registry.query("SELECT manifest FROM releases ORDER BY number")]
    assert [decode_manifest(data).release for data in manifests] == [1, 2]
    registry.close()
