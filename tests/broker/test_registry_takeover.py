"""A registry that an older version made is taken over as it is."""

import sqlite3
from pathlib import Path

import pytest

from broker.records.registry import DATABASE, Registry
from broker.records.update_records import UpdateKey, UpdateRecords
from broker.reports.fleet_report import open_to_read
from models.errors import UsageError
from models.protocol.messages import Status

OLD = Path(__file__).parents[1] / "vectors" / "registry_0_1.sql"  # dumped from a small fleet's
INSTALLATION = 0xA0A0A0A0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    database = sqlite3.connect(tmp_path / DATABASE)
    database.executescript(OLD.read_text())
    database.execute("PRAGMA journal_mode=WAL")
    database.close()
    return tmp_path


def test_nothing_is_lost_when_an_older_registry_is_taken_over(directory: Path) -> None:
    for _ in range(2):  # and again, as it is taken over already
        registry = Registry(directory / DATABASE, "test")
        first, second = registry.devices()
        assert (first.device, first.heard, first.online) == ("dev-1", 0.0, True)
        assert isinstance(first.status, Status)
        assert (second.online, second.seen) == (False, 1_700_000_000.0)
        updates = UpdateRecords(registry, is_owner=True)
        states = [
            updates.receipt(UpdateKey(device, INSTALLATION, number)).state
            for device, number in (("dev-1", 1), ("dev-2", 1), ("dev-2", 2), ("dev-2", 3))
        ]
        assert states == ["folded", "folded", "stored", "unknown"]
        assert registry.note_heard("dev-1", 5.0, is_here=True)
        registry.note_heard("dev-1", 0.0, is_here=True)
        registry.close()


def test_whoever_only_reads_it_is_told_to_start_the_server(directory: Path) -> None:
    with pytest.raises(UsageError, match="restart it"):
        open_to_read(directory)
    Registry(directory / DATABASE, "test").close()
    open_to_read(directory).close()
