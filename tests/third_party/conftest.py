"""The recipes import packages that only their own environments have."""

collect_ignore = ["recipes", "run.py"]
