"""What a task is: its tensors, its parameters, and the weights in its ONNX files."""
