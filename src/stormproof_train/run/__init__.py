"""The folder of a run, and its start, resume and end."""
