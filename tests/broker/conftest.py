"""Fixtures of the server's tests; the world itself is in server_world.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import server_world

from broker.config import load_config
from models.task.spec import TaskSpec


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., object]:
    """Return a function that makes a world; its text is added to the task's section."""

    def make(task: str = "", *, storage: str = "", spec: TaskSpec | None = None) -> object:
        server_world.write_bundle(tmp_path / "bundle", spec or server_world.linear_spec())
        text = server_world.CONFIG.replace("[[task]]", f"{storage}\n[[task]]") + task
        (tmp_path / "broker.toml").write_text(text)
        (tmp_path / "server").mkdir(exist_ok=True)
        return server_world.World(tmp_path, load_config(tmp_path / "broker.toml"))

    return make


@pytest.fixture
def hold_out(tmp_path: Path) -> Path:
    """Samples of three classes, as an npz for [task.evaluation]."""
    x, y = server_world.separable()
    np.savez(tmp_path / "holdout.npz", x=x, y=y)
    return tmp_path / "holdout.npz"
