"""The device: learns from its own samples, runs the fleet's model. Imports models."""

import models as models  # before any onnxruntime: see models/__init__.py
