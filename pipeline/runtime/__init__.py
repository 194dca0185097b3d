"""Where an explanation graph executes: torch, or one compiled ONNX file in ONNX Runtime."""
