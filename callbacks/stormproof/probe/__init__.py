"""Measurement of training steps, shared by all callbacks of a trainer."""
