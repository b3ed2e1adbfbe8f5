"""Measures what an article claims about activations: one kind of experiment per file, listed in ``all_claims``."""
