"""Run folder, start, resume and shutdown of runs."""
