"""The server beside the MQTT broker: folds updates, publishes releases. Imports models."""

import models as models  # before any onnxruntime: see models/__init__.py
