"""Observers that fill the record of a run."""
