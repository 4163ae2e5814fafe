"""Makes tiny_task.py importable by its name."""

import importlib.util
import sys
from pathlib import Path


def _make_importable(name: str) -> None:
    """Make NAME.py beside this file importable as NAME."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


for name in ("tiny_task",):
    _make_importable(name)
