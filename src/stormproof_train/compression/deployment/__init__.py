"""ONNX export, quantization and benchmarks of artifacts."""
