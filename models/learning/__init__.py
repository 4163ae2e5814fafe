"""Running a task on onnxruntime, once for device, server and author."""
