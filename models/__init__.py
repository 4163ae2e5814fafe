"""What device and server must agree on, byte for byte. Imports nothing else of ours.

Importing it also forbids onnxruntime to report to its vendor (docs/decisions/0004): from 1.31 on
its Linux wheels keep a device id and a database below the home directory and upload events.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is first imported
