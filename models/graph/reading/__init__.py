"""Any ONNX model in the one form that the rest of us reads."""
