"""Measurement of gradients and parameter updates."""
