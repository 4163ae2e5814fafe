"""The version of edgefold: the one place that says it. ``pyproject.toml`` reads it from here.

A constant, since `importlib.metadata` would cost each resident process 0.8 MB for it.
"""

__all__ = ["VERSION"]

VERSION = "0.2.0"
