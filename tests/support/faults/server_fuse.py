"""Kills a server in a test at the n-th of its writes."""

from pathlib import Path

import pytest

from broker.records.registry import Registry
from broker.state import artifact_store


class PowerCutError(BaseException):
    """The process ends here: nobody may handle it."""


class Fuse:
    """Burns at the n-th write: before a statement of SQLite, or before or after a file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.count = 0
        execute, atomic_write = Registry.execute, artifact_store.atomic_write

        def counted_execute(registry: Registry, statement: str, *values: object) -> int:
            self.step()
            return execute(registry, statement, *values)

        def counted_write(path: Path, data: bytes) -> None:
            self.step()
            atomic_write(path, data)
            self.step()

        monkeypatch.setattr(Registry, "execute", counted_execute)
        monkeypatch.setattr(artifact_store, "atomic_write", counted_write)

    def step(self) -> None:
        self.count += 1
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.left = None
                raise PowerCutError
