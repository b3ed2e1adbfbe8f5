"""Measurements of a run by topic, as frozen dataclasses."""
