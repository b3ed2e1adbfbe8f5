"""Inference with an exported artifact. Requires onnxruntime, not torch."""
