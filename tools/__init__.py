"""The programs that people run. May import everything of ours."""

import models as models  # before any onnxruntime: see models/__init__.py
