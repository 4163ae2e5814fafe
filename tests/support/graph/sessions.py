"""ONNX models in onnxruntime, on one thread and without warnings about graphs."""

import onnx
import onnxruntime as ort


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)
