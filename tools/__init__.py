"""The programs that people run. May import everything of ours."""

from pathlib import Path

import models as models  # before any onnxruntime: see models/__init__.py

__all__ = ["ROOT"]

ROOT = Path(__file__).resolve().parents[1]  # where our packages lie, for PYTHONPATH of children
