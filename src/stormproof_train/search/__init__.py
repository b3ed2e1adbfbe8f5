"""Hyperparameter search: many runs, pulled by workers, none of them lost; a driver on top of ordinary runs."""
