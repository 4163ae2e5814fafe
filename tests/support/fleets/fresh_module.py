"""A module of its own out of a file that others use too, with other constants in it."""

import importlib.util
from types import ModuleType

__all__ = ["fresh_module"]


def fresh_module(name: str, **constants: object) -> ModuleType:
    """Return module ``name`` once more, apart from what an import of it gives."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, value in constants.items():
        setattr(module, constant, value)
    return module
