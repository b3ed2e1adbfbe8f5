"""Observers that fill the record of a training run."""
