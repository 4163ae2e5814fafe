"""What the tests of strangers' inputs share: helpers that are imported by name."""

import importlib.util
import sys
from pathlib import Path


def _make_importable(path: Path) -> None:
    """Make ``path`` importable as its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[path.stem])


_HERE = Path(__file__).parent
_make_importable(_HERE.parent / "edge_agent" / "tiny_fleet.py")
_make_importable(_HERE / "strange_entries.py")
_make_importable(_HERE / "mutated_models.py")
