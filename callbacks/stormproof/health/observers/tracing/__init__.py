"""Traces the calls of a training step."""
